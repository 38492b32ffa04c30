"""The judgement that 03_tensorrt/ex07's grader passes on a GPU, over readings that TensorRT 8.6.0 really gave: no GPU is needed for that half."""
import importlib.util
import json
import types

import pytest

from course import ROOT
from course.grading import Wrong

HERE = ROOT / "tests/03_tensorrt"
RECORDED = json.loads((HERE / "inspector_ex07.json").read_text(encoding="utf-8"))
FORCED = {
    "FP16": ["FP16"] * 4,
    "FP16, dynamic batch": ["FP16"] * 4,
    "mixed, dynamic batch": ["FP32", "FP16", "FP32", "FP16"],
    "FP32, own build": ["FP32"] * 4,
}


@pytest.fixture(scope="module")
def grader():
    spec = importlib.util.spec_from_file_location("grader_of_ex07", HERE / "test_ex07_fp16_asked_fp32_built.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reading(case):
    return [tuple(pair) for pair in RECORDED["readings"][case]]


@pytest.mark.parametrize("case", FORCED)
def test_what_8_6_gave_is_accepted(grader, case):
    grader.judge_engine(reading(case), dict(zip(grader.FOUR, FORCED[case])), False, "dynamic" in case, "a call")


@pytest.mark.parametrize("case", FORCED)
def test_one_convolution_wrong_or_missing_is_refused(grader, case):
    truth = dict(zip(grader.FOUR, FORCED[case]))
    for spoiled in range(4):
        name, right = reading(case)[spoiled]
        for precision in {"FP32", "FP16", "unknown", None} - {right}:
            pairs = reading(case)
            pairs[spoiled:spoiled + 1] = [(name, precision)] if precision else []
            with pytest.raises(Wrong):
                grader.judge_engine(pairs, truth, False, "dynamic" in case, "a call")


def test_a_region_that_is_read_as_a_precision_is_refused(grader):
    """"last" listed as FP32 in an engine all of FP16 is a false alarm, and no unknown."""
    pairs = reading("FP16")[:-1] + [("last", "FP32")]
    with pytest.raises(Wrong, match="not those that the engine was built with"):
        grader.judge_engine(pairs, dict.fromkeys(grader.FOUR, "FP16"), False, False, "a call")


@pytest.mark.parametrize("typed", [False, True])
def test_an_own_build_is_judged_by_the_layers_that_are_known(grader, typed):
    grader.judge_build(reading("FP32, own build"), "FP32", not typed, typed)
    for pairs in ([], [("last", "unknown")], reading("FP16"), reading("mixed, dynamic batch")):
        with pytest.raises(Wrong, match="not those that were asked for"):
            grader.judge_build(pairs, "FP32", not typed, typed)
    if not typed:                                      # where nothing but a permission was given, both may come out
        grader.judge_build(reading("mixed, dynamic batch"), "FP16", True, False)
        with pytest.raises(Wrong):
            grader.judge_build([("one + relu4", "unknown"), *reading("FP32, own build")[1:]], "FP32", True, False)


def test_kernels_with_names_of_their_own_are_judged_by_their_precision(grader):
    truth = dict.fromkeys(grader.FOUR, "FP16")
    grader.judge_engine([("conv_myl0_1", "FP16"), ("conv_myl0_2", "FP16"), ("a_region", "unknown")], truth, True, False, "a call")
    for pairs in ([("a_region", "unknown")], [("conv_myl0_1", "FP16"), ("conv_myl0_2", "FP32")], []):
        with pytest.raises(Wrong):
            grader.judge_engine(pairs, truth, True, False, "a call")


def test_the_parsers_words_count_and_not_the_operators_name(grader):
    said = RECORDED["refusal"]["text"]
    words = said.partition("UNSUPPORTED_NODE: ")[2]
    assert "Det" not in said
    for text in (f"TensorRT cannot read det.onnx: {said}", words):
        grader.check_refusal(types.SimpleNamespace(text=text, call="a call"), [words])
    for text in ("TensorRT cannot read det.onnx", "Det is not supported", ""):
        with pytest.raises(Wrong, match="parser's words"):
            grader.check_refusal(types.SimpleNamespace(text=text, call="a call"), [words])
