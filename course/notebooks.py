"""Makes the notebooks from the exercises' sources.

    python -m course.notebooks             writes notebooks/ (the learner's) and solutions/*.ipynb (executed)
    python -m course.notebooks --check     says what would change, and exits with 1 if anything would
    python -m course.notebooks --record EX --system ID     on a GPU machine: runs a solution whole and writes
                                           what came out to measurements/runs/, for the pages of machines without one

What a GPU made is never made up elsewhere: a cell tagged `gpu` shows the outputs of its recorded run, with the machine
it ran on, for as long as the cell's code is the code that was recorded.
"""
import argparse
import datetime
import json
import os
import re
import subprocess
import sys

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from course import ROOT, runs
from course.exercises import Exercise, code_digest, learner_code, names, solution_code

BARE = re.compile(r"import [\w. ]+|from [\w.]+ import [\w, ]+|except \w+:|\|[-: |]+\|")  # says nothing of an answer: imports, excepts, rules of tables
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def learner_notebook(exercise: Exercise):
    """The learner's notebook: the source without its answers and outputs, hints folded."""
    cells = [c for c in [colab_cell()] if c]
    for cell in exercise.cells:
        tags = set(cell.metadata.get("tags", ()))
        if "answer" in tags:
            continue
        if cell.cell_type == "code":
            text = learner_code(cell.source, exercise.source)
            # Run All goes on past a cell that may raise; without a GPU these do.
            cells.append(new_code_cell(text, metadata=tag({"gpu", "raises-exception"} if "gpu" in tags else set())))
        elif "hint" in tags:
            head, _, body = cell.source.partition("**")[2].partition("**")
            cells.append(new_markdown_cell(f"<details>\n<summary>{head.rstrip('.')}</summary>\n\n{body.strip()}\n\n</details>"))
        else:
            cells.append(new_markdown_cell(cell.source))
    return finish(cells)


def solution_sources(exercise: Exercise):
    """The solution notebook before it is run: the answers, no hints; recorded outputs in cells tagged gpu."""
    cells, told = [c for c in [colab_cell()] if c], False
    recorded = recording(exercise)
    for cell in exercise.cells:
        tags = set(cell.metadata.get("tags", ()))
        if tags & {"hint", "learner"}:
            continue
        if cell.cell_type == "markdown":
            cells.append(new_markdown_cell(cell.source))
            continue
        text = solution_code(cell.source, exercise.source)
        made = new_code_cell(text, metadata=tag((tags & {"gpu"}) | {t for t in tags if t.startswith("nbval")}))
        if "gpu" in tags:
            made.metadata["tags"] = sorted({*made.metadata["tags"], "nbval-skip"})
            if not told:
                cells.append(new_markdown_cell(provenance(recorded, graded(exercise))))
                told = True
            if recorded:
                run = recorded["outputs"].get(code_digest(text))
                if run is None:
                    raise SystemExit(f"{exercise.source}: a cell tagged gpu has changed since it was recorded in {recorded['id']}. "
                                     f"Record it again on a GPU: python -m course.notebooks --record {exercise.name} …\n{text}")
                made.outputs = [nbformat.from_dict(without_colours(o)) for o in run]
        cells.append(made)
    return finish(cells)


def without_colours(output):
    """A recorded output without a terminal's colours, which no page shows with enough contrast in both modes."""
    if isinstance(output.get("text"), str):
        return {**output, "text": re.sub(r"\x1b\[[0-9;]*m", "", output["text"])}
    return output


def finish(cells):
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number:02d}"
    return new_notebook(cells=cells, metadata={"kernelspec": KERNEL, "language_info": {"name": "python"}})


def tag(tags):
    return {"tags": sorted(tags)} if tags else {}


def colab_cell():
    """A first cell that fetches the course where it is not installed, once the repository has an address."""
    address = repository()
    if not address:
        return None
    return new_code_cell(
        "# On Google Colab this fetches the course; where the course is installed it does nothing.\n"
        "import importlib.util\n\n"
        'if importlib.util.find_spec("course") is None:\n'
        f"    !git clone --depth 1 {address} course-repository\n"
        "    %pip install -q -e 'course-repository[cpu]'\n"
        "    import sys\n"
        '    sys.path.insert(0, "course-repository")')


def repository() -> str:
    """The repository's address, from its only home: `repository: url:` in _config.yml. '' while it is unset."""
    import yaml
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    return ((config.get("repository") or {}).get("url") or "").rstrip("/")


