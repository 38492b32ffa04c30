"""Tables of recorded runs: what they choose, and that each number is the file's."""
import json
from xml.etree import ElementTree

import pytest

from course import ROOT, figures, plots, runs


def test_chooses_the_newest_valid_run_of_the_named_systems(tmp_path):
    folder = tmp_path / "measurements/runs"
    folder.mkdir(parents=True)

    def put(day, system, batch, status="ok", way="trt", precision="fp16"):
        run = {"id": f"{day}_{system}_gpu.m-{precision}-b{batch}-{way}", "status": status, "system": system,
               "configuration": {"way": way, "batch": batch}}
        (folder / f"{run['id']}.json").write_text(json.dumps(run))
        return run["id"]

    old, new = put("2026-01-01", "a", 1), put("2026-01-02", "a", 1)
    put("2026-01-03", "a", 1, status="INVALID")
    put("2026-01-04", "b", 1)
    put("2026-01-04", "a", 1, precision="fp32")
    eight = put("2026-01-01", "a", 8)
    found = figures.newest(tmp_path, "m", "fp16", ["a"])
    assert {key: run["id"] for key, run in found.items()} == {("trt", 1): new, ("trt", 8): eight} and old != new


def test_every_way_that_was_recorded_has_a_title():
    seen = {json.loads(path.read_text())["configuration"]["way"] for path in (ROOT / "measurements/runs").glob("*_gpu.*.json")}
    assert seen and seen <= set(figures.TITLES)


def test_cost_is_the_price_of_the_hours_that_a_million_takes():
    # 32 images in 8 ms: 4,000 images a second, 250 s for a million, at 36 dollars an hour 2.50 dollars
    run = {"results": {"back_to_back": {"p50": 8.0}}, "configuration": {"batch": 32}}
    assert figures.cost_per_million(run, 36.0) == pytest.approx(2.5)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "cheap", "", None])
def test_a_price_is_a_positive_number(text):
    with pytest.raises(ValueError):
        figures._price(text)
    assert figures._price("3.50") == 3.5


def test_the_least_time_is_the_longer_of_moving_and_computing():
    one = figures.Limits(bandwidth=1e12, rate=1e14, runs=())
    assert one.least_ms({"bytes": 2e9, "operations": 1e11}) == pytest.approx(2.0)  # 2 GB at 1 TB/s; the operations take 1 ms
    assert one.least_ms({"bytes": 2e6, "operations": 1e11}) == pytest.approx(1.0)


def test_limits_are_those_of_the_machine_and_the_type():
    system = "h200x2-ort131"
    half, single = figures.limits(ROOT, system, "fp16"), figures.limits(ROOT, system, "fp32")
    assert half.bandwidth == single.bandwidth and half.rate > 5 * single.rate
    assert all(run["system"] == system and run["status"] == "ok" for run in half.runs)
    with pytest.raises(runs.RunError, match=r"no valid run micro\.copy on nowhere"):
        figures.limits(ROOT, "nowhere", "fp16")


def test_no_run_is_ahead_of_the_speed_of_light():
    seen = 0
    for model in ("mlp", "resnet50", "bert"):
        for (_, batch), run in figures.newest(ROOT, model, "fp16", ["h200x2-trt86", "h200x2-ort131"]).items():
            share = figures.limits(ROOT, "h200x2-ort131", "fp16").least_ms(figures.counts_of(ROOT, model, "fp16", batch)) / run["results"]["back_to_back"]["p50"]
            assert 0 < share < 1, (run["id"], share)
            seen += 1
    assert seen > 40


def test_counts_of_what_was_not_counted_are_refused():
    with pytest.raises(runs.RunError, match="no counts of bert in int8"):
        figures.counts_of(ROOT, "bert", "int8", 8)
    assert figures.counts_of(ROOT, "bert", "tf32", 8)["bytes"] == figures.counts_of(ROOT, "bert", "fp32", 8)["bytes"]


def test_a_chart_is_the_same_each_time_and_takes_its_colours_from_the_page():
    lines = [plots.Line("a & b", [1, 8], [2, 30]), plots.Line("limit", [1, 8], [9, 90], limit=True)]
    drawn = plots.chart(lines, "Batch <1>", "batch", "rate", ticks=[1, 8])
    assert drawn == plots.chart(lines, "Batch <1>", "batch", "rate", ticks=[1, 8])
    tree = ElementTree.fromstring(drawn)
    assert tree.tag == "svg" and tree.get("role") == "img" and tree.find("title").text == "Batch <1>"
    words = [text.text for text in tree.iter("text")]
    assert {"a & b", "limit", "batch", "rate", "1", "8"} <= set(words)
    assert "currentColor" in drawn and "var(--icr-line-1)" in drawn and "#0" not in drawn and "<style" not in drawn and "http" not in drawn
    ids = [part.get("id") for part in tree.iter() if part.get("id")]
    other = plots.chart(lines, "Another", "batch", "rate")
    assert len(ids) == len(set(ids)) and not any(f'id="{own}"' in other for own in ids)


@pytest.mark.parametrize("lines", [[], [plots.Line("a", [], [])], [plots.Line("a", [1, 2], [1])], [plots.Line(str(n), [1], [1]) for n in range(8)]])
def test_a_chart_without_sound_lines_is_refused(lines):
    with pytest.raises(ValueError, match="a chart takes 1 to 7 lines"):
        plots.chart(lines, "t", "x", "y")
