"""The quizzes: what is said about a malformed bank, what Sphinx makes of one, and the page in a real browser."""
import contextlib
import copy
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from course import ROOT, quiz

FIXTURES = Path(__file__).parent / "fixtures_quiz"
SAMPLE = yaml.safe_load((FIXTURES / "01_sample.yml").read_text(encoding="utf-8"))


def written(folder: Path, bank: object, name: str = "01_sample.yml") -> Path:
    path = folder / name
    path.write_text(bank if isinstance(bank, str) else yaml.safe_dump(bank, sort_keys=False), encoding="utf-8")
    return path


# ---- banks ----------------------------------------------------------------------------------------------------------


def test_the_sample_has_no_problems():
    for path in FIXTURES.glob("*.yml"):
        bank = quiz.load_bank(path)
        assert bank.items and not bank.all_problems


REMOVED = object()
SINGLE, MULTIPLE, NUMERIC, HALF = range(4)  # the sample's items

# item, path of the field that is changed, its new value, the field that the message names, words of the message
MALFORMED = [
    (SINGLE, ("stem",), REMOVED, "stem", "is missing"),
    (SINGLE, ("question",), REMOVED, "question", "is missing"),
    (SINGLE, ("id",), REMOVED, "id", "is missing"),
    (SINGLE, ("kind",), REMOVED, "kind", "is missing"),
    (SINGLE, ("choices",), REMOVED, "choices", "is missing"),
    (SINGLE, ("kind",), "singel", "kind", "one of single, multiple, numeric"),
    (SINGLE, ("id",), "Even Prime", "id", "lower case"),
    (SINGLE, ("stem",), "  ", "stem", "is empty"),
    (SINGLE, ("stem",), 8.6, "stem", "has to be a text, not 8.6: put it in quotes"),
    (SINGLE, ("stem",), None, "stem", "has to be a text, not nothing"),
    (SINGLE, ("stem",), {"Which": "one?"}, "stem", "colon"),
    (SINGLE, ("question",), "../01_primes.md", "question", "without .md"),
    (SINGLE, ("steam",), "Which?", "steam", "did you mean `stem`?"),
    (SINGLE, ("answer",), 2, "answer", "is no field of this"),
    (SINGLE, ("choices",), {"a": "b"}, "choices", "has to be a list"),
    (SINGLE, ("choices", 2), REMOVED, "choices", "at least 3"),
    (SINGLE, ("choices", 1, "why"), REMOVED, "choices[1].why", "is missing"),
    (SINGLE, ("choices", 1, "text"), REMOVED, "choices[1].text", "is missing"),
    (SINGLE, ("choices", 1, "why"), "", "choices[1].why", "is empty"),
    (SINGLE, ("choices", 1, "corect"), True, "choices[1].corect", "did you mean `correct`?"),
    (SINGLE, ("choices", 1, "correct"), "yes", "choices[1].correct", "true or false"),
    (SINGLE, ("choices", 1, "correct"), False, "choices", "this has 0"),
    (SINGLE, ("choices", 0, "correct"), True, "choices", "choices[0], choices[1]"),
    (SINGLE, ("choices", 2, "text"), " `2` ", "choices[2].text", "same text as choices[1]"),
    (SINGLE, ("choices", 2), "4", "choices[2]", "mapping"),
    (MULTIPLE, ("choices", 2), REMOVED, None, None),  # three are enough
    (MULTIPLE, ("choices", 1, "why"), REMOVED, "choices[1].why", "is missing"),
    (MULTIPLE, ("id",), "even-prime", "id", "the id of item no. 1 already"),
    (NUMERIC, ("answer",), REMOVED, "answer", "is missing"),
    (NUMERIC, ("answer",), "4,096", "answer", "without quotes, commas or unit"),
    (NUMERIC, ("answer",), True, "answer", "has to be a number, not true"),
    (NUMERIC, ("answer",), float("inf"), "answer", "finite"),
    (NUMERIC, ("answer",), float("nan"), "answer", "finite"),
    (NUMERIC, ("tolerance",), -1, "tolerance", "cannot be below 0"),
    (NUMERIC, ("unit",), "4 bytes", "unit", "a unit alone"),
    (NUMERIC, ("unit",), "", "unit", "is empty"),
    (NUMERIC, ("why",), REMOVED, "why", "is missing"),
    (NUMERIC, ("mistakes",), REMOVED, "mistakes", "is missing"),
    (NUMERIC, ("mistakes", 1), REMOVED, "mistakes", "at least 2"),
    (NUMERIC, ("mistakes", 0, "why"), REMOVED, "mistakes[0].why", "is missing"),
    (NUMERIC, ("mistakes", 0, "value"), "1024", "mistakes[0].value", "has to be a number"),
    (NUMERIC, ("mistakes", 1, "value"), 4090, "mistakes[1].value", "meets the answer"),
    (NUMERIC, ("mistakes", 1, "value"), 1030, "mistakes[1].value", "meets mistakes[0]"),
    (HALF, ("mistakes", 0, "value"), 0.125, "mistakes[0].value", "meets the answer"),
    (NUMERIC, ("choices",), [], "choices", "is no field of this"),
]


