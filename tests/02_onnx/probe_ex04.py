"""Runs in the submission's process: holds models as objects there, and reads what comes back. For ex04_triage."""
import onnx


def hold(data):
    """A ModelProto of these bytes, which stays in this process."""
    return onnx.load_model_from_string(data)


def look(given, result):
    """(the given model's bytes now, the result's bytes or None, whether they are one object)."""
    is_model = isinstance(result, onnx.ModelProto)
    return given.SerializeToString(deterministic=True), result.SerializeToString(deterministic=True) if is_model else None, result is given
