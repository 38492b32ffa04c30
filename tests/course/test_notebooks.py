"""The notebooks are what their sources make, and no answer leaks into a learner's one."""
import json

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell

from course import notebooks
from course.exercises import Exercise, SourceError, graded_cells, learner_code, names, solution_code

CELL = """\
# graded cell 1: keep this line
def f(x):
    \"\"\"Doubles.\"\"\"
    # <answer>
    y = x + x
    return y
    # </answer>
    # stub: raise NotImplementedError("f is not written yet")
"""


def test_regenerating_changes_nothing():
    assert notebooks.problems() == []


def test_no_answer_leaks():
    assert notebooks.leaks() == []


def test_a_leak_would_be_found(monkeypatch):
    """Plants an answer's line into a learner's notebook, deeper indented, and expects it to be named."""
    name = names()[0]
    real = nbformat.read

    def planted(path, as_version):
        notebook = real(path, as_version=as_version)
        line = next(line.strip() for c in Exercise(name).cells if c.cell_type == "code" and "<answer>" in c.source
                    for line in solution_code(c.source).splitlines() if line.strip() not in learner_code(c.source) and len(line.strip()) > 12)
        notebook.cells.append(new_code_cell(f"if True:\n            {line}"))
        return notebook
    monkeypatch.setattr(notebooks.nbformat, "read", planted)
    assert any("shows a line of the answer" in leak for leak in notebooks.leaks())


def test_solution_and_stub_come_from_one_cell():
    assert solution_code(CELL).splitlines()[3:] == ["    y = x + x", "    return y"]
    assert learner_code(CELL).splitlines()[3:] == ['    raise NotImplementedError("f is not written yet")']


@pytest.mark.parametrize("text, says", [
    ("# <answer>\nx = 1", "never closed"),
    ("# </answer>", "no '# <answer>' before it"),
    ("# <answer>\n# <answer>\n# </answer>", "inside an answer"),
    ("# <answer>\n# stub: x\n# </answer>", "put it after"),
    ("x = 1  # <answer>", "not written"),
    ("# Stub x", None),
])
def test_marks_that_are_wrong_are_named(text, says):
    if says is None:
        assert learner_code(text) == text
        return
    with pytest.raises(SourceError, match=says):
        learner_code(text)


def test_the_last_text_of_a_graded_cell_counts():
    assert graded_cells(["# graded cell 1: keep\nold", "x", "# graded cell 1: keep\nnew", "  \n# Graded Cell 2\ny"]) == {
        1: "# graded cell 1: keep\nnew", 2: "  \n# Graded Cell 2\ny"}


@pytest.mark.parametrize("name", names())
def test_learner_notebook_has_hints_stub_and_check(name):
    notebook = nbformat.read(Exercise(name).learner_notebook, as_version=4)
    text = "\n".join(c.source for c in notebook.cells)
    assert [text.count(f"<summary>Hint {n}</summary>") for n in (1, 2, 3)] == [1, 1, 1]
    assert "NotImplementedError" in text and f'check("{name}")' in notebook.cells[-1].source
    assert not any(c.get("outputs") for c in notebook.cells)


@pytest.mark.parametrize("name", names())
def test_cells_for_a_gpu_are_recorded_or_said_to_be_unrun(name):
    notebook = nbformat.read(Exercise(name).solution_notebook, as_version=4)
    cells = [c for c in notebook.cells if "gpu" in c.metadata.get("tags", ())]
    run = notebooks.recording(Exercise(name))
    told = [c.source for c in notebook.cells if c.cell_type == "markdown" and c.source.startswith(("> **Recorded", "> **No outputs recorded"))]
    assert len(told) == bool(cells)
    for cell in cells:
        assert "nbval-skip" in cell.metadata.tags, "on a machine without a GPU it has to show as skipped"
        assert bool(cell.outputs) == bool(run), "outputs come from a recorded run, or there are none"
    shown = run or notebooks.graded(Exercise(name))        # where no outputs were recorded, the grader's run is named, if there is one
    if cells and shown:
        assert shown["date"][:10] in told[0] and shown["id"] in told[0]


def test_a_changed_gpu_cell_needs_a_new_recording(monkeypatch):
    name = next(n for n in names() if notebooks.recording(Exercise(n)))
    run = json.loads(json.dumps(notebooks.recording(Exercise(name))))
    run["outputs"] = {"0" * 64: []}
    monkeypatch.setattr(notebooks, "recording", lambda exercise: run)
    with pytest.raises(SystemExit, match="has changed since it was recorded"):
        notebooks.solution_sources(Exercise(name))


def test_work_keeps_what_a_learner_wrote(tmp_path, monkeypatch, capsys):
    (tmp_path / "notebooks/c").mkdir(parents=True)
    original = tmp_path / "notebooks/c/ex01_x.ipynb"

    class Fake:
        learner_notebook, work_notebook = original, tmp_path / "work/c/ex01_x.ipynb"
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    monkeypatch.setattr(notebooks, "names", lambda: ("c/ex01_x",))
    monkeypatch.setattr(notebooks, "Exercise", lambda name: Fake)
    original.write_text("one")
    notebooks.lay_out_work()
    assert Fake.work_notebook.read_text() == "one"
    original.write_text("two")
    notebooks.lay_out_work()
    assert Fake.work_notebook.read_text() == "two", "an untouched notebook follows the new version"
    Fake.work_notebook.write_text("mine")
    original.write_text("three")
    notebooks.lay_out_work()
    notebooks.lay_out_work()
    assert Fake.work_notebook.read_text() == "mine"
    assert "which you edited" in capsys.readouterr().out


def test_colab_cell_only_with_an_address(monkeypatch):
    assert notebooks.repository() == "" and notebooks.colab_cell() is None
    monkeypatch.setattr(notebooks, "repository", lambda: "https://github.com/example/course")
    cell = notebooks.learner_notebook(Exercise(names()[0])).cells[0]
    assert "git clone --depth 1 https://github.com/example/course" in cell.source


def test_hidden_cells_are_hidden():
    class Fake:
        source, cells = "x", [new_markdown_cell("Prompt"), new_markdown_cell("Why", metadata={"tags": ["answer"]}),
                              new_code_cell("secret = 1", metadata={"tags": ["answer"]}), new_markdown_cell("**Hint 1.** Look.", metadata={"tags": ["hint"]})]
    text = [c.source for c in notebooks.learner_notebook(Fake).cells]
    assert text == ["Prompt", "<details>\n<summary>Hint 1</summary>\n\nLook.\n\n</details>"]
