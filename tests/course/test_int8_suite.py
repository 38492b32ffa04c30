"""The suite int8 without a GPU: its models, their float64 oracles, and the Q/DQ graphs that it measures."""
import numpy as np
import onnx
import onnxruntime as ort
import pytest

from course.bench import int8, models


@pytest.fixture
def small(monkeypatch):
    """The suite with small models of the same make."""
    monkeypatch.setattr(int8, "WIDTH", 64)
    monkeypatch.setattr(int8, "CONVOLUTIONS", ((3, 8, 2), (8, 8, 1), (8, 16, 2)))
    int8.prepared.cache_clear()
    yield
    int8.prepared.cache_clear()


def outputs(model, inputs):
    onnx.checker.check_model(model, full_check=True)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: inputs})[0]


@pytest.mark.parametrize("name, batch", [("digits", 360), ("wide", 32), ("conv", 8)])
def test_oracles_agree_with_onnx_runtime_and_int8_is_near(small, name, batch):
    model, highest, reference = int8.prepared(name)
    for precision, most in (("tf32", 1e-5), ("int8", models.TOLERANCE["int8"])):
        graph = int8.onnx_model(name, precision, batch)
        found = models.accuracy(name, precision, outputs(graph, model.inputs[:batch]), reference, model.labels)
        assert found["error"] <= most, f"{name} in {precision}: {found}"
        products = [node for node in graph.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
        pairs = sum(node.op_type == "QuantizeLinear" for node in graph.graph.node)
        assert pairs == (2 * len(products) if precision == "int8" else 0)
    if model.labels is not None:
        assert found["labels_right"] >= 345
    assert len(highest) == len(products)


def test_the_parser_of_8_needs_the_kernels_shape(small):
    for node in int8.onnx_model("conv", "int8", 1).graph.node:
        if node.op_type == "Conv":
            assert any(a.name == "kernel_shape" for a in node.attribute), node


def test_stored_weights_compute_the_same():
    model, highest, _ = int8.prepared("digits")
    graph = model.graph(60)
    apart = [outputs(int8.insert_qdq(graph, highest, stored=stored), model.inputs[:60]) for stored in (False, True)]
    assert np.abs(apart[0] - apart[1]).max() < 1e-6
    assert len(int8.insert_qdq(graph, highest, stored=True).SerializeToString()) < 0.3 * len(graph.SerializeToString())


def test_skipped_nodes_stay_and_the_model_too():
    model, highest, _ = int8.prepared("digits")
    graph = model.graph(1)
    before, first = graph.SerializeToString(), next(n.name for n in graph.graph.node if n.op_type == "Gemm")
    made = int8.insert_qdq(graph, highest, skip=(first,))
    assert graph.SerializeToString() == before
    assert sum(n.op_type == "QuantizeLinear" for n in made.graph.node) == 2
    assert next(n for n in made.graph.node if n.name == first) == next(n for n in graph.graph.node if n.name == first)


def test_tensorrt_for_rtx_multiplies_in_int8(small):
    trt = pytest.importorskip("tensorrt_rtx")

    class Log(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)
            self.text = ""

        def log(self, severity, text):
            if text.startswith("Layers:"):
                self.text = text

    for name, kinds in (("wide", ("gemm",)), ("conv", ("gemm", "correlation"))):
        log = Log()
        builder = trt.Builder(log)
        network = builder.create_network(0)
        assert trt.OnnxParser(network, log).parse(int8.onnx_model(name, "int8", 8).SerializeToString())
        config = builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        assert builder.build_serialized_network(network, config) is not None
        lines = [line for line in log.text.splitlines() if any(f"LayerType: {kind}," in line for kind in kinds)]
        reads = [line.split("Inputs: [")[1].split("Constants: [")[0] for line in lines]
        assert len(reads) == (int8.LAYERS if name == "wide" else len(int8.CONVOLUTIONS) + 1)
        assert all("Datatype: Int8" in part for part in reads), reads


def test_cases_have_names_of_their_own():
    names = [case.name for case in int8.cases()]
    assert len(set(names)) == len(names) == 18
