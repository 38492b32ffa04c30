"""The roofline that a reader moves: its data, its arithmetic in the browser against exact fractions, its use by keyboard."""
import contextlib
import json
import os
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import yaml

from course import ROOT, roofline

DATA = ROOT / "book/01_foundations/roofline.yml"

# machine, type, m, n, k, launch in microseconds: both sides of the ridge, launch-bound, odd sizes, every machine
POINTS = [
    ("a100", "fp16", 1, 4096, 4096, 0),
    ("a100", "tf32", 300, 1000, 2048, 0),
    ("h100", "fp16", 64, 4096, 4096, 0),
    ("h100", "fp16", 1024, 4096, 4096, 2.5),
    ("h100", "fp8", 8192, 8192, 8192, 0),
    ("h200", "fp32", 32, 128, 784, 4),
    ("h200", "int8", 7, 333, 5000, 0),
    ("l4", "int8", 2048, 4096, 4096, 0.5),
    ("l4", "fp32", 1, 16, 16, 20),
    ("orin", "int8", 128, 1024, 1024, 0),
    ("orin", "fp16", 500, 4096, 4096, 0),
]


def exactly(machine: str, kind: str, m: int, n: int, k: int, launch: float) -> dict:
    """What the page has to say, in fractions, from the file itself and from nothing of course.roofline."""
    data = yaml.safe_load(DATA.read_text(encoding="utf-8"))
    [entry] = [entry for entry in data["hardware"] if entry["id"] == machine]
    size = {"fp32": 4, "tf32": 4, "fp16": 2, "fp8": 1, "int8": 1}[kind]
    bandwidth = Fraction(str(entry["bandwidth"])) * 10**9
    rate = Fraction(str(entry["rates"][kind])) * 10**12
    read_a, read_b, write_c = m * k * size, k * n * size, m * n * size
    operations, moved = m * n * k + m * n * k, read_a + read_b + write_c
    memory, arithmetic = moved / bandwidth, operations / rate
    extra = Fraction(str(launch)) / 10**6
    work = memory if memory >= arithmetic else arithmetic
    return {
        "operations": operations, "bytes": moved, "memory": memory, "arithmetic": arithmetic, "time": work + extra,
        "intensity": Fraction(operations, moved), "ridge": rate / bandwidth, "share": arithmetic / (work + extra),
        "bound": "launch-bound" if extra > work else "memory-bound" if memory >= arithmetic else "compute-bound",
    }


# ---- the data -------------------------------------------------------------------------------------------------------


def test_the_file_is_whole_and_every_source_is_in_the_bibliography():
    data = roofline.load(DATA)
    keys = set(re.findall(r"^@\w+\{([^,]+),", (ROOT / "book/references.bib").read_text(encoding="utf-8"), re.MULTILINE))
    for machine in data["hardware"]:
        assert machine["source"] in keys, machine["source"]
        assert set(machine.get("printed_with_sparsity", ())) | set(machine.get("derived", {})) <= set(machine["rates"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.pop("layers"), "layers: is missing"),
        (lambda d: d["hardware"][1].pop("bandwidth"), r"hardware\[1\]: needs id"),
        (lambda d: d["hardware"][0]["rates"].update(fp16=-1), r"hardware\[0\]: rates.fp16 is no type of this file, or no positive"),
        (lambda d: d["hardware"][0]["rates"].update(fp4=1), r"rates.fp4 is no type"),
        (lambda d: d["hardware"][1].update(id="a100"), "an id stands there twice"),
        (lambda d: d["layers"][2].update(m=1.5), r"layers\[2\]: needs a name and whole numbers"),
    ],
)
def test_a_bad_file_is_refused_with_the_place(tmp_path, change, says):
    data = yaml.safe_load(DATA.read_text(encoding="utf-8"))
    change(data)
    path = tmp_path / "bad.yml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    with pytest.raises(roofline.RooflineError, match=says):
        roofline.load(path)


@pytest.mark.parametrize("point", POINTS)
def test_python_computes_the_same(point):
    machine, kind, m, n, k, _ = point
    data = roofline.load(DATA)
    [entry] = [entry for entry in data["hardware"] if entry["id"] == machine]
    got = roofline.predict(entry["bandwidth"] * 1e9, entry["rates"][kind] * 1e12, data["types"][kind]["bytes"], m, n, k)
    want = exactly(machine, kind, m, n, k, 0)
    assert (got.operations, got.bytes, got.bound) == (want["operations"], want["bytes"], want["bound"])
    assert got.time == pytest.approx(float(want["time"]), rel=1e-12)
    assert got.intensity == pytest.approx(float(want["intensity"]), rel=1e-12)


