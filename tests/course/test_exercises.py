"""Every exercise: the reference and other right answers pass, the stub and every wrong answer fail for their own reason."""
import ast
import atexit
import functools
import importlib.util
import os
import re

import pytest

from course import check
from course.exercises import Exercise, gpu_problem, names


@functools.cache
def starter():
    """How the graders of this file start: as copies of one process, where the system can copy one."""
    if os.name != "posix":
        return check.fresh
    zygote = check.Zygote()
    atexit.register(zygote.close)
    return zygote.start


def grade(name, source, **more):
    return check.grade(name, source, start=starter(), **more)


def pytest_generate_tests(metafunc):
    if "path" in metafunc.fixturenames:
        name, kind = metafunc.cls.name, "right" if "right" in metafunc.function.__name__ else "wrong"
        paths = Exercise(name).answers(kind)
        metafunc.parametrize("path", paths, ids=[f"{name}:{path.stem}" for path in paths])


def promise(path):
    """What a wrong answer's docstring promises: (test that fails, words of its message)."""
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    found = dict(re.findall(r"^(fails|says): *(.+)$", doc, re.MULTILINE))
    assert found.keys() == {"fails", "says"}, f"{path}: its docstring needs the lines 'fails: <test>' and 'says: <words of the message>'"
    return found["fails"], found["says"]


class Answers:
    """What holds for every exercise; each has a class of its own, so that several workers share the work."""
    name: str

    def test_reference_passes(self):
        result = grade(self.name, Exercise(self.name).reference())
        assert result.passed, result

    def test_stub_fails_for_being_unfinished(self):
        result = grade(self.name, Exercise(self.name).stub())
        assert not result.problem and not result.passed, result
        assert any("is not written yet" in t.message for t in result.failures), result
        assert not any(re.search(r"ImportError|ModuleNotFoundError|SyntaxError", t.message) for t in result.tests), result

    def test_other_right_answers_pass(self, path):
        result = grade(self.name, path.read_text(encoding="utf-8"))
        assert result.passed, result

    def test_wrong_answers_are_rejected_for_their_own_reason(self, path):
        test, words = promise(path)
        if "_gpu_" in test and gpu_problem("tensorrt" if "tensorrt" in self.name else "onnxruntime"):
            pytest.skip(f"not run here: {test} needs a GPU")
        if "_torch_" in test and not all(map(importlib.util.find_spec, ("torch", "onnxscript"))):
            pytest.skip(f"not run here: {test} needs PyTorch (make test WITH_TORCH=1)")
        result = grade(self.name, path.read_text(encoding="utf-8"), only=test)  # one failed test is a failed grading; the others would only cost time
        assert not result.passed, f"{path} was accepted:\n{result}"
        messages = [t.message for t in result.failures if t.name.partition("[")[0] == test]
        assert messages, f"{test} should have failed:\n{result}"
        assert any(words in m for m in messages), f"no message of {test} says {words!r}:\n{result}"

    def test_there_are_enough_answers(self):
        exercise = Exercise(self.name)
        on_a_cpu = [p for p in exercise.answers("wrong") if not re.search("_gpu_|_torch_", promise(p)[0])]
        assert len(on_a_cpu) >= 6, f"{self.name}: {len(on_a_cpu)} wrong answers that a CPU can reject, and at least 6 are needed"
        assert len(exercise.answers("right")) >= 2
        assert len({promise(p) for p in exercise.answers("wrong")}) >= 6, "the wrong answers are wrong for the same reasons"


for _name in names():
    globals()[f"Test_{_name.replace('/', '_')}"] = type(f"Test_{_name.replace('/', '_')}", (Answers,), {"name": _name, "__module__": __name__})


@pytest.mark.gpu("pycuda")
@pytest.mark.parametrize("name", [n for n in names() if n.startswith("03_tensorrt")])
def test_whole_solution_runs_on_a_gpu_with_tensorrt(name):
    run_whole(name)


@pytest.mark.gpu("onnxruntime")
@pytest.mark.parametrize("name", [n for n in names() if n.startswith("04_onnxruntime")])
def test_whole_solution_runs_on_a_gpu_with_onnxruntime(name):
    run_whole(name)


def run_whole(name):
    from course import notebooks
    notebook = notebooks.solution_sources(Exercise(name))
    notebooks.execute(notebook, Exercise(name).source.parent, skip_gpu=False)
    assert all(c.outputs for c in notebook.cells if "gpu" in c.metadata.get("tags", ()))
