"""Tests run on another machine, recorded as a run: counts, names of failures, what was printed and reported."""
import json
import subprocess
import sys

import jsonschema
import pytest

from course import ROOT

TESTS = """
import pytest

def test_good(record_property):
    print("largest difference 1e-6")
    record_property("raw_us", 85.7)

def test_bad():
    assert 1 == 2, "one is not two"

def test_elsewhere():
    pytest.skip("needs another machine")
"""


def run(tmp_path, *more):
    command = [sys.executable, "-m", "course.testrun", "03-some", "--system", "box", "--out", str(tmp_path / "runs"), *more]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    return done, [json.loads(path.read_text(encoding="utf-8")) for path in (tmp_path / "runs").glob("*.json")]


def test_a_run_holds_what_came_out(tmp_path):
    (tmp_path / "test_some.py").write_text(TESTS, encoding="utf-8")
    done, [found] = run(tmp_path, str(tmp_path / "test_some.py"))
    assert done.returncode == 1 and found["status"] == "ok"
    assert {key: found["results"][key] for key in ("passed", "failed", "skipped", "raw_us")} == {"passed": 1, "failed": 1, "skipped": 1, "raw_us": 85.7}
    assert [name.rpartition("::")[2] for name in found["results"]["failures"]] == ["test_bad"]
    log = "\n".join(found["outputs"]["log"])
    assert "largest difference 1e-6" in log and "one is not two" in log and "needs another machine" in log
    schema = json.loads((ROOT / "course/run_schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(found, {**schema["$defs"]["run"], "$defs": schema["$defs"]})


def test_tests_that_pytest_cannot_read_make_an_invalid_run(tmp_path):
    (tmp_path / "test_some.py").write_text("this is no Python", encoding="utf-8")
    _, [found] = run(tmp_path, str(tmp_path / "test_some.py"))
    assert found["status"] == "INVALID" and found["reasons"]


@pytest.mark.parametrize("name", ["tests/03_tensorrt/test_nothing.py"])
def test_a_file_that_is_not_there_is_said(tmp_path, name):
    done, found = run(tmp_path, name)
    assert done.returncode == 2 and "no such tests" in done.stderr and not found