@pytest.mark.parametrize(("value", "text"), [
    (6.988e-6, "6.99 µs"), (1.2345e-3, "1.23 ms"), (999.9e-9, "1 µs"), (42e-12, "0.042 ns"), (2.0, "2 s"), (0.9996, "1 s"),
])
def test_times_are_readable(value, text):
    assert roofline.seconds(value) == text


# ---- Sphinx ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("roofline")
    (folder / "data.yml").write_bytes(DATA.read_bytes())
    (folder / "broken.yml").write_text("types: {}\n")
    pages = {
        "index": "# Index\n\n```{toctree}\npage\nplain\nbad\n```\n",
        "page": "# Page\n\n```{roofline} data.yml\n```\n\n```{roofline} data.yml\n```\n",
        "plain": "# Plain\n\nNothing here.\n",
        "bad": "# Bad\n\nBefore.\n\n```{roofline} broken.yml\n```\n\nAfter.\n",
    }
    for name, text in pages.items():
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
    (folder / "conf.py").write_text(
        "extensions = ['myst_parser', 'course.roofline']\nproject = 'Sample'\nexclude_patterns = ['_build']\nhtml_theme = 'basic'\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-b", "html", "-j", "2", str(folder), str(folder / "_build")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"},
        cwd=folder, check=False, capture_output=True, text=True, timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return folder / "_build", done.stderr


def test_only_pages_with_a_roofline_load_its_files(site):
    for name, expected in (("page", 1), ("plain", 0), ("bad", 0)):
        text = (site[0] / f"{name}.html").read_text(encoding="utf-8")
        for asset in roofline.ASSETS:
            assert text.count(f"_static/{asset}") == expected
    ids = re.findall(r'\bid="([^"]+)"', (site[0] / "page.html").read_text(encoding="utf-8"))
    assert len(ids) == len(set(ids))


def test_a_broken_file_warns_and_spoils_nothing_else(site):
    [warning] = [line for line in site[1].splitlines() if "WARNING" in line]
    assert re.search(r"bad\.md:5: WARNING: \{roofline\}: broken\.yml: types: is missing or empty", warning)
    text = (site[0] / "bad.html").read_text(encoding="utf-8")
    assert "[no roofline: broken.yml" in text and "Before." in text and "After." in text


# ---- the browser ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(browser, path: Path, **options):
    context = browser.new_context(**{"viewport": {"width": 1000, "height": 900}, **options})
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
    with opened(browser, site[0] / "page.html") as page:
        yield page


def widget(page):
    return page.locator(".icr").first


def put(page, machine, kind, m, n, k, launch):
    box = widget(page)
    box.get_by_label("Machine", exact=True).select_option(machine)
    box.get_by_label("Type of all three matrices", exact=True).select_option(kind)
    for key, value in (("m", m), ("n", n), ("k", k), ("launch", launch)):
        box.locator(f'[data-key="{key}"]').fill(str(value))


def fact(page, name):
    return widget(page).locator(f'[data-fact="{name}"]').inner_text().replace("\u00a0", " ")


@pytest.mark.parametrize("point", POINTS)
def test_the_model_in_the_browser_equals_exact_fractions(page, point):
    machine, kind, m, n, k, launch = point
    got = page.evaluate(
        """([machine, kind, m, n, k, launch]) => {
            const data = JSON.parse(document.querySelector(".icr-data").textContent);
            const entry = data.hardware.find(h => h.id === machine);
            return courseRoofline.predict(entry.bandwidth * 1e9, entry.rates[kind] * 1e12, data.types[kind].bytes, m, n, k, launch * 1e-6);
        }""",
        list(point),
    )
    want = exactly(*point)
    assert got.keys() == want.keys() and got.pop("bound") == want.pop("bound")
    for name, value in want.items():
        assert got[name] == pytest.approx(float(value), rel=1e-12), name


@pytest.mark.parametrize("point", POINTS)
def test_what_the_controls_show_is_that(page, point):
    put(page, *point)
    want = exactly(*point)
    assert want["bound"] in widget(page).locator(".icr-verdict").inner_text()
    assert fact(page, "time") == roofline.seconds(float(want["time"]))
    assert fact(page, "memory") == roofline.seconds(float(want["memory"]))
    for name in ("intensity", "ridge"):
        assert float(fact(page, name).split()[0].replace(",", "")) == pytest.approx(float(want[name]), rel=5e-3)
    current = widget(page).locator('.icr-all tr[aria-current="true"]').inner_text()
    assert want["bound"] in current


def test_python_and_the_script_write_times_alike(page):
    values = [1.5e-10, 3.333e-8, 9.996e-7, 5e-6, 1.2e-4, 0.9996e-3, 0.25, 12.5]
    got = page.evaluate("values => values.map(courseRoofline.seconds)", values)
    assert [text.replace("\u00a0", " ") for text in got] == [roofline.seconds(value) for value in values]


def test_keys_move_it_and_the_field_follows(page):
    slider = widget(page).get_by_label("M: rows, that is batch or tokens, in powers of two")
    slider.focus()
    before = fact(page, "operations")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert widget(page).locator('[data-key="m"]').input_value() == "8"
    assert slider.get_attribute("aria-valuetext") == "8" and fact(page, "operations") != before
    assert page.locator(".icr").nth(1).locator('[data-key="m"]').input_value() == "1"  # the other one stays


def test_a_type_the_machine_lacks_cannot_be_chosen_and_comes_back(page):
    put(page, "h100", "fp8", 64, 4096, 4096, 0)
    assert "no such type" in widget(page).locator(".icr-all").inner_text()
    widget(page).get_by_label("Machine", exact=True).select_option("a100")
    kind = widget(page).get_by_label("Type of all three matrices", exact=True)
    assert kind.input_value() == "fp32" and kind.locator('option[value="fp8"]').is_disabled()
    widget(page).get_by_label("Machine", exact=True).select_option("l4")
    assert kind.input_value() == "fp8"


def test_nonsense_is_marked_and_the_last_good_value_stays(page):
    put(page, "h100", "fp16", 64, 4096, 4096, 0)
    good = fact(page, "time")
    field = widget(page).locator('[data-key="m"]')
    for wrong in ("0", "-3", "1.5", "", "99999999"):
        field.fill(wrong)
        assert field.get_attribute("aria-invalid") == "true" and fact(page, "time") == good
    field.fill("128")
    assert field.get_attribute("aria-invalid") == "false" and fact(page, "bytes") != ""


def test_a_start_sets_the_sizes_and_moving_away_says_so(page):
    start = widget(page).get_by_label("Start from")
    start.select_option(label="Square product 8192")
    assert [widget(page).locator(f'[data-key="{key}"]').input_value() for key in "mnk"] == ["8192"] * 3
    assert "compute-bound" in widget(page).locator(".icr-verdict").inner_text()
    widget(page).locator('[data-key="k"]').fill("4096")
    assert start.input_value() == ""


@pytest.mark.parametrize("width", [390, 1000])
def test_it_fits(browser, site, width):
    with opened(browser, site[0] / "page.html", viewport={"width": width, "height": 844}) as page:
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        chart = widget(page).locator(".icr-chart svg").bounding_box()
        assert 200 < chart["width"] <= width
        text = widget(page).locator(".icr-chart text").first
        assert text.evaluate("node => node.getBoundingClientRect().height") >= 11  # words keep their size on a phone
        outside = page.evaluate("""() => {
            const box = document.querySelector(".icr-chart svg").getBoundingClientRect();
            return [...document.querySelectorAll(".icr-chart:first-of-type text")].filter(t => {
                const r = t.getBoundingClientRect();
                const b = t.ownerSVGElement.getBoundingClientRect();
                return r.left < b.left - 1 || r.right > b.right + 1;
            }).map(t => t.textContent);
        }""")
        assert outside == []


def test_every_control_has_a_name(page):
    names = widget(page).locator("select, input").evaluate_all(
        "nodes => nodes.map(n => n.getAttribute('aria-label') || [...n.labels].map(l => l.textContent).join(' '))"
    )
    assert len(names) == 11 and all(names) and len(set(names)) == 11
    assert "operations a byte" in widget(page).locator(".icr-chart svg").get_attribute("aria-label")


def test_without_a_script_the_table_says_it(browser, site):
    with opened(browser, site[0] / "page.html", java_script_enabled=False) as page:
        assert not widget(page).locator(".icr-live").is_visible()
        text = widget(page).inner_text()
        data = json.loads(json.dumps(yaml.safe_load(DATA.read_text(encoding="utf-8"))))
        for machine in data["hardware"]:
            assert machine["name"] in text
        want = exactly("h100", "fp16", 64, 4096, 4096, 0)
        row = widget(page).locator("tr", has_text="H100").last.inner_text()
        assert f"{want['bound']}, at least {roofline.seconds(float(want['time']))}" in row
