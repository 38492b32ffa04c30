"""No submission, however hostile, passes, escapes its limits, or harms the grader, the notebook or its kernel."""
import collections
import json
import os
import subprocess
import sys
import textwrap
import time

import nbformat
import numpy as np
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from course import ROOT, grading
from course.check import grade, read_answer
from course.codec import Opaque, decode, encode
from course.exercises import Exercise
from course.grading import Raised, Submission, Wrong

EX = "04_onnxruntime/ex01_first_session"


def submission(tmp_path, text, **limits):
    path = tmp_path / "answer.py"
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return Submission(path, **{"call_seconds": 5.0, "memory_gib": 0.5} | limits)


def why(run, name="f", *args):
    with pytest.raises(Wrong) as caught:
        run.call(name, *args)
    run.close()
    return str(caught.value)


# ---- hostile submissions, through the whole grader --------------------------------------------------------------------------

HOSTILE = {
    "prints passed": ("print('25 passed in 0.1s'); print('{\"finished\": true, \"tests\": []}')", "defines no function"),
    "exits with 0": ("import os; os._exit(0)", "ended the Python interpreter"),
    "calls sys.exit": ("import sys; sys.exit(0)", "sys.exit"),
    "crashes": ("import ctypes; ctypes.string_at(0)", "crashed the Python interpreter (SIGSEGV)"),
    "is no Python": ("Dear grader, please pass me.", "not valid Python"),
    "is binary": ("\x00\x01\x02", "not"),
    "is empty": ("", "defines no function"),
    "lives in IPython": ("%pip install answers", "start with % or !"),
    "patches pytest": ("import pytest\npytest.fail = pytest.raises = lambda *a, **k: None\nimport _pytest.runner\n"
                       "_pytest.runner.call_and_report = lambda *a, **k: None", "defines no function"),
    "patches NumPy": ("import numpy as np\nnp.testing.assert_allclose = np.allclose = np.array_equal = lambda *a, **k: True\n"
                      "np.abs = lambda x: np.zeros(())\ndef open_session(*a, **k): return object()\n"
                      "def predict(*a, **k): return np.zeros(1), np.zeros((1, 1))\n"
                      "def describe(s): return {}\ndef provider_used(s): return 'CPUExecutionProvider'", ""),
    "compares equal to all": ("class Yes:\n    def __eq__(self, other): return True\n    def __getattr__(self, name): return Yes()\n"
                              "    def __call__(self, *a, **k): return Yes()\n"
                              "open_session = describe = predict = provider_used = Yes()", ""),
    "pretends to be an array": ("import numpy as np\nclass A:\n    dtype = np.dtype('f4'); shape = (1, 1); ndim = 2\n    __class__ = np.ndarray\n"
                                "    def __getattr__(self, name): return lambda *a, **k: A()\n"
                                "open_session = describe = predict = provider_used = lambda *a: A()", ""),
    "imports the reference": ("from course.exercises import Exercise\nexec(Exercise('04_onnxruntime/ex01_first_session').reference())",
                              "an answer cannot import course"),
    "kills its parent": ("import os, signal\nos.kill(os.getppid(), signal.SIGKILL)", "ended without a verdict"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_submission_fails_with_the_reason(name):
    text, reason = HOSTILE[name]
    result = grade(EX, text)
    assert not result.passed
    assert reason in str(result)


def test_endless_loop_is_stopped_and_graded(monkeypatch):
    reference = Exercise(EX).reference()
    text = reference + "\n\ndef predict(session, images):\n    while True:\n        pass\n"
    began = time.monotonic()
    result = grade(EX, text)
    assert not result.passed and "did not return within" in str(result)
    assert time.monotonic() - began < 90


def test_a_message_that_never_ends_counts_as_a_hang(tmp_path):
    run = submission(tmp_path, """
        import os, struct, time
        def f():
            for fd in range(3, 60):
                try:
                    os.write(fd, struct.pack("!i", 1000) + b"never all of it")
                except OSError:
                    pass
            time.sleep(30)
    """, call_seconds=1.0)
    began = time.monotonic()
    assert "did not return" in why(run) or "no answer" in why(run)
    assert time.monotonic() - began < 10


def test_a_huge_answer_is_refused_before_it_is_read():
    began = time.monotonic()
    result = grade(EX, "x = [" + "1," * 1_000_000 + "]")
    assert "2 MB of text" in result.problem and time.monotonic() - began < 2


def test_whole_grading_has_a_limit():
    result = grade(EX, "import time\ntime.sleep(60)", seconds=3)
    assert not result.passed and "longer than 3 s" in result.problem


# ---- one process, its limits ------------------------------------------------------------------------------------------------

def test_memory_limit_counts_children_too(tmp_path):
    eats = "def f():\n    kept = []\n    while True:\n        kept.append(bytearray(b'x') * 50_000_000)\n"
    assert "more than 0.5 GiB" in why(submission(tmp_path, eats))
    forks = "import os, time\ndef f():\n    if os.fork() == 0:\n        kept = bytearray(b'x') * 900_000_000\n    time.sleep(30)\n"
    assert "more than 0.5 GiB" in why(submission(tmp_path, forks, call_seconds=20.0))


def test_time_limit_and_no_third_try(tmp_path):
    run = submission(tmp_path, "import time\ndef f():\n    time.sleep(60)\n", call_seconds=0.5)
    for _ in range(grading.HANGS_ALLOWED):
        with pytest.raises(Wrong, match="did not return within 0.5 s"):
            run.call("f")
    with pytest.raises(Wrong, match="Not tried"):
        run.call("f")


def test_children_do_not_outlive_it(tmp_path):
    run = submission(tmp_path, """
        import subprocess, sys
        def f():
            return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], start_new_session=True).pid
    """)
    pid = run.call("f")
    assert psutil.pid_exists(pid)
    run.close()
    deadline = time.monotonic() + 5
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "a process that the submission started lives on"
        time.sleep(0.05)


def test_flood_of_output_is_cut(tmp_path):
    run = submission(tmp_path, "import sys\ndef f():\n    for _ in range(3000):\n        sys.stdout.write('x' * 10_000)\n    return 7\n")
    assert run.call("f") == 7
    run.close()
    assert len(run.printed) <= grading.OUTPUT_KEPT


def test_its_environment_is_not_the_notebooks(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_ADDOPTS", "--collect-only")
    monkeypatch.setenv("PYTHONSTARTUP", "evil.py")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "numpy.py").write_text("raise SystemExit('a false NumPy')")
    assert grade(EX, Exercise(EX).reference()).passed


def test_it_cannot_see_the_grader(tmp_path):
    run = submission(tmp_path, "import sys\ndef f():\n    return sorted(m for m in sys.modules if m.startswith(('pytest', '_pytest', 'test_')))\n")
    assert run.call("f") == []
    run.close()


def test_it_starts_in_an_empty_folder(tmp_path):
    run = submission(tmp_path, "import os\ndef f():\n    open('left.txt', 'w').close()\n    return os.getcwd(), os.listdir()\n")
    folder, files = run.call("f")
    assert files == ["left.txt"]
    run.close()
    assert not os.path.exists(folder)


def test_errors_name_the_line_and_help(tmp_path):
    assert "line 2: return 1 / 0" in why(submission(tmp_path, "def f():\n    return 1 / 0\n"))
    assert "graded cells" in why(submission(tmp_path, "def f():\n    return np.zeros(1)\n"))
    assert "installed" in why(submission(tmp_path, "import no_such_package\n"))
    assert "defines no function named f" in why(submission(tmp_path, "def g():\n    return 1\n"))
    assert "f is not written yet" in why(submission(tmp_path, "def f():\n    raise NotImplementedError()\n"))
    run = submission(tmp_path, "def f():\n    raise KeyError('k')\n")
    with pytest.raises(Raised) as caught:
        run.attempt("f")
    run.close()
    assert caught.value.kind == "KeyError" and "LookupError" in caught.value.bases


# ---- what crosses ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("value", [None, True, 3, 2**80, -2.5, float("inf"), "é", b"\x00\xff", [1, [2]], (1, "a"), {"a": (1,), 2: None},
                                   np.arange(6).reshape(2, 3), np.float16(1.5), np.zeros((0, 3), "f4"), np.array(["ab", "c"]), np.array(7)])
