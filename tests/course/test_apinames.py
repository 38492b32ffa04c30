"""Every API name of the course exists in the releases it is said to exist in; and the check can say no."""

from __future__ import annotations

from pathlib import Path

import pytest

from course import apinames
from course.pages import name_of


@pytest.mark.parametrize("path", apinames.files(), ids=name_of)
def test_file(path: Path) -> None:
    errors = apinames.check_file(path)
    assert not errors, "\n".join(errors)


def prose(line: str) -> str:
    return "\n".join(apinames.check_page("page.md", f"# Page\n\n{line}\n"))


def code(text: str, kind: str = "python") -> str:
    fence = "```{proof}" if kind == "proof" else f"```{kind}"
    return "\n".join(apinames.check_page("page.md", f"# Page\n\n{fence}\n{text}\n```\n"))


# The inventories are what the check stands on: facts of the releases that the course teaches.


@pytest.mark.parametrize(
    ("name", "releases"),
    [
        ("Builder.create_network", ("8.6", "10.0", "10.16", "11.4", "RTX")),
        ("BuilderFlag.FP16", ("8.6", "10.0", "10.16")),
        ("BuilderFlag.TF32.name", ("8.6", "10.0", "10.16", "11.4", "RTX")),
        ("ICudaEngine.num_bindings", ("8.6",)),
        ("tensorrt.Builder", ("8.6", "10.0", "10.16", "11.4", "RTX")),
        ("tensorrt.engine_from_tensorflow", ()),
        ("__version__", ("8.6", "10.0", "10.16", "11.4", "RTX")),
    ],
)
def test_inventories(name: str, releases: tuple[str, ...]) -> None:
    assert apinames.releases_with(name) == releases


@pytest.mark.parametrize(
    ("text", "present", "holds"),
    [
        ("until 10.16", "8.6 10.0 10.16", True),
        ("until 10.16", "10.0 10.16 RTX", True),
        ("until 10.16", "8.6 10.16", False),
        ("until 10.16", "8.6 10.0 10.16 11.4", False),
        ("until 10.16", "8.6", False),
        ("until 10", "8.6 10.0 10.16", True),
        ("since 10.0", "10.0 10.16 11.4", True),
        ("since 10.0", "8.6 10.0 10.16 11.4", False),
        ("since 10.0", "10.0 10.16", False),
        ("since 10", "10.0 10.16 11.4", True),
        ("since 11", "11.4", True),
        ("since 10.0 until 10.16", "10.0 10.16", True),
        ("since 10.0 until 10.16", "8.6 10.0 10.16", False),
        ("since 10.0 until 10.16", "10.0 10.16 11.4", False),
        ("only 8.6", "8.6", True),
        ("only 8.6", "8.6 10.0", False),
        ("only 10", "10.0 10.16", True),
        ("only RTX", "RTX", True),
        ("only RTX", "11.4 RTX", False),
        ("never", "", True),
        ("never", "RTX", False),
        ("since 11.4 and RTX", "11.4", False),
        ("since 11.4 and RTX", "11.4 RTX", True),
    ],
)
def test_range(text: str, present: str, holds: bool) -> None:
    claim = apinames.parse_range(text)
    assert claim is not None
    assert claim.holds(present.split()) is holds


@pytest.mark.parametrize("text", ["", "until", "until 9", "recently", "since RTX", "until 10.16 since 8.6", "only", "until 11.4"])
def test_what_is_not_a_range(text: str) -> None:
    assert apinames.parse_range(text) is None


def test_a_suggested_range_holds() -> None:
    names = [
        f"{name}.{member}"
        for release in (*apinames.RELEASES, apinames.RTX)
        for name, entry in apinames.inventory(release).items()
        for member in entry.get("members", {})
    ]
    for name in names:
        present = apinames.releases_with(name)
        text = apinames.suggest(present)
        if text:
            claim = apinames.parse_range(text)
            assert claim is not None and claim.holds(present), (name, present, text)


# Prose


@pytest.mark.parametrize(
    "line",
    [
        "`trt.Builder` and `trt.IBuilderConfig.set_flag(flag)`, `trt.volume`, `trt.__version__`.",
        "{api}`trt.BuilderFlag.FP16 (until 10.16)`, {api}`trt.IStreamReaderV2 (since 10.16)`.",
        "{api}`trt.tensorrt.engine_from_tensorflow (never)`.",
        "`ort.InferenceSession.run`, `onnxruntime.quantization.quantize_static`, `onnx.TensorProto.FLOAT`.",
        "`onnx.ModelProto.graph`, `onnx.helper.make_model`, `onnx.reference.ReferenceEvaluator`.",
        "{api}`ort.InferenceSession.fit (never)`.",
        "`model.onnx`, `torch.onnx.export`, `onnx.proto`, `tests/ort.py`.",
        "`config.json`, `engine.plan`, `context.execute_async_v3(stream)`, `session.run(None, {})`.",
        "`session.intra_op.allow_spinning` is an entry. The file is for ort. Then more.",
    ],
)
def test_right_prose_passes(line: str) -> None:
    assert prose(line) == ""


