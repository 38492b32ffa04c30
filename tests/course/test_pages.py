"""The built book, as a reader meets it: in Chromium, from the disk and from a server, on a desk and on a phone.

The book is built once, afresh, warnings being errors. Under `--dist loadscope` this file stays in one process, so one
process builds it and one browser reads it; under any other each process builds a book of its own.
"""
import contextlib
import functools
import http.server
import io
import json
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from course import ROOT, build

pytest.importorskip("jupyter_book", reason="the book's tools are not installed here")
bs4 = pytest.importorskip("bs4", reason="the book's tools are not installed here")

DESK, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
LOCAL = ("file", "data", "blob")
AXE = ROOT / "node_modules/axe-core/axe.min.js"


def toc_pages() -> list[str]:
    """The pages that _toc.yml names, in order."""
    def walk(entry):
        if isinstance(entry, list):
            return [page for child in entry for page in walk(child)]
        if isinstance(entry, dict):
            own = [entry[key] for key in ("root", "file") if key in entry]
            return own + [page for value in entry.values() for page in walk(value)]
        return []

    return [re.sub(r"\.(md|ipynb)$", "", page) for page in walk(yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8")))]


PAGES = toc_pages()
EXERCISES = [page for page in PAGES if page.startswith("notebooks/")]
QUIZZES = sorted(path.stem for path in (ROOT / "quizzes").glob("*.yml"))
OWN = ["search", "genindex"]  # what Sphinx adds


# ---- the book, a server, a browser's window -------------------------------------------------------------------------


@pytest.fixture(scope="session")
def book(tmp_path_factory) -> Path:
    """The folder of the built book."""
    output, said = tmp_path_factory.mktemp("book"), io.StringIO()
    with contextlib.redirect_stdout(said):
        code = build.build(output=str(output), strict=True)
    assert code == 0 and re.search(r"\b0 warnings, exit code 0$", said.getvalue().strip()), said.getvalue()
    return output / "_build/html"


@pytest.fixture(scope="session")
def served(book):
    """The address of the book on a server."""
    handler = functools.partial(build.QuietHandler, directory=str(book))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class Window:
    """One page of one browser profile that writes down what is asked for, what fails and what scripts complain of."""

    def __init__(self, browser) -> None:
        self.context = browser.new_context(viewport=DESK, reduced_motion="reduce")
        self.asked: list[str] = []
        self.faults: list[str] = []
        self.context.on("request", lambda request: self.asked.append(request.url))
        self.context.on("requestfailed", self.failed)
        self.context.on("response", lambda answer: answer.status >= 400 and self.faults.append(f"{answer.status}: {answer.url}"))
        self.context.on("console", lambda line: line.type == "error" and self.faults.append(f"console: {line.text}"))
        self.context.on("weberror", lambda error: self.faults.append(f"script: {error.error}"))
        self.context.route(lambda url: self.foreign(url), lambda route: route.abort())  # written down, and not let out
        self.page = self.context.new_page()
        self.page.set_default_timeout(15_000)

    def failed(self, request) -> None:
        if request.failure != "net::ERR_ABORTED":  # what a page still wanted when it was left, such as its icon
            self.faults.append(f"failed: {request.url}: {request.failure}")

    @staticmethod
    def foreign(url: str) -> bool:
        return not (urlsplit(url).scheme in LOCAL or urlsplit(url).hostname == "127.0.0.1")

    def open(self, address: str, size: dict = DESK) -> object:
        """Loads a page; it is settled when this returns: formulas set, drawers of the theme in place."""
        self.page.set_viewport_size(size)
        self.page.goto(address)
        self.page.evaluate("""async () => {
            if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
            await document.fonts.ready;
            await new Promise(done => requestIdleCallback(done, {timeout: 1000}));
        }""")
        return self.page

    def clean(self) -> None:
        asked, faults = self.asked[:], self.faults[:]
        self.asked.clear(), self.faults.clear()
        foreign = [url for url in asked if self.foreign(url)]
        assert not foreign, f"other hosts were asked: {foreign}"
        assert not faults, faults
        assert asked, "nothing was asked for at all: is this test listening?"


@pytest.fixture(scope="module")
def window(browser):
    window = Window(browser)
    yield window
    window.context.close()


@pytest.fixture
def address(book, served):
    """The address of a page: address('book/index') on the server, address('book/index', 'file') on the disk."""
    return lambda page, how="http": f"{(book / page).as_uri() if how == 'file' else f'{served}/{page}'}.html"


@functools.cache
def soup(path: Path):
    return bs4.BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def test_the_book_has_its_pages(book):
    assert len(PAGES) == len(set(PAGES)) >= 20 and len(EXERCISES) >= 2 and len(QUIZZES) >= 4
    assert [page for page in PAGES + OWN if not (book / f"{page}.html").is_file()] == []


# ---- one visit to every page ----------------------------------------------------------------------------------------

# What sticks out of the window, other than inside a box of its own that scrolls; and which boxes scroll.
SIZES = """() => {
    document.querySelectorAll('article details').forEach(part => { part.open = true; });
    const scrolls = box => ['auto', 'scroll'].includes(getComputedStyle(box).overflowX);
    const boxed = element => {
        for (let box = element.parentElement; box && box.tagName !== 'ARTICLE'; box = box.parentElement)
            if (scrolls(box) && box.getBoundingClientRect().right <= innerWidth + 1) return true;
        return false;
    };
    const inside = [...document.querySelectorAll('article *')];
    const short = element => element.outerHTML.slice(0, 120);
    return {
        page: document.documentElement.scrollWidth, window: innerWidth,
        outside: inside.filter(e => e.checkVisibility() && e.getBoundingClientRect().right > innerWidth + 1 && !boxed(e)
            && !e.closest('mjx-assistive-mml')).map(short),
        mouseOnly: inside.filter(e => e.matches('pre, .pst-scrollable-table-container') && scrolls(e)
            && e.scrollWidth > e.clientWidth + 1 && e.tabIndex < 0).map(short),
    };
}"""


class Visit:
    """What was seen of one page on the server: loaded on a phone, then on a desk, in light and in dark."""

    def __init__(self, window: Window, address: str) -> None:
        window.asked.clear(), window.faults.clear()
        page = window.open(address, PHONE)
        self.phone = page.evaluate(SIZES)
        page.set_viewport_size(DESK)
        self.desk = page.evaluate(SIZES)
        whole = address.endswith("/index.html")
        choose(page, "light")
        self.light = violations(page, whole=whole)
        choose(page, "dark")  # the same elements in other colours, so only colours are looked at again
        self.dark = violations(page, {"runOnly": ["color-contrast", "link-in-text-block"]}, whole)
        choose(page, "light")
        self.asked, self.faults = window.asked[:], window.faults[:]
        window.faults.clear()


def choose(page, mode: str) -> None:
    """Light or dark, by the button that a reader presses; the choice is kept for the other pages."""
    button = page.locator(".theme-switch-button:visible").first
    for _ in range(3):
        if page.evaluate("document.documentElement.dataset.mode") == mode:
            break
        button.click()
    assert page.evaluate("document.documentElement.dataset.theme") == mode


def violations(page, rules: dict | None = None, whole: bool = True) -> list[str]:
    """What axe-core finds serious or critical, all folded parts being open; without the list of pages at the side unless ``whole``: it is long, and much the same on each page."""
    # What is just fading to its colour would be judged by the colour of that moment.
    page.add_style_tag(content="*, *::before, *::after { transition: none !important; animation: none !important; }")
    page.evaluate("document.querySelectorAll('article details').forEach(part => { part.open = true; })")
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE.read_text(encoding="utf-8"))
    # preload is off: it fetches style sheets again, for one rule about turned phones, and from the disk it cannot.
    where = {} if whole else {"exclude": [[".bd-sidebar-primary"]]}
    found = page.evaluate("([where, rules]) => axe.run(where.exclude ? where : document, {preload: false, resultTypes: ['violations'], ...rules})", [where, rules or {}])
    assert len(found["passes"]) >= (1 if rules else 20), "axe did not look at the page"
    return [
        f"{rule['id']} ({rule['impact']}): {node['html'][:160]}: {' '.join(node['failureSummary'].split())[:300]}"
        for rule in found["violations"] if rule["impact"] in ("serious", "critical") for node in rule["nodes"]
    ]


@pytest.fixture(scope="module")
def visit(window, served):
    return functools.cache(lambda name: Visit(window, f"{served}/{name}.html"))


@pytest.mark.parametrize("name", PAGES + OWN)
def test_on_a_server_a_page_asks_no_other_host_and_nothing_fails(visit, served, name):
    seen = visit(name)
    assert f"{served}/{name}.html" in seen.asked and any(".css" in url for url in seen.asked)
    assert all(url.startswith((f"{served}/", "data:", "blob:")) for url in seen.asked), seen.asked
    assert seen.faults == []


@pytest.mark.parametrize("name", PAGES + OWN)
def test_axe_finds_nothing_serious_in_light_and_in_dark(visit, name):
    assert visit(name).light == []
    assert visit(name).dark == []


@pytest.mark.parametrize("name", PAGES + OWN)
def test_no_page_is_wider_than_the_window(visit, name):
    for found, size in ((visit(name).phone, PHONE), (visit(name).desk, DESK)):
        assert found["window"] == size["width"]
        assert found["page"] <= found["window"] and found["outside"] == [], found
    assert visit(name).phone["mouseOnly"] == [], "a box scrolls, but not by keyboard"


# ---- requests and scripts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAGES + OWN)
def test_from_the_disk_a_page_asks_for_files_only_and_nothing_fails(window, address, name):
    window.asked.clear()
    window.open(address(name, "file"))
    assert address(name, "file") in window.asked and any(".css" in url for url in window.asked)
    assert all(url.startswith(("file://", "data:", "blob:")) for url in window.asked), window.asked
    window.clean()


def test_the_front_door_leads_to_the_first_page(window, served):
    window.page.goto(f"{served}/index.html")
    window.page.wait_for_url("**/book/index.html")
    window.clean()


def test_a_foreign_request_and_a_script_error_would_be_seen(window, address):
    page = window.open(address("book/index"))
    page.evaluate("""() => new Promise(done => {
        const image = new Image(); image.onerror = done; image.src = "https://example.invalid/x.png"; document.body.append(image);
    })""")
    with pytest.raises(AssertionError, match="example.invalid"):
        window.clean()
    with page.expect_console_message(lambda line: line.text == "planted"):
        page.evaluate("fetch('/no-such-file').then(() => { console.error('planted'); })")
    with page.context.expect_event("weberror"):
        page.evaluate("setTimeout(() => { throw new Error('thrown'); })")
    assert [word for word in ("404", "planted", "thrown") if not any(word in fault for fault in window.faults)] == []
    window.faults.clear()


# What a page would load, or tell a browser to get ready, without any script having run.
LOADS = {"script": ["src"], "link": ["href"], "img": ["src", "srcset"], "source": ["src", "srcset"], "iframe": ["src"],
         "video": ["src", "poster"], "audio": ["src"], "object": ["data"], "embed": ["src"], "form": ["action"], "use": ["href"]}


def test_no_page_and_no_style_sheet_names_a_resource_of_another_host(book):
    seen = 0
    for path in [book / f"{name}.html" for name in PAGES + OWN]:
        for tag in soup(path).find_all(list(LOADS)):
            for value in filter(None, map(tag.get, LOADS[tag.name])):
                seen += 1
                assert not re.match(r"(https?:)?//", value.strip()), f"{path.relative_to(book)}: {tag}"
    assert seen > 20 * len(PAGES)
    for path in (book / "_static").rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"url\(\s*['\"]?(https?:)?//|@import\s+['\"](https?:)?//", text), path.name


