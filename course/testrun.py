"""python -m course.testrun NAME --system ID [--out FOLDER] [--what TEXT] TESTS… [-- PYTEST OPTIONS…]

Runs pytest on a machine that CI does not have and leaves what came out as a run: counts, what the tests printed, and what they reported by
``record_property``. The file's status is ok where pytest came to its end, also with failures: a failure is a result, and is counted and named.
"""

from __future__ import annotations

import argparse
import datetime
import shlex
import sys
from pathlib import Path

import pytest

from course import ROOT
from course.bench import core

LONGEST = 12_000  # characters kept of what one test printed


class Listener:
    """A pytest plugin that keeps each test's outcome, what it printed and what it reported."""

    def __init__(self) -> None:
        self.outcomes: dict[str, str] = {}
        self.log: list[str] = []
        self.properties: dict[str, object] = {}

    def pytest_runtest_logreport(self, report) -> None:
        last = report.outcome if report.when == "call" or report.outcome != "passed" else None
        if last and self.outcomes.get(report.nodeid) != "failed":
            self.outcomes[report.nodeid] = last
        if report.when == "teardown":
            printed = report.capstdout.strip()[:LONGEST]
            self.log += [f"{self.outcomes[report.nodeid].upper()} {report.nodeid}", *printed.splitlines()]
            self.properties.update(report.user_properties)
        if report.outcome == "failed":
            self.log += str(report.longrepr).splitlines()[-25:]
        if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
            self.log.append(report.longrepr[2])


def main(arguments: list[str] | None = None) -> int:
    given_arguments = sys.argv[1:] if arguments is None else arguments
    cut = given_arguments.index("--") if "--" in given_arguments else len(given_arguments)
    parser = argparse.ArgumentParser(prog="python -m course.testrun", description="Runs tests and records what came out.")
    parser.add_argument("name", help="what the run is called, e.g. 03-ex03-grader")
    parser.add_argument("--system", required=True, help="the id that `python -m course.system ID` gave this machine and stack")
    parser.add_argument("--out", type=Path, default=ROOT / "measurements/runs", help="where the run goes (default: measurements/runs)")
    parser.add_argument("--what", help="one line for the reader")
    parser.add_argument("tests", nargs="+", help="files of tests, from the repository's root")
    given, options = parser.parse_args(given_arguments[:cut]), given_arguments[cut + 1 :]
    missing = [test for test in given.tests if not (ROOT / test.split("::")[0]).exists()]
    if missing:
        parser.error(f"no such tests: {', '.join(missing)}; give files from the repository's root, e.g. tests/03_tensorrt/test_claims_gpu.py")
    began, listener = datetime.datetime.now(datetime.timezone.utc), Listener()
    code = pytest.main(["-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), *options, *(str(ROOT / test) for test in given.tests)], plugins=[listener])
    counts = {outcome: sum(found == outcome for found in listener.outcomes.values()) for outcome in ("passed", "failed", "skipped")}
    reasons = [] if code in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) and listener.outcomes else [f"pytest ended with {pytest.ExitCode(code).name}"]
    run = {
        "id": f"{began:%Y-%m-%d}_{given.system}_{given.name}", "date": f"{began:%Y-%m-%dT%H:%M:%SZ}", "system": given.system,
        "command": shlex.join(["python", "-m", "pytest", "-q", *options, *given.tests]), "commit": core.commit(),
        "what": given.what or f"Tests on this machine: {', '.join(given.tests)}",
        "status": "INVALID" if reasons else "ok", "reasons": reasons,
        "configuration": {"tests": " ".join(given.tests), "recorded_by": "course.testrun"},
        "results": {**counts, "failures": [name for name, outcome in listener.outcomes.items() if outcome == "failed"],
                    "seconds": round((datetime.datetime.now(datetime.timezone.utc) - began).total_seconds(), 1), **listener.properties},
        "accuracy": {}, "samples": {}, "outputs": {"log": [line.replace(str(ROOT) + "/", "") for line in listener.log]},
    }
    print("written:", core.write(run, given.out).name, counts)
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
