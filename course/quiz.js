/* The quiz in a page: checks answers, shows reasons, keeps answers in localStorage. No library, no request.

   course/quiz.py writes all of the HTML. Without this script a reader sees the stem, the choices and a <details> with the
   key and the reasons; this script hides the <details> and copies the reasons out of it after a check.
   The same text is a file of the book and a <script> in a notebook's output, where it may run many times. */
(function () {
  "use strict";

  if (window.courseQuiz) {
    window.courseQuiz.init();
    return;
  }

  var PREFIX = "course-quiz/";

  // ---- what the reader typed -------------------------------------------------------------------------------------

  function plainNumber(text) {
    // 4096, 4.5, .5
    if (/^(\d+|\d*\.\d+)$/.test(text)) return Number(text);
    // 4,096 and 1,048,576.5: commas in threes group digits. 0,125 is no group: it is a decimal comma, below.
    if (/^[1-9]\d{0,2}(,\d{3})+(\.\d+)?$/.test(text)) return Number(text.replace(/,/g, ""));
    // 4 096, 4'096, 4_096, and with a fraction after a point or a comma
    if (/^[1-9]\d{0,2}([ '_])\d{3}(\1\d{3})*([.,]\d+)?$/.test(text)) {
      return Number(text.replace(/[ '_]/g, "").replace(",", "."));
    }
    // 4.096,5 and 1.048.576. A single 4.096 is four and a bit, as in the book.
    if (/^[1-9]\d{0,2}((\.\d{3})+,\d+|(\.\d{3}){2,})$/.test(text)) {
      return Number(text.replace(/\./g, "").replace(",", "."));
    }
    // 4,1: a decimal comma
    if (/^\d*,\d+$/.test(text)) return Number(text.replace(",", "."));
    return NaN;
  }

  function plainUnit(text) {
    var unit = text.toLowerCase().replace(/[\s.]/g, "").replace(/[\u00b5\u03bc]/g, "u").replace(/\u00d7/g, "x");
    if (unit === "percent") return "%";
    return unit.length > 3 ? unit.replace(/s$/, "") : unit;
  }

  /* -> {value: 4096} or {error: "what to write instead"} */
  function parseNumber(typed, unit) {
    var text = typed
      .replace(/[\u00a0\u2000-\u200a\u202f\u205f\u3000]/g, " ")
      .replace(/[\u2212\u2012\u2013]/g, "-")
      .replace(/[\u2019\u02bc]/g, "'")
      .trim();
    if (!text) return { error: "Type a number first." };
    var parts = /^([+-]?)\s*([.,]?\d(?:[\d.,'_ ]*\d)?)(?:\s*[eE]([+-]?\d+)|\s*[x*\u00d7\u00b7]\s*10\s*\^\s*([+-]?\d+))?\s*(.*)$/.exec(text);
    var value = NaN;
    if (parts) {
      value = plainNumber(parts[2]) * Math.pow(10, Number(parts[3] || parts[4] || 0));
      if (parts[3] || parts[4]) {
        // Let the engine round once: 4.1 * 10**3 need not be 4100.
        value = Number(String(plainNumber(parts[2])) + "e" + (parts[3] || parts[4]));
      }
      if (parts[1] === "-") value = -value;
    }
    if (!isFinite(value)) {
      return { error: "“" + text + "” cannot be read as one number. Write it like 4096, 4,096, 4 096, 0.5 or 4.1e3." };
    }
    var rest = parts[5];
    if (rest && rest !== "." && plainUnit(rest) !== plainUnit(unit || "")) {
      return {
        error: unit
          ? "“" + rest + "” is not the unit asked for. Write the number in " + unit + "."
          : "“" + rest + "” cannot be read. Write the number alone."
      };
    }
    return { value: value };
  }

  function near(value, target, tolerance) {
    var rounding = 1e-9 * Math.max(Math.abs(value), Math.abs(target));
    return Math.abs(value - target) <= tolerance + rounding;
  }

  function numberText(value, unit) {
    var size = Math.abs(value);
    var text = size !== 0 && (size < 1e-4 || size >= 1e15)
      ? String(value)
      : value.toLocaleString("en-US", { maximumSignificantDigits: 12 });
    return unit ? text + "\u00a0" + unit : text;
  }

  // ---- what the browser keeps ------------------------------------------------------------------------------------

  var storage = {
    // Each of these throws where a browser forbids storage: private windows, sandboxed frames, some file:// pages.
    get: function (key) {
      try { return window.localStorage.getItem(key); } catch (error) { return null; }
    },
    set: function (key, value) {
      try { window.localStorage.setItem(key, value); return true; } catch (error) { return false; }
    },
    remove: function (key) {
      try { window.localStorage.removeItem(key); } catch (error) { /* nothing was kept */ }
    },
    keys: function () {
      try { return Object.keys(window.localStorage); } catch (error) { return []; }
    }
  };

  // ---- one item --------------------------------------------------------------------------------------------------

  function make(tag, className, text) {
    var element = document.createElement(tag);
    if (className) element.className = className;
    if (text) element.textContent = text;
    return element;
  }

  function setUpItem(element, quiz) {
    var kind = element.getAttribute("data-kind");
    var numeric = kind === "numeric";
    var inputs = Array.prototype.slice.call(element.querySelectorAll("input"));
    var checkButton = element.querySelector(".icq-check");
    var againButton = element.querySelector(".icq-again");
    var result = element.querySelector(".icq-result");
    var more = element.querySelector(".icq-more");
    var keyBox = element.querySelector(".icq-key");
    var stem = PREFIX + quiz.name + "/" + element.getAttribute("data-item") + "/";
    var storageKey = stem + element.getAttribute("data-hash");
    var unit = element.getAttribute("data-unit") || "";
    var item = { checked: false, right: false };

    function reason(selector) {
      var source = keyBox.querySelector(selector + " .icq-reason");
      var copy = make("div", "icq-why");
      if (source) copy.innerHTML = source.innerHTML; // written by course/quiz.py, HTML in a bank is escaped there
      return copy;
    }

    function say(verdict, text, hidden) {
      result.textContent = "";
      if (!verdict && !text) return;
      if (verdict) result.appendChild(make("strong", "icq-verdict icq-" + verdict, verdict === "right" ? "Right." : "Wrong."));
      if (text) result.appendChild(make("span", "", (verdict ? " " : "") + text));
      if (hidden) result.appendChild(make("span", "icq-unseen", " " + hidden));
    }

    function save() {
      var state = numeric
        ? { text: inputs[0].value, checked: item.checked }
        : { chosen: chosen(), checked: item.checked };
      var empty = numeric ? !state.text : !state.chosen.length;
      if (empty && !item.checked) storage.remove(storageKey);
      else if (!storage.set(storageKey, JSON.stringify(state))) quiz.cannotSave();
    }

    function chosen() {
      return inputs.reduce(function (found, input, i) { return input.checked ? found.concat(i) : found; }, []);
    }

    function complain(message) {
      say("", message);
      result.classList.add("icq-complaint");
      if (numeric) inputs[0].setAttribute("aria-invalid", "true");
      return false;
    }

    function checkChoices() {
      var picked = chosen();
      if (!picked.length) {
        return complain(kind === "single" ? "Choose one answer first." : "Choose at least one answer first.");
      }
      var rights = 0, wrongs = 0, wanted = 0, spoken = [];
      inputs.forEach(function (input, i) {
        var row = input.closest(".icq-choice");
        var correct = keyBox.querySelector('[data-choice="' + i + '"]').getAttribute("data-correct") === "true";
        var state = input.checked ? (correct ? "right" : "wrong") : (correct ? "missed" : "");
        if (correct) wanted += 1;
        if (state === "right") rights += 1;
        if (state === "wrong") wrongs += 1;
        var why = reason('[data-choice="' + i + '"]');
        var whyText = why.textContent.trim();
        why.id = input.id + "-why";
        if (state) {
          row.classList.add("icq-" + state);
          var mark = make("span", "icq-mark", state);
          if (input.checked) mark.appendChild(make("span", "icq-yours", ", your choice"));
          why.insertBefore(document.createTextNode(" "), why.firstChild);
          why.insertBefore(mark, why.firstChild);
        }
        row.appendChild(why);
        input.setAttribute("aria-describedby", why.id);
        if (input.checked) {
          spoken.push((correct ? "Right: " : "Wrong: ") + row.querySelector(".icq-text").textContent + ": " + whyText);
        }
      });
      item.right = rights === wanted && wrongs === 0;
      var text = "";
      if (kind === "multiple") {
        text = rights + " of " + wanted + " right choices found" +
          (wrongs ? ", and " + wrongs + " wrong " + (wrongs === 1 ? "choice" : "choices") + " chosen." : ".");
      } else if (!item.right) {
        text = "The right choice is the one marked “missed”.";
      }
      say(item.right ? "right" : "wrong", text, spoken.join(" "));
      return true;
    }

    function checkNumber() {
      var parsed = parseNumber(inputs[0].value, unit);
      if (parsed.error) return complain(parsed.error);
      var key;
      try { key = JSON.parse(element.getAttribute("data-key")); } catch (error) { return false; }
      item.right = near(parsed.value, key.answer, key.tolerance);
      say(item.right ? "right" : "wrong", "Your answer: " + numberText(parsed.value, unit) + ".");
      if (!item.right) {
        var hit = key.mistakes.findIndex(function (mistake) {
          return near(parsed.value, mistake.value, mistake.tolerance);
        });
        if (hit >= 0) {
          var mistake = reason('[data-mistake="' + hit + '"]');
          mistake.classList.add("icq-mistake");
          result.appendChild(mistake);
        }
        result.appendChild(make("div", "icq-truth", "The answer is " + numberText(key.answer, unit) +
          (key.tolerance ? ", give or take " + numberText(key.tolerance, unit) : "") + "."));
      }
      result.appendChild(reason("[data-answer]"));
      return true;
    }

    function check(restoring) {
      if (item.checked) return;
      result.classList.remove("icq-complaint");
      if (numeric) inputs[0].removeAttribute("aria-invalid");
      if (!(numeric ? checkNumber() : checkChoices())) return;
      item.checked = true;
      element.classList.add("icq-checked");
      // The answer stands until "Try again", yet the inputs can still be reached: a screen reader reads the reason
      // of each with it. So they are locked by hand and not by `disabled`.
      inputs.forEach(function (input) {
        if (numeric) input.readOnly = true; else input.setAttribute("aria-disabled", "true");
      });
      checkButton.setAttribute("aria-disabled", "true");
      againButton.hidden = false;
      if (more) more.hidden = false;
      if (!restoring) save();
      quiz.update();
      if (!restoring) result.appendChild(make("span", "icq-unseen", " " + quiz.scoreText()));
    }

    function uncheck() {
      item.checked = item.right = false;
      element.classList.remove("icq-checked");
      result.classList.remove("icq-complaint");
      say();
      inputs.forEach(function (input) {
        input.removeAttribute("aria-disabled");
        input.removeAttribute("aria-invalid");
        input.readOnly = false;
        if (numeric) return;
        var row = input.closest(".icq-choice");
        row.classList.remove("icq-right", "icq-wrong", "icq-missed");
        var why = row.querySelector(".icq-why");
        if (why) row.removeChild(why);
        input.removeAttribute("aria-describedby");
      });
      checkButton.removeAttribute("aria-disabled");
      againButton.hidden = true;
      if (more) more.hidden = true;
    }

    item.clear = function () {
      uncheck();
      inputs.forEach(function (input) { if (numeric) input.value = ""; else input.checked = false; });
      storage.remove(storageKey);
      quiz.update();
    };
    item.focus = function () { inputs[0].focus(); };

    function restore() {
      storage.keys().forEach(function (key) {
        // An edited item has another hash: what was saved for its old text is of no use to anybody.
        if (key.indexOf(stem) === 0 && key !== storageKey) storage.remove(key);
      });
      var state = null;
      try { state = JSON.parse(storage.get(storageKey)); } catch (error) { /* not ours, or broken: start empty */ }
      if (!state || typeof state !== "object") state = {};
      if (numeric) {
        inputs[0].value = typeof state.text === "string" ? state.text : "";
      } else {
        var saved = Array.isArray(state.chosen) ? state.chosen : [];
        if (kind === "single") saved = saved.slice(0, 1);
        inputs.forEach(function (input, i) { input.checked = saved.indexOf(i) >= 0; });
      }
      if (state.checked === true && (numeric ? inputs[0].value : chosen().length)) check(true);
    }

    inputs.forEach(function (input) {
      // An arrow key in a group of radio buttons arrives as a click too: focus moves on, the locked choice does not.
      input.addEventListener("click", function (event) { if (item.checked && !numeric) event.preventDefault(); });
      input.addEventListener(numeric ? "input" : "change", function () {
        if (item.checked) return;
        if (result.classList.contains("icq-complaint")) uncheck();
        save();
      });
      input.addEventListener("keydown", function (event) {
        if (event.key !== "Enter" || event.isComposing) return;
        event.preventDefault();
        check();
      });
    });
    checkButton.addEventListener("click", function () { check(); });
    againButton.addEventListener("click", function () { item.clear(); item.focus(); });

    item.restore = restore;
    keyBox.hidden = true;
    if (more) more.hidden = true;
    return item;
  }

  // ---- one quiz --------------------------------------------------------------------------------------------------

  function setUpQuiz(root) {
    root.setAttribute("data-icq-ready", "");
    var footer = root.querySelector(".icq-footer");
    var score = root.querySelector(".icq-score");
    var note = root.querySelector(".icq-note");
    var items = [];
    var quiz = {
      name: root.getAttribute("data-quiz"),
      scoreText: function () {
        var right = items.filter(function (item) { return item.right; }).length;
        return right + " of " + items.length + " right";
      },
      update: function () {
        var open = items.filter(function (item) { return !item.checked; }).length;
        score.textContent = quiz.scoreText() + (open ? ", " + open + " not checked yet" : "") + ".";
      },
      cannotSave: function () {
        note.textContent = "This browser does not let the page keep your answers: they are gone after a reload.";
      }
    };
    Array.prototype.forEach.call(root.querySelectorAll(".icq-item"), function (element) {
      items.push(setUpItem(element, quiz));
    });
    items.forEach(function (item) { item.restore(); });
    root.querySelector(".icq-restart").addEventListener("click", function () {
      items.forEach(function (item) { item.clear(); });
      if (items.length) items[0].focus();
    });
    footer.hidden = !items.length;
    root.classList.add("icq-live");
    quiz.update();
  }

  function init() {
    Array.prototype.forEach.call(document.querySelectorAll(".icq:not([data-icq-ready])"), setUpQuiz);
  }

  window.courseQuiz = { init: init, parseNumber: parseNumber };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", init);
  else init();
})();