# ---- accessibility --------------------------------------------------------------------------------------------------


def test_axe_would_see_a_violation(window, address):
    page = window.open(address("book/index"))
    page.evaluate("""() => document.querySelector('article').insertAdjacentHTML('beforeend',
        '<button></button><p style="color: #777; background: #888">grey on grey</p>')""")
    found = violations(page)
    assert any(line.startswith("button-name (critical)") for line in found)
    assert any(line.startswith("color-contrast (serious)") for line in found)


def test_dark_mode_is_dark_and_stays(window, address):
    brightness = "document.documentElement.dataset.theme + ' ' + getComputedStyle(document.body).backgroundColor"
    page = window.open(address("book/index"))
    choose(page, "light")
    light = page.evaluate(brightness)
    choose(page, "dark")
    dark = page.evaluate(brightness)
    assert light == "light rgb(255, 255, 255)" and dark != light
    assert window.open(address(PAGES[1])).evaluate(brightness) == dark
    choose(page, "light")


# ---- sizes ----------------------------------------------------------------------------------------------------------

def test_on_a_phone_wide_code_tables_and_drawings_scroll_in_their_own_box(window, address):
    page = window.open(address("book/03_tensorrt/index"), PHONE)
    for what in ("pre", ".pst-scrollable-table-container:has(table)", ".drawing"):
        assert any(page.locator(f"article {what}").evaluate_all(
            "boxes => boxes.map(box => { box.scrollLeft = 50; return box.scrollLeft > 0; })")), what