@pytest.mark.parametrize(("item", "path", "value", "field", "words"), MALFORMED)
def test_a_malformed_item_is_named_and_no_other(tmp_path, item, path, value, field, words):
    bank = copy.deepcopy(SAMPLE)
    name = f"item '{bank['items'][item]['id']}' (no. {item + 1})"
    target = bank["items"][item]
    for step in path[:-1]:
        target = target[step]
    if value is REMOVED:
        del target[path[-1]]
    else:
        target[path[-1]] = value
    if path == ("id",):
        name = f"item '{value}' (no. {item + 1})" if value is not REMOVED else f"item no. {item + 1}"
    loaded = quiz.load_bank(written(tmp_path, bank))
    bad = [i for i, entry in enumerate(loaded.items) if entry.problems]
    if field is None:
        assert not loaded.all_problems
        return
    assert bad == [item] and not loaded.problems
    assert [p for p in loaded.items[item].problems if p.field == field and words in p.message], loaded.all_problems
    for problem in loaded.items[item].problems:
        message = str(problem)
        assert message.startswith(f"{(tmp_path / '01_sample.yml').as_posix()}:")
        assert f": {name}: {problem.field}: " in message


def test_a_multiple_item_has_right_and_wrong_choices(tmp_path):
    for correct, words in ((True, "not correct"), (False, "this has none")):
        bank = copy.deepcopy(SAMPLE)
        for choice in bank["items"][MULTIPLE]["choices"]:
            choice["correct"] = correct
        [problem] = quiz.load_bank(written(tmp_path, bank)).all_problems
        assert problem.field == "choices" and words in problem.message


def test_the_line_is_that_of_the_field(tmp_path):
    text = (FIXTURES / "01_sample.yml").read_text(encoding="utf-8").replace("  tolerance: 10", "  tolerance: ten")
    [problem] = quiz.load_bank(written(tmp_path, text)).all_problems
    assert problem.line == text.split("\n").index("  tolerance: ten") + 1


def test_a_field_written_twice_is_not_dropped_silently(tmp_path):
    text = (FIXTURES / "01_sample.yml").read_text(encoding="utf-8")
    text = text.replace('  - text: "4"\n', '  - text: "4"\n    text: "5"\n')
    [problem] = quiz.load_bank(written(tmp_path, text)).all_problems
    assert (problem.item, problem.field) == ("item 'even-prime' (no. 1)", "choices[2].text")
    assert re.search(r"twice, on the lines \d+ and \d+", problem.message)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("chapter: 01_sample\nitems:\n- id: a\n  stem: is this: so\n", 4, "is not YAML, column"),
        ('chapter: 01_sample\nitems:\n- id: "a\n', 4, "is not YAML"),
        ("chapter: 01_sample\nitems:\n- !item a\n", 3, "is not YAML"),
        ("chapter: 01_sample\nitems: [2026-13-45]\n", 1, "is not YAML"),
        ("", 1, "has to be a mapping"),
        ("- a\n", 1, "has to be a mapping"),
    ],
)
def test_a_file_that_is_no_bank(tmp_path, text, line, words):
    bank = quiz.load_bank(written(tmp_path, text))
    [problem] = bank.all_problems
    assert not bank.items and problem.line == line and words in problem.message
    assert problem.file.endswith("01_sample.yml")


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"chapter": "02_sample"}, "chapter", "the file's name says '01_sample'"),
        ({"chapter": None}, "chapter", "has to be a text"),
        ({"title": "Sample"}, "title", "is no field of this"),
        ({"items": []}, "items", "at least 1"),
        ({"items": "even-prime"}, "items", "has to be a list"),
    ],
)
def test_a_fault_of_the_file_leaves_the_items_alone(tmp_path, change, field, words):
    bank = quiz.load_bank(written(tmp_path, {**SAMPLE, **change}))
    [problem] = bank.problems
    assert problem.field == field and words in problem.message and not problem.item
    if "items" not in change:
        assert len(bank.items) == 4 and not any(item.problems for item in bank.items)


def test_bytes_that_are_not_utf8(tmp_path):
    path = tmp_path / "01_sample.yml"
    path.write_bytes(b"chapter: \xff")
    [problem] = quiz.load_bank(path).all_problems
    assert "UTF-8" in problem.message


def test_a_question_page_that_does_not_exist(tmp_path):
    (tmp_path / "01_sample/questions").mkdir(parents=True)
    (tmp_path / "01_sample/questions/01_prime.md").write_text("# Primes")
    bank = quiz.load_bank(FIXTURES / "01_sample.yml", book=tmp_path)
    assert [problem.field for problem in bank.all_problems] == ["question"] * 4
    assert "did you mean 01_sample/questions/01_prime?" in bank.items[0].problems[0].message
    (tmp_path / "01_sample/questions/01_primes.md").write_text("# Primes")
    (tmp_path / "02_other/questions").mkdir(parents=True)
    (tmp_path / "02_other/questions/01_bytes.md").write_text("# Bytes")
    assert not quiz.load_bank(FIXTURES / "01_sample.yml", book=tmp_path).all_problems


