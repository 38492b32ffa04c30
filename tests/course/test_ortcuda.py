"""The suite ortcuda as far as a CPU goes: its models against its float64 answers, and its ways on the CPU provider."""
import numpy as np
import onnx
import onnxruntime
import pytest

from course.bench import core, nets, ortcuda

CPU = {"provider": "CPUExecutionProvider", "device": "cpu"}


@pytest.fixture(autouse=True)
def few_and_short(monkeypatch):
    monkeypatch.setattr(nets, "INPUTS", 2)
    monkeypatch.setattr(core, "WARM_UP_S", 0.01)
    monkeypatch.setattr(core, "time_calls", lambda call, wait, **_: (call(), wait(), ({"latency": ("ms", [[1.0]])}, {}))[2])
    ortcuda.prepared.cache_clear()
    yield
    ortcuda.prepared.cache_clear()


@pytest.mark.parametrize("name", list(ortcuda.TITLES))
def test_every_way_gives_the_reference_in_float64(name):
    for way in ("run", "bindhost", "bind"):
        accuracy = ortcuda.measured(name, 1, way, False, **CPU).accuracy
        assert accuracy["error"] < 1e-5, (way, accuracy)


def test_an_error_in_the_reference_is_found():
    home, given, reference = ortcuda.prepared("cnn")
    ortcuda.prepared.cache_clear()
    ortcuda.prepared, kept = lambda name: (home, given, reference[::-1]), ortcuda.prepared
    try:
        assert ortcuda.measured("cnn", 1, "bind", False, **CPU).accuracy["error"] > 0.1
    finally:
        ortcuda.prepared = kept


def test_the_files_have_their_batch_and_no_shape_arithmetic():
    for name in ortcuda.TITLES:
        home, given, _ = ortcuda.prepared(name)
        for batch in ortcuda.BATCHES:
            graph = onnx.load(f"{home.name}/b{batch}.onnx").graph
            assert [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim] == [batch, *np.shape(given)[1:]]
            assert not {"Shape", "Gather", "If", "Loop", "Scan"} & {node.op_type for node in graph.node}


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this onnxruntime has CUDA")
def test_a_session_that_is_not_on_cuda_is_not_measured():
    with pytest.raises(RuntimeError, match="asked for CUDAExecutionProvider"), pytest.warns(UserWarning):
        ortcuda.measured("mlp", 1, "run", False, device="cuda")


def test_cases_are_named_once_and_differ_in_one_thing():
    cases = ortcuda.cases()
    assert len({case.name for case in cases}) == len(cases) == 46
    for case in cases:
        kept = case.configuration
        assert case.name.startswith(f"{kept['model']}-b{kept['batch']}-{kept['way']}")
        assert ("-tf32" in case.name) == kept["use_tf32"] and ("-nhwc" in case.name) == kept["prefer_nhwc"]