# ---- links and structure --------------------------------------------------------------------------------------------


def ids(path: Path) -> set[str]:
    return {tag["id"] for tag in soup(path).find_all(id=True)} | {tag["name"] for tag in soup(path).find_all("a", attrs={"name": True})}


def dead_links(book: Path, path: Path) -> tuple[int, list[str]]:
    """How many internal links a page has, and those that lead nowhere."""
    count, dead = 0, []
    for tag in soup(path).find_all(["a", "img", "link", "script", "source"]):
        value = tag.get("href") or tag.get("src")
        if not value or value == "#" or urlsplit(value).scheme in ("http", "https", "mailto", "data"):
            continue
        count += 1
        parts = urlsplit(value)
        target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        if not target.is_file() or not target.is_relative_to(book):
            dead.append(f"{value}: no such file")
        elif parts.fragment and target.suffix == ".html" and unquote(parts.fragment) not in ids(target):
            dead.append(f"{value}: no such place in the page")
    return count, dead


@pytest.mark.parametrize("name", PAGES + OWN)
def test_links_lead_somewhere_and_the_page_has_its_parts(book, name):
    path = book / f"{name}.html"
    count, dead = dead_links(book, path)
    assert count > 20 and dead == []
    page = soup(path)
    assert page.html["lang"] == "en" and page.title.string.strip()
    headings = [h1 for h1 in page.find_all("h1") if not h1.find_parent(class_="onlyprint")]  # the theme's, for paper
    assert len(headings) == 1 and headings[0].get_text().strip()
    for image in page.find_all("img"):
        assert image.get("alt", "").strip() and not image["alt"].endswith((".png", ".svg", ".jpg")), image
    for drawing in page.select('article svg[role="img"]'):
        names = (drawing.get("aria-labelledby") or "").split()
        assert names and all(page.find(id=one).get_text().strip() for one in names), drawing.get("aria-labelledby")
    repeated = [tag["id"] for tag in page.select("article [id]")]
    assert len(repeated) == len(set(repeated)), sorted(one for one in set(repeated) if repeated.count(one) > 1)