@pytest.mark.parametrize(
    ("line", "fact", "fix"),
    [
        ("`trt.BuilderFlag.FP16`", "8.6, 10.0, 10.16", "{api}`trt.BuilderFlag.FP16 (until 10.16)`"),
        ("`trt.Biulder`", "no release", "look its name up"),
        ("`trt.Builder.biuld()`", "no release", "look its name up"),
        ("{api}`trt.BuilderFlag.FP16 (until 10.0)`", "8.6, 10.0, 10.16", "(until 10.16)"),
        ("{api}`trt.Builder (until 10.16)`", "8.6, 10.0, 10.16, 11.4", "without a range"),
        ("{api}`trt.Builder (never)`", "8.6, 10.0, 10.16, 11.4", "without a range"),
        ("{api}`trt.IPluginV3 (since 8.6)`", "10.0, 10.16, 11.4", "(since 10.0)"),
        ("{api}`trt.Builder`", "no range", "until, since, only or never"),
        ("{api}`trt.Builder (soon)`", "cannot read the range", "until, since, only or never"),
        ("{api}`Builder (never)`", "not a name from trt.", "{api}`trt.Name"),
        ("`engine.num_bindings`", "trt.ICudaEngine.num_bindings", "(only 8.6)"),
        ("`config.max_workspace_size = 1`", "trt.IBuilderConfig.max_workspace_size", "(only 8.6)"),
        ("`context.execute_v9()`", "no release", "look its name up"),
        ("`session.fit(x)`", "no such name", "(never)"),
        ("Call trt.Builder then", "not written as code", "backticks"),
        ("`trt.IInt8*`", "pattern proves nothing", "in full"),
        ("`IBuilderConfig.set_flag`", "write it as", "`trt.IBuilderConfig.set_flag`"),
        ("`INetworkDefinition`", "write it as", "`trt.INetworkDefinition`"),
        ("`ort.InferenceSesion`", "no such name", "correct it"),
        ("`ort.InferenceSession.fit`", "no such name", "correct it"),
        ("`onnx.helper.make_modle`", "no such name", "correct it"),
        ("{api}`ort.InferenceSession (never)`", "has it", "plain code"),
        (":::{dropdown} Why?\n`trt.Nope`\n:::", "page.md:4: trt.Nope", "inventories"),
    ],
)
def test_wrong_prose_is_caught(line: str, fact: str, fix: str) -> None:
    said = prose(line)
    assert said.startswith("page.md:") and fact in said and fix in said, said


# Code


@pytest.mark.parametrize(
    "text",
    [
        "import tensorrt as trt\nbuilder = trt.Builder(trt.Logger(trt.Logger.WARNING))\nbuilder.create_network(0)",
        "# TensorRT until 10.16\nconfig.set_flag(trt.BuilderFlag.FP16)",
        "config.set_flag(trt.BuilderFlag.FP16)  # TensorRT until 10.16",
        "if hasattr(trt.BuilderFlag, 'FP16'):\n    config.set_flag(getattr(trt.BuilderFlag, 'FP16'))",
        "# TensorRT never: the seed's code\ntrt.tensorrt.engine_from_tensorflow(model)",
        "import argparse\nimport tensorrt as trt\nparser = argparse.ArgumentParser()\nparser.add_argument('x')",
        "import onnxruntime as ort\nsession = ort.InferenceSession('m.onnx')\nsession.run(None, {})",
        "import onnxruntime as ort\nfor options in ({}, {'a': 1}):\n    options.get('a')",
        "from onnx import helper, TensorProto\nhelper.make_model\nTensorProto.FLOAT",
    ],
)
def test_right_code_passes(text: str) -> None:
    assert code(text) == ""


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("import tensorrt as trt\ntrt.BuilderFlag.FP16", "page.md:5: trt.BuilderFlag.FP16"),
        ("import tensorrt as trt\nbuilder.max_batch_size = 8", "trt.Builder.max_batch_size"),
        ("import tensorrt as trt\nx = trt.Builder(log)\nx.max_batch_size = 8", "trt.Builder.max_batch_size"),
        ("import tensorrt as trt\nb = trt.Builder(l)\nn = b.create_network(0)\nn.add_nothing()", "trt.INetworkDefinition.add_no"),
        ("import tensorrt as trt\nbuilder.create_builder_config().max_workspace_size", "trt.IBuilderConfig.max_work"),
        ("from tensorrt import UffParser", "tensorrt.UffParser"),
        ("import tensorrt\ntensorrt.CaffeParser()", "tensorrt.CaffeParser"),
        ("# TensorRT until 10.16\ntrt.Builder(log)", "'# TensorRT until 10.16' stands over trt.Builder"),
        ("# TensorRT until 10.16\nprint(1)", "stands over no name of trt."),
        ("# TensorRT since 9\ntrt.Builder(log)", "cannot read the range 'since 9'"),
        ("x = trt.Builder  # TensorRT only 8.6", "'# TensorRT only 8.6' stands over trt.Builder: together they exist in 8.6, 10.0, 10.16, 11.4, RTX; remove it"),
        ("trt.Builder(", "not Python"),
        ("import onnxruntime as ort\nsession.fit()", "onnxruntime.InferenceSession.fit"),
        ("import onnxruntime as ort\nso.intra_threads = 1", "onnxruntime.SessionOptions.intra_threads"),
        ("import onnxruntime as ort\nort.InferenceSesion", "ort.InferenceSesion"),
        ("from onnx import hepler", "onnx.hepler"),
        ("import onnxruntime.quantisation", "onnxruntime.quantisation"),
    ],
)
def test_wrong_code_is_caught(text: str, name: str) -> None:
    assert name in code(text)