def test_an_edit_changes_the_hash_and_only_that_items(tmp_path):
    before = quiz.load_bank(FIXTURES / "01_sample.yml")
    bank = copy.deepcopy(SAMPLE)
    bank["items"][SINGLE]["choices"][0]["why"] += " So it is."
    after = quiz.load_bank(written(tmp_path, bank))
    assert [a.hash == b.hash for a, b in zip(before.items, after.items, strict=True)] == [False, True, True, True]


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("a `x < y` *b* **c**", "a <code>x &lt; y</code> <em>b</em> <strong>c</strong>"),
        ("<script>alert(1)</script> & [a](http://b) ![c](d)", "&lt;script&gt;alert(1)&lt;/script&gt; &amp; [a](http://b) ![c](d)"),
        ("{api}`trt.BuilderFlag.FP16 (until 10.16)` is", "<code>trt.BuilderFlag.FP16</code> (until 10.16) is"),
        ("2 * 3 * 4 and a_b_c", "2 * 3 * 4 and a_b_c"),
    ],
)
def test_inline_markdown(text, html):
    assert quiz.inline(text) == html


def test_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(quiz, "ROOT", tmp_path)
    for page in ("01_sample/questions/01_primes.md", "02_other/questions/01_bytes.md"):
        (tmp_path / "book" / page).parent.mkdir(parents=True)
        (tmp_path / "book" / page).write_text("# Title")
    page = tmp_path / "out/quiz.html"
    assert quiz.main([str(FIXTURES / "01_sample.yml"), "--preview", str(page)]) == 0
    assert 'href="../book/01_sample/questions/01_primes.md"' in page.read_text(encoding="utf-8")
    bad = written(tmp_path, {"chapter": "01_sample", "items": [{"kind": "single"}]})
    assert quiz.main([str(bad)]) == 1
    assert "01_sample.yml:3: item no. 1: stem: is missing" in capsys.readouterr().err
    assert quiz.main([str(tmp_path / "none.yml")]) == 1