def test_pages_have_titles_of_their_own(book):
    titles = [soup(book / f"{name}.html").title.string for name in PAGES]
    assert len(set(titles)) == len(titles)


def test_a_dead_link_would_be_seen(book, tmp_path):
    (tmp_path / "a.html").write_text('<a href="b.html">b</a><a href="#c">c</a><a href="#d">d</a><p id="d"></p>', encoding="utf-8")
    count, dead = dead_links(tmp_path, tmp_path / "a.html")
    assert count == 3 and [line.split(":")[0] for line in dead] == ["b.html", "#c"]


@pytest.mark.parametrize("how", ["file", "http"])
def test_search_finds_a_page_by_keyboard(window, address, how):
    page = window.open(address("book/05_measuring/index", how))
    page.keyboard.press("Control+k")
    page.keyboard.type("optimization profile")
    page.keyboard.press("Enter")
    page.wait_for_url("**/search.html?q=optimization*")
    found = page.locator("#search-results li a")
    found.first.wait_for()
    page.get_by_text(re.compile(r"Search finished|found \d+ page")).first.wait_for()
    pages = [urlsplit(link).path for link in found.evaluate_all("links => links.map(link => link.href)")]
    assert any(link.endswith("book/03_tensorrt/questions/02_how_it_works.html") for link in pages), pages
    found.first.click()
    page.wait_for_url(lambda url: "/search.html" not in url)
    assert page.locator("article h1").first.inner_text()
    if how == "file":  # no browser lets a page of the disk read another one: results come without their excerpts
        window.faults[:] = [fault for fault in window.faults if not re.search(r"file://|Failed to fetch$|net::ERR_FAILED$", fault)]
    window.clean()


