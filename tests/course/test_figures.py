"""Tables of recorded runs: what they choose, and that each number is the file's."""
import json

import pytest

from course import ROOT, figures


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
