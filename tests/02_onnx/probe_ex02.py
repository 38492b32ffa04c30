"""Runs in the submission's process, before it: hands models in and out as bytes. For 02_onnx/ex02_fold_conv_bn."""
import sys

import onnx


def fold(data):
    """Calls the submission's fold_batch_norms with a model; what it returned, and whether the given model changed."""
    model = onnx.load_model_from_string(data)
    before = model.SerializeToString(deterministic=True)
    answer = sys.modules["submission"].fold_batch_norms(model)
    report = {"changed": model.SerializeToString(deterministic=True) != before, "pair": isinstance(answer, tuple) and len(answer) == 2,
              "type": type(answer).__name__}
    if report["pair"]:
        folded, kept = answer
        report |= {"same": folded is model, "type": type(folded).__name__, "kept": kept}
        if isinstance(folded, onnx.ModelProto):
            report["model"] = folded.SerializeToString(deterministic=True)
    return report


def refuse(data, external=False):
    """Calls fold_batch_norms with something that it has to refuse: a model as bytes, or a text."""
    model = onnx.load_model_from_string(data) if isinstance(data, bytes) else data
    if external:
        for tensor in model.graph.initializer:
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.ClearField("raw_data")
            tensor.external_data.add(key="location", value="weights.bin")
    return sys.modules["submission"].fold_batch_norms(model)
