"""Runs a grader against a submission: the reference by default, any file with --submission FILE."""
import os
from pathlib import Path

import pytest

from course.exercises import Exercise, gpu_problem
from course.grading import Submission

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before anything loads onnxruntime


def pytest_addoption(parser):
    parser.addoption("--submission", help="the Python file to grade (default: the reference solution)")


def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: needs an NVIDIA GPU, tensorrt or onnxruntime-gpu, and is skipped without")


def pytest_runtest_setup(item):
    mark = item.get_closest_marker("gpu")
    if mark:
        problem = gpu_problem(*mark.args)
        if problem:
            pytest.skip(f"not run here: {problem}")


@pytest.fixture(scope="module")
def submission(request, tmp_path_factory):
    """The submission under test, in its own process. The grader's module says EXERCISE and, if it likes, LIMITS and PROBE."""
    module = request.module
    exercise = Exercise(module.EXERCISE)
    path = request.config.getoption("--submission")
    if path is None:
        path = tmp_path_factory.mktemp("reference") / "submission.py"
        path.write_text(exercise.reference(), encoding="utf-8")
    probe = getattr(module, "PROBE", None)
    run = Submission(path, probe=probe and Path(module.__file__).parent / probe, **getattr(module, "LIMITS", {}))
    yield run
    run.close()

