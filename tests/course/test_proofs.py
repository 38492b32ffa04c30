"""Every page's proofs run and print what the page says; and the tool that says so can say no."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from course import proofs


@pytest.mark.parametrize("page", proofs.pages(), ids=proofs.name_of)
def test_page(page: Path) -> None:
    result = proofs.check(page)
    if result.skipped:
        pytest.skip(result.skipped)
    assert not result.errors, "\n".join(result.errors)
    assert result.cells


def test_the_book_has_proofs() -> None:
    assert proofs.pages()


def write(tmp_path: Path, *blocks: str) -> Path:
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n" + "\n".join(blocks) + "\n", encoding="utf-8")
    return page


def proof(code: str) -> str:
    return f"```{{proof}}\n{code}\n```"


def output(text: str) -> str:
    return f"```{{output}}\n{text}\n```"


def errors(page: Path, **options: float) -> str:
    return "\n".join(proofs.check(page, **options).errors)


def test_right_page_passes_and_cells_share_a_namespace(tmp_path: Path) -> None:
    page = write(tmp_path, proof("x = 6"), "Text.", proof("print(x * 7)"), output("42"))
    result = proofs.check(page)
    assert (result.errors, result.cells, result.skipped) == ([], 2, "")


def test_other_output_is_an_error_with_line_and_difference(tmp_path: Path) -> None:
    said = errors(write(tmp_path, proof("print(6 * 7)"), output("41")))
    assert "page.md:3:" in said and "-41" in said and "+42" in said and "--write" in said


def test_printing_without_output_is_an_error(tmp_path: Path) -> None:
    assert "no {output} follows" in errors(write(tmp_path, proof("print(1)")))


def test_output_of_a_silent_cell_is_an_error(tmp_path: Path) -> None:
    assert "prints nothing" in errors(write(tmp_path, proof("x = 1"), output("1")))


def test_output_without_proof_is_an_error(tmp_path: Path) -> None:
    assert "no {proof} before it" in errors(write(tmp_path, output("1")))


def test_unclosed_fence_is_an_error(tmp_path: Path) -> None:
    assert "never closed" in errors(write(tmp_path, "```{proof}\nprint(1)"))


def test_exception_is_an_error_with_the_pages_own_line(tmp_path: Path) -> None:
    said = errors(write(tmp_path, proof("x = 1"), proof("import sys\nprint('why', file=sys.stderr)\n1 / 0")))
    assert "page.md:6:" in said and "line 9" in said and "ZeroDivisionError" in said and "why" in said


@pytest.mark.parametrize("end", ["import os; os._exit(0)", "import os; os.abort()", "raise SystemExit(0)"])
def test_a_process_that_ends_early_is_an_error(tmp_path: Path, end: str) -> None:
    assert "page.md:3:" in errors(write(tmp_path, proof(end), proof("print(1)"), output("1")))


def test_a_page_has_a_time_limit(tmp_path: Path) -> None:
    assert "still running after 1 s" in errors(write(tmp_path, proof("while True: pass")), seconds=1)


def test_what_other_layers_print_counts_too(tmp_path: Path) -> None:
    code = "import os, subprocess, sys\nprint(1)\nos.write(1, b'2\\n')\nsubprocess.run([sys.executable, '-c', 'print(3)'])"
    assert proofs.check(write(tmp_path, proof(code), output("1\n2\n3"))).errors == []


def test_cells_run_in_an_empty_folder_and_know_the_models(tmp_path: Path) -> None:
    code = "import os\nprint(os.listdir(), MODELS.name, MODELS.is_dir(), os.environ.get('DISPLAY'))"
    assert proofs.check(write(tmp_path, proof(code), output("[] models True None"))).errors == []


def test_hash_order_is_not_fixed(tmp_path: Path) -> None:
    code = "import sys\nprint(sys.flags.hash_randomization)"
    assert proofs.check(write(tmp_path, proof(code), output("1"))).errors == []


def test_write_inserts_replaces_and_removes_then_checks_clean(tmp_path: Path) -> None:
    inside = ":::{dropdown} Why?\n" + proof("print('```')") + "\n:::"
    page = write(tmp_path, proof("print(1)"), proof("print(2)"), output("3"), proof("x = 1"), output("4"), inside)
    assert proofs.check(page, write=True).written
    assert page.read_text(encoding="utf-8") == "\n".join(
        [
            "# Page\n",
            proof("print(1)") + "\n" + output("1"),
            proof("print(2)") + "\n" + output("2"),
            proof("x = 1"),
            ":::{dropdown} Why?\n" + proof("print('```')") + "\n````{output}\n```\n````\n:::\n",
        ]
    )
    assert proofs.check(page).errors == []
    assert not proofs.check(page, write=True).written


def test_write_leaves_a_failing_page_alone(tmp_path: Path) -> None:
    page = write(tmp_path, proof("print(1)"), proof("1 / 0"))
    before = page.read_text(encoding="utf-8")
    assert proofs.check(page, write=True).errors
    assert page.read_text(encoding="utf-8") == before


def test_a_fence_shown_inside_a_longer_fence_is_text(tmp_path: Path) -> None:
    assert proofs.check(write(tmp_path, "````markdown\n" + proof("1 / 0") + "\n````")).cells == 0


def test_a_missing_engine_skips_and_never_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(proofs.importlib.util, "find_spec", lambda name: None if "tensorrt" in name else find(name))
    page = write(tmp_path, proof("import tensorrt_rtx as trt\nprint(1)"), output("1"))
    assert "no tensorrt_rtx" in proofs.check(page).skipped
    guarded = write(tmp_path, proof("try:\n    import tensorrt\nexcept ImportError:\n    print('none')"), output("x"))
    assert not proofs.check(guarded).skipped


def test_command_line_says_no(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert proofs.main([str(write(tmp_path, proof("print(1)"), output("2")))]) == 1
    assert "1 pages with errors" in capsys.readouterr().out
    assert proofs.main([str(write(tmp_path, proof("print(1)"), output("1")))]) == 0