def test_a_proof_on_rtx_is_held_to_rtx() -> None:
    flags = "trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED"
    assert code(f"import tensorrt_rtx as trt\n{flags}", "proof") == ""
    assert "TensorRT-RTX 1.7, which lacks it" in code("import tensorrt_rtx as trt\ntrt.BuilderFlag.FP16", "proof")
    assert flags in code(f"import tensorrt as trt\n{flags}")


def test_proofs_of_a_page_share_their_imports() -> None:
    page = "```{proof}\nimport tensorrt_rtx as trt\n```\n```{proof}\nprint(trt.BuilderFlag.FP16)\n```\n"
    assert "page.md:5: trt.BuilderFlag.FP16: used from TensorRT-RTX" in "\n".join(apinames.check_page("page.md", page))


def test_code_that_takes_either_module_is_held_to_both() -> None:
    either = "try:\n    import tensorrt as trt\nexcept ImportError:\n    import tensorrt_rtx as trt\n"
    assert apinames.check_source("x.py", either + "trt.Builder.create_network") == []
    assert "x.py:5: trt.IStreamReaderV2" in apinames.check_source("x.py", either + "trt.IStreamReaderV2")[0]


def test_a_source_is_code_and_prose() -> None:
    source = "# %% [markdown]\n# Call `trt.Nope`.\n# ```python\n# trt.Nada()\n# ```\n\n# %%\nimport tensorrt as trt\ntrt.Nil\n"
    said = apinames.check_source("x.py", source)
    assert [error.split(": ")[0] + " " + error.split(": ")[1] for error in said] == [
        "x.py:2 trt.Nope",
        "x.py:4 trt.Nada",
        "x.py:9 trt.Nil",
    ]


def test_a_quiz_may_be_wrong_only_in_its_wrong_choices() -> None:
    quiz = """items:
  - stem: What does `trt.Stem` do?
    choices:
      - text: "`trt.Wrong` runs"
        why: No `trt.Why`.
      - text: "`trt.Right` runs"
        correct: true
        why: |
          It does.
          See `trt.Block`.
"""
    said = apinames.check_quiz("q.yml", quiz)
    assert [":".join(error.split(": ")[:2]) for error in said] == [
        "q.yml:2:trt.Stem",
        "q.yml:5:trt.Why",
        "q.yml:6:trt.Right",
        "q.yml:10:trt.Block",
    ]


def test_wrong_answers_are_not_read_and_right_ones_are(tmp_path: Path) -> None:
    for name in ("tests/03_tensorrt/wrong/ex01_a.py", "tests/03_tensorrt/right/ex01_b.py", "book/03/index.md", "README.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("# `trt.Nope`\nimport tensorrt as trt\ntrt.Nope\n", encoding="utf-8")
    said = "\n".join(apinames.check(tmp_path))
    assert "right/ex01_b.py:3" in said and "book/03/index.md:1" in said and "README.md:1" in said and "wrong" not in said


def test_a_submodule_that_cannot_be_imported_here_exists_all_the_same(tmp_path, monkeypatch):
    """A tool of a package may want another package, which not every installation has."""
    (tmp_path / "somewhere").mkdir()
    (tmp_path / "somewhere/__init__.py").write_text("there = 1\n")
    (tmp_path / "somewhere/tool.py").write_text("import a_package_that_nobody_has\n\nclass Tool: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert apinames.installed("somewhere.there") and apinames.installed("somewhere.tool")
    assert not apinames.installed("somewhere.tool.Tool") and not apinames.installed("somewhere.missing")