# ---- quizzes and exercises ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chapter", QUIZZES)
def test_a_right_answer_is_said_to_be_right_and_is_kept(window, address, chapter):
    page = window.open(address(f"book/{chapter}/index"))
    first = yaml.safe_load((ROOT / f"quizzes/{chapter}.yml").read_text(encoding="utf-8"))["items"][0]
    item = page.locator(f'[data-quiz="{chapter}"] [data-item="{first["id"]}"]')
    if first["kind"] == "numeric":
        item.locator("input").fill(str(first["answer"]))
    else:
        for n, choice in enumerate(first["choices"]):
            if choice.get("correct"):
                item.locator("input").nth(n).check()
    assert item.locator(".icq-verdict").count() == 0
    item.get_by_role("button", name="Check").click()
    for _ in range(2):
        assert item.locator(".icq-result").inner_text().startswith("Right.")
        page.reload()
    window.clean()


def cells(path: Path, kind: str) -> list[dict]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def plain(text: str) -> str:
    return re.sub(r"\s+", "", re.sub(r"\x1b\[[\d;]*m", "", text))


def own_lines(source: str) -> list[str]:
    """The solution's lines of code that the learner's notebook does not have."""
    lines = [[line.strip() for cell in cells(ROOT / f"{tree}/{source}.ipynb", "code") for line in "".join(cell["source"]).split("\n")]
             for tree in ("solutions", "notebooks")]
    return [line for line in lines[0] if len(line) > 25 and line not in lines[1]]


@pytest.mark.parametrize("name", EXERCISES)
def test_hints_are_folded_and_open_by_keyboard(window, address, name):
    page = window.open(address(name))
    hints = page.locator("article details:has(> summary:text-matches('^Hint'))")
    assert hints.count() >= 3
    for hint in hints.all():
        inside = hint.locator(":scope > :not(summary)").first
        assert not inside.is_visible()
        hint.locator("summary").focus()
        page.keyboard.press("Tab")  # away and back by keyboard, so that the focus shows
        page.keyboard.press("Shift+Tab")
        assert page.evaluate("(s => s.matches(':focus-visible') && getComputedStyle(s).outlineStyle !== 'none')(document.activeElement)")
        page.keyboard.press("Enter")
        assert inside.is_visible() and len(hint.inner_text()) > 40


@pytest.mark.parametrize("name", EXERCISES)
def test_an_exercise_does_not_show_its_solution_and_the_solution_does(book, window, address, name):
    exercise, solution = book / f"{name}.html", book / f"solutions/{name.removeprefix('notebooks/')}.html"
    answer = own_lines(name.removeprefix("notebooks/"))
    assert len(answer) > 10
    shown = {path: plain(soup(path).article.get_text()) for path in (exercise, solution)}
    assert [line for line in answer if plain(line) in shown[exercise]] == []
    assert [line for line in answer if plain(line) not in shown[solution]] == []
    assert not soup(exercise).select("article .cell_output")
    pictures = 0
    for cell in cells(ROOT / f"solutions/{name.removeprefix('notebooks/')}.ipynb", "code"):
        for output in cell["outputs"]:
            pictures += "image/png" in output.get("data", {})
            for line in "".join(output.get("text", [])).split("\n"):
                assert plain(line) in shown[solution], line
    page = window.open(address(solution.relative_to(book).with_suffix("").as_posix()))
    sizes = page.locator("article .cell_output img").evaluate_all("all => all.map(image => image.complete && image.naturalWidth)")
    assert len(sizes) == pictures and all(size > 100 for size in sizes)
    assert pictures or not name.endswith(("ex01_first_engine", "ex01_first_session"))  # these two show digits