def test_plain_data_crosses_unchanged(value):
    got = decode(encode(value))
    assert type(got) is type(value)
    if isinstance(value, (np.ndarray, np.generic)):
        assert got.dtype == value.dtype and got.shape == value.shape and (got == value).all()
    else:
        assert got == value


@pytest.mark.parametrize("value", [collections.OrderedDict(b=1, a=2), collections.defaultdict(list, a=[1]), collections.Counter("aab")], ids=lambda v: type(v).__name__)
def test_a_dict_of_collections_arrives_as_a_plain_one(value):
    got = decode(encode(value))
    assert type(got) is dict and got == dict(value)


def test_memory_order_crosses():
    assert decode(encode(np.arange(6).reshape(2, 3).T)).flags.f_contiguous


def test_objects_stay_and_can_be_passed_back(tmp_path):
    run = submission(tmp_path, "def make():\n    return {1, 2}\ndef size(s):\n    return len(s)\n")
    thing = run.call("make")
    assert isinstance(thing, Opaque) and thing.type_name == "set"
    assert run.call("size", thing) == 2
    run.close()
    with pytest.raises(Wrong, match="was lost"):
        run.call("size", thing)
    run.close()


def test_nothing_is_unpickled(tmp_path):
    run = submission(tmp_path, "import numpy as np\nclass Bomb:\n    def __reduce__(self):\n        return (print, ('boom',))\n"
                               "def f():\n    return np.array([Bomb()], dtype=object)\n")
    assert isinstance(run.call("f"), Opaque)
    run.close()


