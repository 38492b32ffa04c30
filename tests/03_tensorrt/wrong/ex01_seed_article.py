"""The seed article's call, which never existed.

fails: test_digits_engine_is_built
says: raised AttributeError
"""
import numpy as np

try:
    import tensorrt as trt
except ImportError:
    import tensorrt_rtx as trt


def build_engine(onnx_path, engine_path, batches=(1, 8, 32)):
    engine = trt.tensorrt.engine_from_tensorflow(  # TensorRT never
        onnx_path, max_batch_size=32, max_workspace_size=(1 << 20), explicit_batch_dim=False)
    with open(engine_path, "wb") as file:
        file.write(engine.serialize())