# ---- small books: launch buttons, warnings, what is read again -------------------------------------------------------


def launches(path: Path) -> list[str]:
    page = soup(path)
    links = [tag["href"] for tag in page.find_all("a", href=True) if re.search(r"colab|binder|jupyterhub|deepnote", tag["href"])]
    return links + [str(tag) for tag in page.select(".dropdown-launch-buttons, .btn-launch-thebe")]


class Small:
    """A copy of the book with two pages: a text and an exercise."""

    NOTEBOOK = "notebooks/04_onnxruntime/ex01_first_session"

    def __init__(self, root: Path, url: str) -> None:
        self.root = root
        shutil.copytree(ROOT / "course", root / "course", ignore=shutil.ignore_patterns("__pycache__"))
        for shared in ("node_modules", "quizzes", "inventories", "measurements", "models"):
            (root / shared).symlink_to(ROOT / shared)
        settings = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
        settings["repository"]["url"] = url
        self.write("_config.yml", yaml.safe_dump(settings))
        self.write("_toc.yml", yaml.safe_dump({"format": "jb-book", "root": "book/index", "chapters": [{"file": self.NOTEBOOK}]}))
        self.write("book/references.bib", (ROOT / "book/references.bib").read_text(encoding="utf-8"))
        self.write("book/index.md", "# A small book\n\nWords.\n")
        notebook = json.loads((ROOT / f"{self.NOTEBOOK}.ipynb").read_text(encoding="utf-8"))
        notebook["cells"] = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]  # no links to absent pages
        notebook["cells"].insert(0, {"cell_type": "markdown", "id": "title", "metadata": {}, "source": "# An exercise"})
        self.write(f"{self.NOTEBOOK}.ipynb", json.dumps(notebook))

    def write(self, name: str, text: str) -> None:
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_text(text, encoding="utf-8")

    def build(self, *options: str) -> tuple[int, str]:
        command = "from jupyter_book.cli.main import main; main()"
        done = subprocess.run([sys.executable, "-c", command, "build", ".", *options], cwd=self.root, env=build.os.environ | {
            "PYTHONWARNINGS": "ignore", "JUPYTER_PLATFORM_DIRS": "1", "NO_COLOR": "1"}, capture_output=True, text=True, timeout=120)
        return done.returncode, re.sub(r"\x1b\[[\d;]*m", "", done.stdout + done.stderr)

    def page(self, name: str) -> Path:
        return self.root / f"_build/html/{name}.html"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    small = Small(tmp_path_factory.mktemp("small"), "https://github.com/example/course")
    code, said = small.build("-W", "--keep-going")
    assert code == 0, said
    assert re.search(r"\b2 added, 0 changed, 0 removed", said), said
    return small


def test_without_an_address_no_page_has_a_launch_button(book):
    if yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["repository"]["url"]:
        pytest.skip("_config.yml has the repository's address")
    assert [name for name in PAGES if launches(book / f"{name}.html")] == []


def test_with_an_address_a_notebook_opens_in_colab(small):
    colab = f"https://colab.research.google.com/github/example/course/blob/main/{small.NOTEBOOK}.ipynb"
    assert colab in launches(small.page(small.NOTEBOOK))
    assert not [link for link in launches(small.page("book/index")) if "colab" in link]


def test_only_what_changed_is_read_again(small):
    notebook = small.page(small.NOTEBOOK).read_text(encoding="utf-8")
    small.write("book/index.md", "# A small book\n\nOther words.\n")
    code, said = small.build()
    assert code == 0 and re.search(r"\b0 added, 1 changed, 0 removed", said), said
    assert re.findall(r"reading sources\.\.\. .*?\[\s*\d+%\] ([\w/.]+)", said)[-1] == "book/index"
    assert "Other words." in small.page("book/index").read_text(encoding="utf-8")
    assert small.page(small.NOTEBOOK).read_text(encoding="utf-8") == notebook  # what repairs a page repairs it once


def test_a_warning_stops_the_strict_build(small):
    small.write("book/index.md", "# A small book\n\n[Nowhere](no_such_page.md)\n")
    code, said = small.build("-W", "--keep-going")
    assert code != 0 and "no_such_page" in said