def recording(exercise: Exercise):
    """The newest recorded run of the exercise's solution, or None."""
    recorded = [runs.load_run(ROOT, p.stem) for p in ROOT.glob("measurements/runs/*.json")]
    recorded = [r for r in recorded if r["configuration"].get("exercise") == exercise.name and r["status"] == "ok" and r.get("outputs")]
    return max(recorded, key=lambda r: r["date"], default=None)


def graded(exercise: Exercise):
    """The newest run of the exercise's grader on a GPU machine in which nothing failed, or None."""
    tests = exercise.grader.relative_to(ROOT).as_posix()
    found = [runs.load_run(ROOT, p.stem) for p in ROOT.glob("measurements/runs/*grader.json")]
    found = [r for r in found if r["configuration"].get("tests") == tests and r["status"] == "ok" and r["results"].get("failed") == 0]
    return max(found, key=lambda r: r["date"], default=None)


def provenance(run, graded=None):
    """A text cell that says on what the following cells ran; where they did not, on what the grader did."""
    if run is None:
        text = ("> **No outputs recorded.** The cells below need a GPU, and no run of them has been recorded. Their outputs are missing, "
                "not forgotten.")
        if graded:
            text += (f" The graded code of this page passed its grader on {machine(graded)}, by\n> `{graded['command']}`\n> "
                     f"(run `{graded['id']}`: {graded['results']['passed']} passed, {graded['results'].get('skipped', 0)} skipped).")
        return text
    return (f"> **Recorded, not run here.** The outputs of the cells below that need a GPU were made on {machine(run)}, by\n> `{run['command']}`\n> "
            f"(run `{run['id']}`). On a machine without a GPU they are skipped.")


def machine(run):
    system = runs.load_system(ROOT, run["system"])
    packages = ", ".join(f"{name} {version}" for name, version in system["packages"].items())
    return (f"{run['date'][:10]} on one {system['gpu']} (driver {system['driver']}, CUDA {system['cuda']}) with {packages}, "
            f"Python {system['python']}")


def execute(notebook, folder, skip_gpu=True):
    """Runs a notebook's code cells in order, leaving those tagged gpu alone if asked to."""
    from nbclient import NotebookClient

    def left_alone(cell):
        return skip_gpu and cell.cell_type == "code" and "gpu" in cell.metadata.get("tags", ())

    running = [c for c in notebook.cells if not left_alone(c)]
    part = new_notebook(cells=running, metadata=notebook.metadata)
    # The course is importable even where it is not installed, as on a GPU machine that only has a copy of the tree.
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    NotebookClient(part, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}},
                   record_timing=False).execute(env={**os.environ, "PYTHONPATH": path})
    count = 0
    for cell in notebook.cells:
        if cell.cell_type == "code":
            if left_alone(cell):
                cell.execution_count = None
                continue
            count += 1
            cell.execution_count = count
            for output in cell.outputs:
                if "execution_count" in output:
                    output.execution_count = count
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    return notebook


def text_of(notebook) -> str:
    return nbformat.writes(notebook, version=4) + "\n"


def same_sources(old: str, new) -> bool:
    """Whether an executed notebook has the cells, tags and recorded outputs that its source asks for."""
    try:
        have = nbformat.reads(old, as_version=4)
    except Exception:
        return False

    def shape(notebook):
        return [(c.id, c.cell_type, c.source, c.metadata.get("tags", []),
                 c.outputs if "gpu" in c.metadata.get("tags", ()) else None) for c in notebook.cells]
    return shape(have) == shape(new)


def problems(run_solutions=False, write=False):
    """What differs between the notebooks on disk and those that the sources make; `write` puts it right."""
    found = []
    for name in names():
        ex = Exercise(name)
        wanted = text_of(learner_notebook(ex))
        if not ex.learner_notebook.exists() or ex.learner_notebook.read_text(encoding="utf-8") != wanted:
            found.append(f"{ex.learner_notebook.relative_to(ROOT)} is not what {ex.source.relative_to(ROOT)} makes")
            if write:
                ex.learner_notebook.parent.mkdir(parents=True, exist_ok=True)
                ex.learner_notebook.write_text(wanted, encoding="utf-8")
        notebook = solution_sources(ex)
        have = ex.solution_notebook.read_text(encoding="utf-8") if ex.solution_notebook.exists() else ""
        if run_solutions or not same_sources(have, notebook):
            if not same_sources(have, notebook):
                found.append(f"{ex.solution_notebook.relative_to(ROOT)} is not what {ex.source.relative_to(ROOT)} makes")
            if write:
                wanted = text_of(execute(notebook, ex.source.parent))
                if wanted != have:
                    ex.solution_notebook.write_text(wanted, encoding="utf-8")
    made = {p for n in names() for p in (Exercise(n).learner_notebook, Exercise(n).solution_notebook)}
    for path in sorted({*ROOT.glob("notebooks/**/*.ipynb"), *ROOT.glob("solutions/**/*.ipynb")} - made):
        if ".ipynb_checkpoints" not in path.parts:
            found.append(f"{path.relative_to(ROOT)} has no source: delete it, or add solutions/<chapter>/<stem>.py")
    return found


