"""Tells the parser's first error alone.

fails: test_every_error_of_the_parser
says: does not mention 'Unheard'
"""
import os

try:
    import tensorrt as trt
except ImportError:
    import tensorrt_rtx as trt


def build_engine(onnx_path, engine_path, batches=(1, 8, 32)):
    low, best, high = batches
    if not 1 <= low <= best <= high:
        raise ValueError(f"batches out of order: {batches}")
    with open(onnx_path, "rb") as file:
        model = file.read()
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    explicit = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
    network = builder.create_network(0 if explicit is None else 1 << int(explicit))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model) or not network.num_inputs or not network.num_outputs:
        raise ValueError(str(parser.get_error(0)) if parser.num_errors else "no ONNX model")
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        if tensor.shape[0] != -1 or -1 in tuple(tensor.shape)[1:]:
            raise ValueError(f"{tensor.name}: {tuple(tensor.shape)}: the batch, and nothing else, has to be dynamic")
        rest = tuple(tensor.shape)[1:]
        profile.set_shape(tensor.name, (low, *rest), (best, *rest), (high, *rest))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError("no engine was found")
    with open(engine_path, "wb") as file:
        file.write(plan)
