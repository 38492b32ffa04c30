/* Moves the roofline of a page. course/roofline.py writes the controls, the table and the data; nothing is asked of a server.
   courseRoofline.predict is the whole model: the tests compare it with Python's. */
(function () {
  "use strict";

  var SVG = "http://www.w3.org/2000/svg";

  /* bandwidth: bytes a second; rate: operations a second; size: bytes of an element; launch: seconds. The product is
     (m, k) times (k, n), and each matrix crosses the memory bus once. Times in seconds. */
  function predict(bandwidth, rate, size, m, n, k, launch) {
    var operations = 2 * m * n * k;
    var bytes = size * (m * k + k * n + m * n);
    var memory = bytes / bandwidth;
    var arithmetic = operations / rate;
    var work = Math.max(memory, arithmetic);
    return {
      operations: operations,
      bytes: bytes,
      intensity: operations / bytes,
      ridge: rate / bandwidth,
      memory: memory,
      arithmetic: arithmetic,
      time: work + launch,
      bound: launch > work ? "launch-bound" : arithmetic > memory ? "compute-bound" : "memory-bound",
      share: arithmetic / (work + launch)
    };
  }

  function number(value) {
    return Number(value.toPrecision(3)).toLocaleString("en-US", { maximumSignificantDigits: 3 });
  }

  function seconds(value) {
    var units = [["s", 1], ["ms", 1e-3], ["\u00b5s", 1e-6], ["ns", 1e-9]];
    for (var i = 0; i < units.length; i++) {
      if (Number(value.toPrecision(3)) >= units[i][1] || i === units.length - 1) return number(value / units[i][1]) + "\u00a0" + units[i][0];
    }
  }

  function large(value, unit) {
    var prefixes = ["", "k", "M", "G", "T", "P"];
    var i = 0;
    while (Number(value.toPrecision(3)) >= 1000 && i < prefixes.length - 1) {
      value /= 1000;
      i++;
    }
    return number(value) + "\u00a0" + prefixes[i] + unit;
  }

  function draw(parent, name, attributes, text) {
    var node = document.createElementNS(SVG, name);
    Object.keys(attributes).forEach(function (key) {
      node.setAttribute(key, attributes[key]);
    });
    if (text) node.textContent = text;
    parent.appendChild(node);
    return node;
  }

  /* Both axes are logarithmic. Drawn in the width there is, so that its words keep their size on a phone. */
  function chart(holder, machines, chosen, type, found) {
    var wide = Math.max(280, Math.min(holder.clientWidth || 700, 900));
    var high = Math.round(Math.min(380, Math.max(260, wide * 0.55)));
    var box = { left: 58, right: wide - 14, top: 16, bottom: high - 44 };
    var x0 = -1, x1 = 4, y0 = 10, y1 = 15.6;
    function x(intensity) {
      return box.left + ((Math.log10(intensity) - x0) / (x1 - x0)) * (box.right - box.left);
    }
    function y(rate) {
      return box.bottom - ((Math.log10(rate) - y0) / (y1 - y0)) * (box.bottom - box.top);
    }
    function roof(machine) {
      var bandwidth = machine.bandwidth * 1e9, rate = machine.rates[type] * 1e12;
      return [0.1, rate / bandwidth, 1e4].map(function (at, i) {
        return (i ? "L" : "M") + x(at).toFixed(1) + " " + y(Math.min(rate, at * bandwidth)).toFixed(1);
      }).join("");
    }
    holder.textContent = "";
    var svg = draw(holder, "svg", { viewBox: "0 0 " + wide + " " + high, role: "img", "aria-label": "Roofline of " + chosen.name +
      ": the layer at " + number(found.intensity) + " operations a byte, the ridge at " + number(found.ridge) + "." });
    var e, at;
    for (e = x0; e <= x1; e++) {
      at = x(Math.pow(10, e)).toFixed(1);
      draw(svg, "path", { d: "M" + at + " " + box.top + "V" + box.bottom, class: "icr-grid" });
      draw(svg, "text", { x: at, y: box.bottom + 17, "text-anchor": e === x1 ? "end" : "middle" }, ["0.1", "1", "10", "100", "1k", "10k"][e - x0]);
    }
    ["10\u00a0G", "100\u00a0G", "1\u00a0T", "10\u00a0T", "100\u00a0T", "1\u00a0P"].forEach(function (label, i) {
      at = y(Math.pow(10, y0 + i)).toFixed(1);
      draw(svg, "path", { d: "M" + box.left + " " + at + "H" + box.right, class: "icr-grid" });
      draw(svg, "text", { x: box.left - 6, y: Number(at) + 4, "text-anchor": "end" }, label);
    });
    draw(svg, "path", { d: "M" + box.left + " " + box.top + "V" + box.bottom + "H" + box.right, class: "icr-axis", fill: "none" });
    draw(svg, "text", { x: box.left + 4, y: box.top + 4 }, "operations a second");
    draw(svg, "text", { x: box.right, y: high - 8, "text-anchor": "end" }, "intensity: operations a byte");
    machines.forEach(function (machine) {
      if (machine !== chosen && machine.rates[type]) draw(svg, "path", { d: roof(machine), class: "icr-other" });
    });
    draw(svg, "path", { d: "M" + x(found.ridge).toFixed(1) + " " + y(found.ridge * chosen.bandwidth * 1e9).toFixed(1) + "V" + box.bottom, class: "icr-ridge" });
    draw(svg, "path", { d: roof(chosen), class: "icr-roof" });
    var intensity = Math.min(Math.max(found.intensity, 0.1), 1e4);
    var reached = Math.max(found.operations / found.time, Math.pow(10, y0));
    var px = x(intensity), py = y(reached);
    draw(svg, "path", { d: "M" + px.toFixed(1) + " " + py.toFixed(1) + "V" + box.bottom, class: "icr-drop" });
    draw(svg, "circle", { cx: px.toFixed(1), cy: py.toFixed(1), r: 7, class: "icr-point" });
    var left = px > (box.left + box.right) / 2;
    draw(svg, "text", { x: px + (left ? -12 : 12), y: py + 20, "text-anchor": left ? "end" : "start", class: "icr-strong" }, "this layer");
  }

  function start(root) {
    var data = JSON.parse(root.querySelector(".icr-data").textContent);
    var controls = {}, sliders = {};
    root.querySelectorAll("[data-key]").forEach(function (node) {
      controls[node.dataset.key] = node;
    });
    root.querySelectorAll("[data-slider]").forEach(function (node) {
      sliders[node.dataset.slider] = node;
    });
    var good = { m: 1, n: 1, k: 1, launch: 0 };  // the last value of each field that was a number in its range
    var last = "fp16";

    function machineNow() {
      return data.hardware.filter(function (machine) {
        return machine.id === controls.machine.value;
      })[0];
    }

    function typesOf(machine) {
      Array.prototype.forEach.call(controls.type.options, function (option) {
        option.disabled = !machine.rates[option.value];
      });
      if (machine.rates[last]) controls.type.value = last;
      if (!machine.rates[controls.type.value]) controls.type.value = Object.keys(machine.rates)[0];
    }

    function read(key) {
      var node = controls[key], value = Number(node.value);
      var whole = key === "launch" || Math.floor(value) === value;
      var ok = node.value.trim() !== "" && isFinite(value) && value >= Number(node.min) && value <= Number(node.max) && whole;
      node.setAttribute("aria-invalid", String(!ok));
      if (ok) good[key] = value;
      var slider = sliders[key];
      slider.value = key === "launch" ? good[key] : Math.round(Math.log2(good[key]));
      slider.setAttribute("aria-valuetext", key === "launch" ? good[key] + " microseconds" : String(good[key]));
      return good[key];
    }

    function facts(found) {
      var list = root.querySelector(".icr-facts");
      list.textContent = "";
      [
        ["Operations", large(found.operations, ""), "operations"],
        ["Bytes, each matrix once", large(found.bytes, "B"), "bytes"],
        ["Intensity", number(found.intensity) + " operations a byte", "intensity"],
        ["Ridge of this machine", number(found.ridge) + " operations a byte", "ridge"],
        ["Bytes / bandwidth", seconds(found.memory), "memory"],
        ["Operations / rate", seconds(found.arithmetic), "arithmetic"],
        ["Predicted time, at least", seconds(found.time), "time"],
        ["Share of peak arithmetic, at most", number(100 * found.share) + "\u00a0%", "share"]
      ].forEach(function (row) {
        var pair = document.createElement("div");
        var term = document.createElement("dt"), value = document.createElement("dd");
        term.textContent = row[0];
        value.textContent = row[1];
        value.dataset.fact = row[2];
        pair.appendChild(term);
        pair.appendChild(value);
        list.appendChild(pair);
      });
    }

    function update() {
      var machine = machineNow(), type = controls.type.value, size = data.types[type].bytes;
      var m = read("m"), n = read("n"), k = read("k"), launch = read("launch") * 1e-6;
      function on(other) {
        return predict(other.bandwidth * 1e9, other.rates[type] * 1e12, size, m, n, k, launch);
      }
      var found = on(machine);
      chart(root.querySelector(".icr-chart"), data.hardware, machine, type, found);
      root.querySelector(".icr-verdict").textContent = machine.name + ", " + data.types[type].name + ": " + found.bound + ", at least " +
        seconds(found.time) + ". Intensity " + number(found.intensity) + ", ridge " + number(found.ridge) + " operations a byte.";
      facts(found);
      var body = root.querySelector(".icr-all tbody");
      body.textContent = "";
      data.hardware.forEach(function (other) {
        var row = document.createElement("tr");
        if (other === machine) row.setAttribute("aria-current", "true");
        var its = other.rates[type] && on(other);
        [other.name].concat(its ? [number(its.ridge), its.bound, seconds(its.time)] : ["\u2013", "no such type", "\u2013"]).forEach(function (text, i) {
          var cell = document.createElement(i ? "td" : "th");
          if (!i) cell.scope = "row";
          cell.textContent = text;
          row.appendChild(cell);
        });
        body.appendChild(row);
      });
      var same = -1;
      data.layers.forEach(function (layer, i) {
        if (same < 0 && layer.m === m && layer.n === n && layer.k === k) same = i;
      });
      controls.layer.value = same < 0 ? "" : String(same);
    }

    controls.machine.addEventListener("change", function () {
      typesOf(machineNow());
      update();
    });
    controls.type.addEventListener("change", function () {
      last = controls.type.value;
      update();
    });
    controls.layer.addEventListener("change", function () {
      var layer = data.layers[Number(controls.layer.value)];
      if (controls.layer.value !== "" && layer) {
        ["m", "n", "k"].forEach(function (key) {
          controls[key].value = layer[key];
        });
      }
      update();
    });
    Object.keys(sliders).forEach(function (key) {
      sliders[key].addEventListener("input", function () {
        controls[key].value = key === "launch" ? sliders[key].value : Math.pow(2, Number(sliders[key].value));
        update();
      });
      controls[key].addEventListener("input", update);
    });

    root.querySelector(".icr-live").hidden = false;
    root.querySelector(".icr-figures").open = false;
    typesOf(machineNow());
    update();
    var width = 0;
    if (window.ResizeObserver) {
      new ResizeObserver(function (entries) {
        var now = Math.round(entries[0].contentRect.width);
        if (now !== width) {
          width = now;
          update();
        }
      }).observe(root);
    }
  }

  window.courseRoofline = { predict: predict, seconds: seconds };

  function init() {
    document.querySelectorAll(".icr:not([data-started])").forEach(function (root) {
      root.dataset.started = "";
      start(root);
    });
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", init);
  else init();
})();