def leaks():
    """Lines of answers that stand in a learner's notebook, ignoring indent, and text cells that only solutions may have."""
    found = []
    for name in names():
        ex = Exercise(name)
        notebook = nbformat.read(ex.learner_notebook, as_version=4)
        shown = {line.strip() for c in notebook.cells for line in c.source.splitlines()}
        hidden = []
        for cell in ex.cells:
            if cell.cell_type == "code":
                open_lines = [line.strip() for line in learner_code(cell.source).splitlines()]
                hidden += [line.strip() for line in solution_code(cell.source).splitlines() if line.strip() not in open_lines]
            if "answer" in cell.metadata.get("tags", ()):
                hidden += [line.strip() for line in cell.source.splitlines()]
        for line in hidden:
            if len(line) > 12 and line in shown and not BARE.fullmatch(line):
                found.append(f"notebooks/{name}.ipynb shows a line of the answer: {line!r}")
        if re.search(r"</?answer>|# stub", "\n".join(shown)):
            found.append(f"notebooks/{name}.ipynb shows a mark of the source ('<answer>' or '# stub')")
    return found


def record(name, system, command, commit):
    """Runs a solution whole, on this machine, and writes the run with the outputs of every code cell."""
    ex = Exercise(name)
    notebook = finish([new_code_cell(solution_code(c.source), metadata=tag(set(c.metadata.get("tags", ()))))
                       for c in ex.cells if c.cell_type == "code" and not set(c.metadata.get("tags", ())) & {"learner", "hint"}])
    execute(notebook, ex.source.parent, skip_gpu=False)
    gpu = [c for c in notebook.cells if "gpu" in c.metadata.get("tags", ())]
    now = datetime.datetime.now(datetime.timezone.utc)
    run = {
        "id": f"{now:%Y-%m-%d}_{system}_{ex.chapter[:2]}-{ex.stem}", "date": f"{now:%Y-%m-%dT%H:%M:%SZ}", "system": system,
        "command": command, "commit": commit, "what": f"The solution of {name}, run whole", "status": "ok", "reasons": [],
        "configuration": {"exercise": name}, "results": {}, "accuracy": {}, "samples": {},
        "outputs": {code_digest(c.source): [json.loads(json.dumps(o)) for o in c.outputs] for c in gpu},
    }
    path = ROOT / "measurements/runs" / f"{run['id']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(run, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def lay_out_work():
    """Copies the learner's notebooks into work/, where they may be edited. Nothing that a learner changed is overwritten.

    Beside work/ stands what was last copied (work/.laid), so an untouched notebook follows a new version and an edited one stays.
    """
    for name in names():
        ex = Exercise(name)
        laid = ROOT / "work/.laid" / f"{name}.ipynb"
        new = ex.learner_notebook.read_bytes()
        if not ex.work_notebook.exists() or (laid.exists() and ex.work_notebook.read_bytes() == laid.read_bytes() != new):
            for target in (ex.work_notebook, laid):
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(new)
            print(f"laid out  work/{name}.ipynb")
        elif laid.exists() and laid.read_bytes() != new:
            print(f"kept      work/{name}.ipynb, which you edited; the exercise has a newer version in notebooks/{name}.ipynb")
        else:
            print(f"kept      work/{name}.ipynb")


def main():
    parser = argparse.ArgumentParser(prog="python -m course.notebooks")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--run", action="store_true", help="run the solutions again even where their source has not changed")
    parser.add_argument("--work", action="store_true", help="lay the learner's notebooks out in work/")
    parser.add_argument("--record", metavar="EX")
    parser.add_argument("--system", default="")
    parser.add_argument("--command", help="what to record as the command, where it is not this one")
    parser.add_argument("--commit", help="what to record as the commit, where there is no git")
    options = parser.parse_args()
    if options.work:
        return lay_out_work()
    if options.record:
        command = options.command or f"python -m course.notebooks --record {options.record} --system {options.system}"
        commit = options.commit or subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True,
                                                  check=True).stdout.strip()
        print(record(options.record, options.system, command, commit))
        return None
    found = problems(run_solutions=options.run, write=not options.check) + (leaks() if options.check else [])
    print("\n".join(found) or "every notebook is what its source makes")
    if options.check and found:
        sys.exit("Run `make notebooks`, look at the change, and commit it.")


if __name__ == "__main__":
    main()