def test_show_needs_no_sphinx():
    code = (
        "import sys; sys.modules['sphinx'] = sys.modules['docutils'] = None\n"
        "from course.quiz import show\n"
        f"q = show('01_sample', {str(FIXTURES)!r})\n"
        "assert q._repr_html_().count('<fieldset>') == 4; print(q)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Quiz 01_sample: 4 items" in done.stdout


def test_show_of_what_is_not_there():
    with pytest.raises(FileNotFoundError, match="no quiz '3_tensorrt'.*there are: 01_sample, 02_other"):
        quiz.show("3_tensorrt", FIXTURES)


def test_the_script_can_stand_inside_a_page():
    for name in quiz.ASSETS:
        assert not re.search(r"</?(script|style)", (quiz.HERE / name).read_text(encoding="utf-8").replace("<script> in", ""))


# ---- the course's own banks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", ["03", "04", "05", "06"])
def test_the_courses_banks(number):
    [path] = (ROOT / "quizzes").glob(f"{number}_*.yml")
    bank = quiz.load_bank(path, ROOT / "book")
    assert not bank.all_problems, "\n".join(map(str, bank.all_problems))
    assert len(bank.items) >= 8
    assert {item.data["kind"] for item in bank.items} == {"single", "multiple", "numeric"}


# ---- Sphinx ---------------------------------------------------------------------------------------------------------


def make_project(folder: Path) -> None:
    pages = {
        "index": "# Index\n\n```{toctree}\nplain\nquiz\nbad\nbook/01_sample/questions/01_primes\n"
        "book/02_other/questions/01_bytes\n```\n",
        "plain": "# Plain\n\nNo quiz here.\n",
        "quiz": "# Quiz\n\n```{quiz} 01_sample\n```\n\n```{quiz} 02_other\n```\n",
        "bad": "# Bad\n\nBefore.\n\n```{quiz} 03_bad\n```\n\nAfter.\n",
        "book/01_sample/questions/01_primes": "# What is a *prime* & why?\n",
        "book/02_other/questions/01_bytes": "# What is a byte?\n",
    }
    for name, text in pages.items():
        (folder / f"{name}.md").parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
    (folder / "conf.py").write_text(
        "extensions = ['myst_parser', 'course.quiz']\nproject = 'Sample'\nexclude_patterns = ['_build']\n"
        "html_theme = 'basic'\nhtml_copy_source = False\n"
    )
    (folder / "quizzes").mkdir()
    for name in ("01_sample.yml", "02_other.yml"):
        shutil.copy(FIXTURES / name, folder / "quizzes")
    bank = copy.deepcopy(SAMPLE)
    bank["chapter"] = "03_bad"
    del bank["items"][MULTIPLE]["choices"][1]["why"]
    for item in bank["items"]:
        item["question"] = "01_sample/questions/01_primes"
    written(folder / "quizzes", bank, "03_bad.yml")


def build(folder: Path, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "sphinx", "-b", "html", *options, str(folder), str(folder / "_build")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"},
        cwd=folder, check=False, capture_output=True, text=True, timeout=120,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A built book with good quizzes, and a page whose quiz has one malformed item."""
    folder = tmp_path_factory.mktemp("site")
    make_project(folder)
    done = build(folder, "-j", "2")
    assert done.returncode == 0, done.stderr
    return folder, done.stderr


def test_a_malformed_item_warns_and_spoils_nothing_else(site):
    folder, warnings = site
    [warning] = [line for line in warnings.splitlines() if "WARNING" in line]
    assert re.search(r"quizzes/03_bad\.yml:\d+: WARNING: item 'powers-of-two' \(no\. 2\): choices\[1\]\.why: is missing", warning)
    bad = (folder / "_build/bad.html").read_text(encoding="utf-8")
    assert bad.count("<fieldset>") == 3 and bad.count('class="icq-error"') == 1
    assert "powers-of-two" in bad and "choices[1].why: is missing" in bad
    assert "Before." in bad and "After." in bad
    page = (folder / "_build/quiz.html").read_text(encoding="utf-8")
    assert page.count("<fieldset>") == 5 and "icq-error" not in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_links_go_to_the_question_with_its_title(site):
    page = (site[0] / "_build/quiz.html").read_text(encoding="utf-8")
    assert 'href="book/01_sample/questions/01_primes.html">What is a prime &amp; why?</a>' in page
    assert 'href="book/02_other/questions/01_bytes.html">What is a byte?</a>' in page


def test_only_pages_with_a_quiz_load_its_files(site):
    for name, expected in (("quiz", 1), ("bad", 1), ("plain", 0), ("index", 0)):
        page = (site[0] / f"_build/{name}.html").read_text(encoding="utf-8")
        for asset in quiz.ASSETS:
            assert page.count(f"_static/{asset}") == expected
    for asset in quiz.ASSETS:
        assert (site[0] / "_build/_static" / asset).read_bytes() == (quiz.HERE / asset).read_bytes()


def test_incremental_and_strict_builds(tmp_path):
    make_project(tmp_path)
    strict = build(tmp_path, "-W", "--keep-going", "-j", "2")
    assert strict.returncode == 1 and "03_bad.yml" in strict.stderr
    shutil.copy(FIXTURES / "01_sample.yml", tmp_path / "quizzes/03_bad.yml")
    path = tmp_path / "quizzes/03_bad.yml"
    path.write_text(path.read_text().replace("01_sample", "03_bad").replace(": 01_primes", ": 02_other/questions/01_bytes"))
    mended = build(tmp_path, "-W")
    assert mended.returncode == 0, mended.stderr
    assert "0 added, 1 changed" in mended.stdout  # the page depends on its bank
    page = (tmp_path / "_build/bad.html").read_text(encoding="utf-8")
    assert page.count("<fieldset>") == 4 and "icq-error" not in page
    assert "0 added, 0 changed" in build(tmp_path, "-W").stdout


def test_what_is_not_there_warns_with_its_place(tmp_path):
    make_project(tmp_path)
    (tmp_path / "bad.md").write_text("# Bad\n\n```{quiz} 09_none\n```\n\nAfter.\n")
    (tmp_path / "quizzes/02_other.yml").write_text("chapter: 02_other\nitems: [\n")
    path = tmp_path / "quizzes/01_sample.yml"
    path.write_text(path.read_text().replace("question: 01_primes", "question: 77_gone", 1))
    done = build(tmp_path)
    assert done.returncode == 0
    warnings = [line for line in done.stderr.splitlines() if "WARNING" in line]
    assert len(warnings) == 3, done.stderr
    text = "\n".join(warnings)
    assert re.search(r"bad\.md:3: WARNING: quiz: there is no .*09_none\.yml; there are: 01_sample, 02_other", text)
    assert re.search(r"02_other\.yml:\d+: WARNING: is not YAML", text)
    assert re.search(
        r"01_sample\.yml:\d+: WARNING: item 'even-prime' \(no\. 1\): question: the page book/01_sample/questions/77_gone is not",
        text,
    )
    assert "After." in (tmp_path / "_build/bad.html").read_text(encoding="utf-8")
    assert (tmp_path / "_build/quiz.html").read_text(encoding="utf-8").count("<fieldset>") == 4


# ---- the browser ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(browser, path: Path, **options):
    """A page of a fresh profile; nothing but files may be asked for, and no script may fail."""
    context = browser.new_context(viewport={"width": 1000, "height": 900}, **options)
    try:
        page = context.new_page()
        page.set_default_timeout(10_000)
        asked, errors = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(path.as_uri())
        yield page
        assert asked and all(url.startswith("file://") for url in asked), asked
        assert not errors, errors
    finally:
        context.close()


@pytest.fixture
def page(browser, site):
    with opened(browser, site[0] / "_build/quiz.html") as page:
        yield page


def item(page, name, chapter="01_sample"):
    return page.locator(f'[data-quiz="{chapter}"] [data-item="{name}"]')


def score(page, chapter="01_sample"):
    return page.locator(f'[data-quiz="{chapter}"] .icq-score').inner_text()


def check(box):
    box.get_by_role("button", name="Check").click()


def marks(box):
    """The marker of each choice, as text."""
    return [
        " ".join(row.locator(".icq-mark").all_inner_texts()) for row in box.locator(".icq-choice").all()
    ]


def test_single_by_keyboard_alone(page):
    box = item(page, "even-prime")
    page.keyboard.press("Tab")
    for _ in range(20):
        if page.evaluate("document.activeElement.closest('.icq-item') !== null"):
            break
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.type") == "radio"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Space")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert box.locator("input").nth(2).is_checked()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Check"
    page.keyboard.press("Enter")
    assert marks(box) == ["", "missed", "wrong, your choice"]
    result = box.get_by_role("status")
    assert result.inner_text().startswith("Wrong.")
    assert "4 is even, but 2 divides it." in result.text_content()  # for the ear: the reason is beside the choice
    assert box.locator(".icq-why").all_inner_texts()[0].strip().startswith("1 is odd")
    for i in range(3):
        why = box.locator("input").nth(i).get_attribute("aria-describedby")
        assert page.locator(f"#{why}").inner_text()
    # Locked, but within reach: the arrows walk over the choices and their reasons.
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("ArrowUp")
    assert box.locator("input").nth(2).is_checked() and not box.locator("input").nth(1).is_checked()
    box.locator("input").nth(2).focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Try again"
    page.keyboard.press("Space")
    assert page.evaluate("document.activeElement === document.querySelector('[data-item=even-prime] input')")
    assert not box.locator("input:checked").count() and not box.locator(".icq-why").count()
    assert result.inner_text() == ""
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert marks(box) == ["", "right, your choice", ""]
    assert result.inner_text().startswith("Right.")
    assert score(page) == "1 of 4 right, 3 not checked yet."


def test_nothing_chosen_is_no_wrong_answer(page):
    for name, words in (
        ("even-prime", "Choose one"), ("powers-of-two", "Choose at least one"), ("page-bytes", "Type a number"),
    ):
        box = item(page, name)
        check(box)
        assert words in box.get_by_role("status").inner_text()
        assert not box.locator(".icq-why").count()
        assert box.get_by_role("button", name="Try again").count() == 0
    assert score(page) == "0 of 4 right, 4 not checked yet."
    box = item(page, "page-bytes")
    assert box.locator("input").get_attribute("aria-invalid") == "true"
    box.locator("input").fill("4")
    assert box.locator("input").get_attribute("aria-invalid") is None
    assert box.get_by_role("status").inner_text() == ""


@pytest.mark.parametrize(
    ("chosen", "verdict", "expected", "words"),
    [
        ((0, 2), "Right.", ["right, your choice", "", "right, your choice", ""], "2 of 2 right choices found."),
        ((0,), "Wrong.", ["right, your choice", "", "missed", ""], "1 of 2 right choices found."),
        ((0, 1, 2), "Wrong.", ["right, your choice", "wrong, your choice", "right, your choice", ""], "1 wrong choice"),
        ((1, 3), "Wrong.", ["missed", "wrong, your choice", "missed", "wrong, your choice"], "2 wrong choices"),
    ],
)
def test_multiple(page, chosen, verdict, expected, words):
    box = item(page, "powers-of-two")
    for i in chosen:
        box.locator("input").nth(i).focus()
        page.keyboard.press("Space")
    check(box)
    text = box.get_by_role("status").inner_text()
    assert text.startswith(verdict) and words in text
    assert marks(box) == expected
    assert len(box.locator(".icq-why").all()) == 4
    box.locator("label").nth(3).click(force=True)
    assert box.locator("input").nth(3).is_checked() == (3 in chosen)  # the answer stands
    assert score(page) == f"{int(verdict == 'Right.')} of 4 right, 3 not checked yet."


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("4096", 4096), (" 4096 ", 4096), ("+4096", 4096), ("4,096", 4096), ("4 096", 4096), ("4\u202f096", 4096),
        ("4\u00a0096", 4096), ("4'096", 4096), ("4’096", 4096), ("4_096", 4096), ("4096.", 4096), ("4096.0", 4096),
        ("4.1e3", 4100), ("4.1E+3", 4100), ("41e2", 4100), ("4.1 x 10^3", 4100), ("4,1e3", 4100), ("4.1·10^3", 4100),
        ("4096 bytes", 4096), ("4096bytes", 4096), ("4,096 Byte", 4096), ("4.096,0", 4096), ("-4096", -4096),
        ("\u22124096", -4096), ("1,048,576", 1048576), ("1.048.576", 1048576), ("1 048 576,5", 1048576.5),
        ("0,125", 0.125), (".5", 0.5), (",5", 0.5), ("4,1", 4.1), ("4.096", 4.096), ("0", 0), ("1e-3 bytes", 0.001),
    ],
)
def test_numbers_that_are_read(page, typed, value):
    assert page.evaluate("t => courseQuiz.parseNumber(t, 'bytes')", typed) == {"value": value}


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("", "Type a number"), ("   ", "Type a number"), ("abc", "cannot be read as one number"),
        ("1,2,3", "cannot be read"), ("4,09,6", "cannot be read"), ("1 2", "cannot be read"), ("1.2.3", "cannot be read"),
        ("1e999", "cannot be read"), ("4096 KiB", "not the unit asked for. Write the number in bytes"),
        ("10-20", "not the unit"), ("4k", "not the unit"), ("1/8", "not the unit"), ("NaN", "cannot be read"),
        ("Infinity", "cannot be read"), ("0x10", "not the unit"),
    ],
)
def test_numbers_that_are_not(page, typed, words):
    assert words in page.evaluate("t => courseQuiz.parseNumber(t, 'bytes')", typed)["error"]


@pytest.mark.parametrize(
    ("unit", "typed", "fine"),
    [("ms", "4 ms", True), ("ms", "4 m", False), ("ms", "4 s", False), ("µs", "4 us", True), ("%", "4%", True),
     ("%", "4 percent", True), ("", "4 ms", False), ("MiB", "4 mib", True), ("MiB", "4 MB", False), ("×", "4x", True)],
)
def test_units(page, unit, typed, fine):
    answer = page.evaluate("([t, u]) => courseQuiz.parseNumber(t, u)", [typed, unit])
    assert answer.get("value") == (4 if fine else None)


def test_numeric_right_within_tolerance_by_enter(page):
    box = item(page, "page-bytes")
    box.locator("input").focus()
    page.keyboard.type("4.1e3")
    page.keyboard.press("Enter")
    text = box.get_by_role("status").inner_text()
    assert text.startswith("Right. Your answer: 4,100") and "32 · 32 · 4 is 4096." in text
    page.keyboard.type("9")
    assert box.locator("input").input_value() == "4.1e3"  # it stands until "Try again"
    box.get_by_role("button", name="Try again").click()
    page.keyboard.type("4107")
    page.keyboard.press("Enter")
    assert box.get_by_role("status").inner_text().startswith("Wrong.")


def test_numeric_names_the_mistake(page):
    box = item(page, "page-bytes")
    box.locator("input").fill("1,030 bytes")  # the item's tolerance holds for a mistake too
    check(box)
    text = box.get_by_role("status").inner_text()
    assert "each takes 4 bytes" in text and "That is one row." not in text
    assert re.search(r"The answer is 4,096\sbytes, give or take 10\sbytes\.", text)
    box.get_by_role("button", name="Try again").click()
    box.locator("input").fill("7")
    check(box)
    text = box.get_by_role("status").inner_text()
    assert text.startswith("Wrong.") and "each takes" not in text and "That is one row." not in text
    half = item(page, "half")
    half.locator("input").fill("0,125")
    check(half)
    assert half.get_by_role("status").inner_text().startswith("Right.")


def answer_all(page):
    item(page, "even-prime").locator("input").nth(1).check()
    check(item(page, "even-prime"))
    for i in (0, 1):
        item(page, "powers-of-two").locator("input").nth(i).check()
    check(item(page, "powers-of-two"))
    item(page, "page-bytes").locator("input").fill("4 096")
    check(item(page, "page-bytes"))
    item(page, "half").locator("input").fill("0.")


def test_answers_survive_a_reload(page):
    answer_all(page)
    look = """[...document.querySelectorAll('.icq-item')].map(item => { const copy = item.cloneNode(true);
        copy.querySelectorAll('.icq-unseen').forEach(e => e.remove()); return copy.textContent })"""
    seen = page.evaluate(look)
    page.reload()
    assert page.evaluate(look) == seen
    assert score(page) == "2 of 4 right, 1 not checked yet."
    assert item(page, "half").locator("input").input_value() == "0."  # typed, not checked
    assert marks(item(page, "powers-of-two")) == ["right, your choice", "wrong, your choice", "missed", ""]
    item(page, "even-prime").get_by_role("button", name="Try again").click()
    page.reload()
    assert not item(page, "even-prime").locator("input:checked").count()
    assert score(page) == "1 of 4 right, 2 not checked yet."


def test_start_over(page):
    answer_all(page)
    item(page, "even-prime", "02_other").locator("input").nth(1).check()
    page.locator('[data-quiz="01_sample"]').get_by_role("button", name="Start over").click()
    assert score(page) == "0 of 4 right, 4 not checked yet."
    assert page.evaluate("document.activeElement === document.querySelector('[data-item=even-prime] input')")
    page.reload()
    assert score(page) == "0 of 4 right, 4 not checked yet."
    assert item(page, "half").locator("input").input_value() == ""
    assert item(page, "even-prime", "02_other").locator("input").nth(1).is_checked()  # the other quiz keeps its own


def test_two_quizzes_with_one_id_do_not_clash(page):
    item(page, "even-prime").locator("input").nth(0).check()
    item(page, "even-prime", "02_other").locator("input").nth(1).check()
    assert item(page, "even-prime").locator("input").nth(0).is_checked()
    check(item(page, "even-prime", "02_other"))
    assert score(page, "02_other") == "1 of 1 right." and score(page) == "0 of 4 right, 4 not checked yet."
    page.reload()
    assert item(page, "even-prime").locator("input").nth(0).is_checked()
    assert marks(item(page, "even-prime", "02_other")) == ["", "right, your choice", ""]


GARBAGE = ["{", "null", "7", '"x"', "[]", '{"chosen": 3, "checked": true}', '{"chosen": [9, "a", null], "checked": true}',
           '{"text": {"a": 1}, "checked": true}', '{"chosen": [], "text": "", "checked": true}', '{"checked": "yes"}']


def test_garbage_in_storage_is_an_empty_start(page):
    for garbage in GARBAGE:
        page.evaluate(
            """garbage => document.querySelectorAll('.icq-item').forEach(item => localStorage.setItem('course-quiz/' +
            item.closest('.icq').dataset.quiz + '/' + item.dataset.item + '/' + item.dataset.hash, garbage))""", garbage)
        page.reload()
        assert score(page) == "0 of 4 right, 4 not checked yet.", garbage
        assert not page.locator("input:checked").count()
    answer_all(page)
    assert score(page) == "2 of 4 right, 1 not checked yet."


def test_an_edited_item_forgets_its_answer(page):
    answer_all(page)
    before = page.evaluate("Object.keys(localStorage).filter(key => key.includes('/even-prime/'))")
    assert len(before) == 1
    stale = re.sub(r"/[0-9a-f]+$", "/0123456789ab", before[0])
    page.evaluate("([old, new_]) => { localStorage.setItem(new_, localStorage[old]); localStorage.removeItem(old) }",
                  [before[0], stale])
    page.reload()
    assert not item(page, "even-prime").locator("input:checked").count()
    assert page.evaluate("Object.keys(localStorage).filter(key => key.includes('/even-prime/'))") == []


@pytest.mark.parametrize("how", ["absent", "throws", "full"])
def test_without_storage_it_works_and_says_so(browser, tmp_path, how):
    path = tmp_path / "preview.html"
    path.write_text(quiz.preview_html([quiz.load_bank(FIXTURES / "01_sample.yml")], tmp_path), encoding="utf-8")
    script = {
        "absent": "Object.defineProperty(window, 'localStorage', {value: null})",
        "throws": "Object.defineProperty(window, 'localStorage', {get() { throw new DOMException('no', 'SecurityError') }})",
        "full": "Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError') }",
    }[how]
    context = browser.new_context()
    try:
        page = context.new_page()
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.add_init_script(script)
        page.goto(path.as_uri())
        answer_all(page)
        assert score(page) == "2 of 4 right, 1 not checked yet."
        assert "gone after a reload" in page.locator('[data-quiz="01_sample"] .icq-note').inner_text()
        page.locator('[data-quiz="01_sample"]').get_by_role("button", name="Start over").click()
        assert score(page) == "0 of 4 right, 4 not checked yet." and not errors
    finally:
        context.close()


def test_without_javascript_the_choices_and_the_key_can_be_read(browser, site):
    context = browser.new_context(java_script_enabled=False)
    try:
        page = context.new_page()
        page.goto((site[0] / "_build/quiz.html").as_uri())
        box = item(page, "powers-of-two")
        assert box.locator(".icq-text").all_inner_texts() == ["1", "6", "8", "10"]
        assert not page.get_by_role("button", name="Check").count()
        assert not page.locator(".icq-score").first.is_visible()
        assert not box.get_by_text("6 is 2 times 3").is_visible()
        box.locator("summary").click()
        assert box.get_by_text("6 is 2 times 3").is_visible()
        number = item(page, "page-bytes")
        number.locator("summary").click()
        assert "Answer: 4,096" in number.locator(".icq-key").inner_text()
        number.locator("input").fill("4096")
        number.locator("input").press("Enter")
        assert number.locator("input").input_value() == "4096"  # no form is sent
    finally:
        context.close()


def test_the_key_is_closed_and_the_link_shows_after_the_check(page):
    box = item(page, "even-prime")
    assert not box.locator(".icq-key").is_visible() and not box.locator(".icq-more").is_visible()
    box.locator("input").nth(0).check()
    check(box)
    box.get_by_role("link", name="What is a prime & why?").click()
    assert page.url.endswith("/book/01_sample/questions/01_primes.html")


def test_the_names_that_a_screen_reader_says(page):
    box = item(page, "even-prime")
    group = box.get_by_role("group", name="Question 1 of 4 Which of these is an even prime, as n % 2 == 0 has it?")
    assert group.count() == 1
    assert group.get_by_role("radio").count() == 3 and group.get_by_role("radio", name="4", exact=True).count() == 1
    assert item(page, "powers-of-two").get_by_role("checkbox").count() == 4
    entry = item(page, "page-bytes").get_by_role("textbox", name="Your answer")
    described = [page.locator(f"#{i}").inner_text() for i in entry.get_attribute("aria-describedby").split()]
    assert described[0] == "Type a number, in bytes." and entry.get_attribute("inputmode") == "decimal"


def test_print_shows_the_questions_without_the_answers(page):
    answer_all(page)
    page.emulate_media(media="print")
    box = item(page, "even-prime")
    assert box.locator("legend").is_visible() and box.locator(".icq-text").nth(2).is_visible()
    for hidden in (".icq-why", ".icq-buttons", ".icq-result", ".icq-key", ".icq-more"):
        assert not any(found.is_visible() for found in page.locator(hidden).all()), hidden
    assert not page.locator(".icq-footer").first.is_visible()


def test_reduced_motion_means_none(browser, site):
    for wish, moves in (("no-preference", True), ("reduce", False)):
        with opened(browser, site[0] / "_build/quiz.html", reduced_motion=wish) as page:
            times = page.evaluate(
                """() => [...document.querySelectorAll('.icq, .icq *')].flatMap(e => {
                const s = getComputedStyle(e); return [s.transitionDuration, s.animationDuration] })""")
            assert any(time not in ("0s", "auto") for time in times) == moves


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1440])
def test_contrast_and_width(browser, site, tmp_path, scheme, width):
    """Every text against what is painted behind it, and nothing wider than the screen."""
    path = tmp_path / "preview.html"
    path.write_text(quiz.preview_html([quiz.load_bank(FIXTURES / "01_sample.yml")], tmp_path), encoding="utf-8")
    with opened(browser, path, color_scheme=scheme) as page:
        page.set_viewport_size({"width": width, "height": 900})
        answer_all(page)
        check(item(page, "half"))
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        contrasts = page.evaluate(
            """scheme => {
            const parse = c => { const n = c.match(/[\\d.]+/g).map(Number); return [n[0], n[1], n[2], n[3] ?? 1] };
            const over = (a, b) => [0, 1, 2].map(i => a[i] * a[3] + b[i] * (1 - a[3])).concat(1);
            const light = c => c.slice(0, 3).map(v => { v /= 255; return v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4 })
              .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
            const canvas = scheme === 'dark' ? [18, 18, 18, 1] : [255, 255, 255, 1];
            return [...document.querySelectorAll('.icq *')].filter(e => e.offsetParent && [...e.childNodes].some(
              n => n.nodeType === 3 && n.textContent.trim())).map(e => {
              const stack = []; for (let p = e; p; p = p.parentElement) stack.unshift(parse(getComputedStyle(p).backgroundColor));
              const back = stack.reduce((b, c) => over(c, b), canvas);
              const [a, b] = [light(over(parse(getComputedStyle(e).color), back)), light(back)];
              return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), e.textContent.slice(0, 40)] }) }""", scheme)
        assert len(contrasts) > 30
        assert not [found for found in contrasts if found[0] < 4.5]


# ---- a notebook's output --------------------------------------------------------------------------------------------


def test_several_outputs_of_show_on_one_page(browser, tmp_path):
    """As a notebook does it: each output is inserted later, and its script is run again."""
    path = tmp_path / "notebook.html"
    path.write_text("<!doctype html><meta charset=utf-8><title>Notebook</title><body></body>", encoding="utf-8")
    with opened(browser, path) as page:
        for chapter in ("01_sample", "02_other", "01_sample"):
            page.evaluate(
                """html => { const output = document.createElement('div'); output.innerHTML = html;
                output.querySelectorAll('script').forEach(old => { const copy = document.createElement('script');
                copy.textContent = old.textContent; old.replaceWith(copy) }); document.body.append(output) }""",
                quiz.show(chapter, FIXTURES)._repr_html_())
        ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
        assert len(ids) == len(set(ids)) and page.locator(".icq-live").count() == 3
        first, second = (page.locator('[data-quiz="01_sample"]').nth(i) for i in (0, 1))
        first.locator("input").nth(0).check()
        second.locator("input").nth(1).check()
        assert first.locator("input").nth(0).is_checked()
        check(second.locator('[data-item="even-prime"]'))
        assert second.locator(".icq-score").inner_text().startswith("1 of 4 right")
        assert first.locator(".icq-score").inner_text().startswith("0 of 4 right")
        # JupyterLab looks for it on the element that has the focus, and only there.
        assert not page.locator(":is(a, button, input, summary):not([data-lm-suppress-shortcuts=true])").count()


def test_a_malformed_item_in_a_notebook_is_a_box(tmp_path):
    bank = copy.deepcopy(SAMPLE)
    bank["items"][SINGLE]["stem"] = "<b>" * 5
    bank["items"][MULTIPLE]["kind"] = "<img src=x onerror=alert(1)>"
    written(tmp_path, bank)
    shown = quiz.show("01_sample", tmp_path)
    text = shown._repr_html_()
    assert text.count("<fieldset>") == 3 and text.count('class="icq-error"') == 1
    assert "<img" not in text and "<b>" not in text
    assert "item 'powers-of-two' (no. 2): kind" in repr(shown)
    json.dumps(text)