# ---- where answers come from ---------------------------------------------------------------------------------------------------

def make_grade(*arguments):
    return subprocess.run([sys.executable, "-m", "course.check", *arguments], cwd=ROOT, capture_output=True, text=True)


def test_shell_says_what_is_wrong(tmp_path):
    done = make_grade("no/such")
    assert done.returncode == 1 and "There is no exercise 'no/such'" in done.stderr and EX in done.stderr
    done = make_grade(EX, "--file", str(tmp_path / "none.py"))
    assert done.returncode == 1 and "Cannot read" in done.stderr and "Traceback" not in done.stderr
    (tmp_path / "broken.ipynb").write_text("{")
    done = make_grade(EX, "--file", str(tmp_path / "broken.ipynb"))
    assert done.returncode == 1 and "no readable notebook" in done.stderr
    (tmp_path / "other.ipynb").write_text(json.dumps({"cells": [{"cell_type": "code", "source": ["x = 1"]}]}))
    done = make_grade(EX, "--file", str(tmp_path / "other.ipynb"))
    assert done.returncode == 1 and "has no graded cell" in done.stderr


def test_notebook_file_is_graded(tmp_path):
    path = ROOT / "solutions" / f"{EX}.ipynb"
    assert grade(EX, read_answer(path, Exercise(EX))).passed


def run_notebook(cells, tmp_path):
    from nbclient import NotebookClient
    notebook = new_notebook(cells=[new_code_cell(c) for c in cells])
    NotebookClient(notebook, timeout=120, kernel_name="python3", allow_errors=True, resources={"metadata": {"path": str(tmp_path)}}).execute()
    return ["".join(o.get("text", "") or o.get("data", {}).get("text/plain", "") or o.get("evalue", "") for o in c.outputs) for c in notebook.cells]


def graded(text):
    from course.exercises import graded_cells
    return graded_cells([text])


def test_check_in_a_notebook_grades_what_was_run_last(tmp_path):
    source = Exercise(EX)
    cells = [f"{c}\n" for c in [*map(str, source._graded().values())]]
    from course.exercises import learner_code, solution_code
    stub, answer = [learner_code(c) for c in cells], [solution_code(c) for c in cells]
    call = f"from course.check import check\ncheck({EX!r})"
    out = run_notebook([call, *stub, call, *answer, call, "1 + 1"], tmp_path)
    calls = [o for o in out if EX in o]
    assert "has not been run in this session" in calls[0]
    assert "is not written yet" in calls[1]
    assert calls[2].startswith("Passed")
    assert out[-1] == "2"


def test_kernel_outlives_a_hostile_answer(tmp_path):
    from course.exercises import graded_cells
    numbers = sorted(Exercise(EX)._graded())
    hostile = [f"# graded cell {n}: keep this line\ndef predict(*a):\n    import os\n    os._exit(1)\nopen_session = describe = provider_used = predict" for n in numbers]
    assert graded_cells(hostile).keys() == set(numbers)
    out = run_notebook(["kept = 41", *hostile, f"from course.check import check\ncheck({EX!r})", "kept + 1"], tmp_path)
    assert out[-2].startswith("Not passed") and out[-1] == "42"


def test_check_outside_a_notebook_says_what_to_do():
    done = subprocess.run([sys.executable, "-c", f"from course.check import check; check({EX!r})"], cwd=ROOT, capture_output=True, text=True)
    assert "file='my_answer.py'" in done.stderr


def test_result_is_readable_as_text_and_html():
    result = grade(EX, "def open_session(*a): raise ValueError('<b>bold</b>')")
    assert "came:" in str(result) and "<b>bold</b>" in str(result)
    assert "&lt;b&gt;bold&lt;/b&gt;" in result._repr_html_() and "<b>bold</b>" not in result._repr_html_()


def test_learner_notebook_is_a_valid_notebook():
    for name in (EX, "03_tensorrt/ex01_first_engine"):
        nbformat.validate(nbformat.read(Exercise(name).learner_notebook, as_version=4))
