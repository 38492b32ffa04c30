"""The models that are measured, with their inputs and their reference outputs, in a folder.

    python -m course.bench.models FOLDER [NAME ...]        needs torch and onnxruntime; NAME: mlp, resnet50, bert

- ``mlp``: models/digits_mlp, trained, 784-128-10; 128 held-out digits.
- ``resnet50``: He et al. 2016 (stride in the 3x3 convolution, as torchvision's), random weights, images 3x224x224.
- ``bert``: the encoder of BERT-base (12 layers, 768 wide, 12 heads), random weights, 128 tokens a sequence, no mask.

Each leaves FOLDER/NAME/{fp32,fp16,int8}.onnx, inputs.npy (128 of them, seeded, never zeros) and reference.npy: the outputs in
float64. Random weights cost the same time as trained ones; what they cannot show is a task's accuracy, so the error that
is stated for them is the outputs' distance from float64, as a share of how much the outputs differ from input to input.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import onnx

from course import ROOT

INPUTS = 128
SEQUENCE = 128
NAMES = ("mlp", "resnet50", "bert")
BATCHES = (1, 8, 32, 128)
# Of the outputs' spread over the inputs. A wrong layout, a lost layer or another weight gives about 1.
TOLERANCE = {"fp32": 1e-3, "tf32": 3e-2, "fp16": 3e-2, "int8": 0.35}


def torch_model(name, folder=None):
    """The model as a torch module in float32, in evaluation mode, with the weights that FOLDER's graphs hold."""
    import torch

    torch.manual_seed(0)
    module = {"mlp": mlp, "resnet50": resnet50, "bert": bert}[name]()
    if folder is not None and name != "mlp":
        module.load_state_dict(torch.load(Path(folder) / name / "weights.pt", weights_only=True))
    return module.eval()


def mlp():
    import torch
    from onnx import numpy_helper
    from torch import nn

    weights = {t.name: numpy_helper.to_array(t) for t in onnx.load(ROOT / "models/digits_mlp/digits_mlp.onnx").graph.initializer}
    layers = [nn.Linear(784, 128), nn.Linear(128, 10)]
    for layer in layers:
        shape = tuple(layer.weight.shape)
        matrix = next(a for a in weights.values() if a.shape in (shape, shape[::-1]) and a.ndim == 2)
        bias = next(a for a in weights.values() if a.shape == (shape[0],))
        layer.weight.data = torch.from_numpy(np.ascontiguousarray(matrix if matrix.shape == shape else matrix.T).copy())
        layer.bias.data = torch.from_numpy(bias.copy())
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.Softmax(dim=1))


def resnet50():
    from torch import nn

    class Block(nn.Module):
        def __init__(self, wide, narrow, stride):
            super().__init__()
            def conv(a, b, k, s=1):
                return [nn.Conv2d(a, b, k, s, k // 2, bias=False), nn.BatchNorm2d(b)]
            self.main = nn.Sequential(*conv(wide, narrow, 1), nn.ReLU(), *conv(narrow, narrow, 3, stride), nn.ReLU(), *conv(narrow, 4 * narrow, 1))
            self.side = nn.Sequential(*conv(wide, 4 * narrow, 1, stride)) if stride > 1 or wide != 4 * narrow else nn.Identity()
            self.last = nn.ReLU()

        def forward(self, x):
            return self.last(self.main(x) + self.side(x))

    layers, wide = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)], 64
    for number, (narrow, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for block in range(blocks):
            layers.append(Block(wide, narrow, 2 if number and not block else 1))
            wide = 4 * narrow
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))


def bert():
    import torch
    from torch import nn

    width, heads = 768, 12

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
            self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-12), nn.LayerNorm(width, eps=1e-12)
            self.act = nn.GELU()

        def split(self, x):
            return x.reshape(-1, SEQUENCE, heads, width // heads).permute(0, 2, 1, 3)

        def forward(self, x):
            q, k, v = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
            if explicit[0]:  # written out for the ONNX graph, where engines look for this pattern
                scores = torch.matmul(q, k.transpose(-1, -2)) / (width // heads) ** 0.5
                mixed = torch.matmul(torch.softmax(scores, dim=-1), v)
            else:
                mixed = nn.functional.scaled_dot_product_attention(q, k, v)
            x = self.norm1(x + self.out(mixed.permute(0, 2, 1, 3).reshape(-1, SEQUENCE, width)))
            return self.norm2(x + self.down(self.act(self.up(x))))

    explicit = [False]

    class Bert(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.places = nn.Embedding(30522, width), nn.Embedding(512, width)
            self.norm = nn.LayerNorm(width, eps=1e-12)
            self.layers = nn.Sequential(*(Layer() for _ in range(12)))
            self.explicit = explicit

        def forward(self, ids):
            return self.layers(self.norm(self.words(ids) + self.places.weight[:SEQUENCE]))

    return Bert()


def inputs(name):
    """128 inputs of the model; seeded. Digits; images of random smooth patterns; random token ids (int32)."""
    rng = np.random.default_rng(7)
    if name == "mlp":
        return np.load(ROOT / "models/digits_mlp/heldout.npz")["images"][:INPUTS].reshape(INPUTS, 784).astype(np.float32) / 255
    if name == "bert":
        return rng.integers(0, 30522, (INPUTS, SEQUENCE)).astype(np.int32)
    colour, contrast = rng.standard_normal((INPUTS, 3, 1, 1)), rng.uniform(0.2, 1.5, (INPUTS, 1, 1, 1))
    coarse = rng.standard_normal((INPUTS, 3, 7, 7)).repeat(32, 2).repeat(32, 3)
    fine = 0.3 * rng.standard_normal((INPUTS, 3, 224, 224), dtype=np.float32)
    return (colour + contrast * (coarse + fine)).astype(np.float32)


def prepare(folder, name):
    """Writes FOLDER/NAME, unless it is there whole; on a GPU where torch has one."""
    import torch

    home = Path(folder) / name
    if (home / "done.json").exists():
        return
    home.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    data = inputs(name)
    np.save(home / "inputs.npy", data)
    module = torch_model(name)
    given = torch.from_numpy(data)
    if name == "resnet50":  # batch norms learn these inputs' statistics, so that activations stay in range in every format
        for part in module.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.momentum = 1.0
            elif hasattr(part, "main"):  # a branch adds a quarter, as in trained networks, whose last norms are small
                part.main[-1].weight.data.fill_(0.25)
        with torch.no_grad():
            module.train().to(device)(given[:32].to(device))
        module.eval().cpu()
    if name != "mlp":
        torch.save(module.state_dict(), home / "weights.pt")
    with torch.no_grad():
        exact = torch_model(name, folder).double().to(device)
        rows = [exact(part.to(device).double() if name != "bert" else part.to(device)).cpu().numpy() for part in given.split(16)]
    np.save(home / "reference.npy", np.concatenate(rows).astype(np.float64 if name == "mlp" else np.float32))
    if name == "mlp":
        graph = onnx.load(ROOT / "models/digits_mlp/digits_mlp.onnx")
        onnx.save(graph, home / "fp32.onnx")
    else:
        module = module.cpu()
        if name == "bert":
            module.explicit[0] = True
        torch.onnx.export(module, (given[:2],), str(home / "fp32.onnx"), opset_version=17, dynamo=False, do_constant_folding=True,
                          input_names=["input"], output_names=["output"], dynamic_axes={"input": {0: "batch"}, "output": {0: "batch"}})
    half(home)
    quantize(home, name, data)
    (home / "done.json").write_text(json.dumps({"torch": torch.__version__, "onnx": onnx.__version__}), encoding="utf-8")


def join_projections(model):
    """Joins MatMuls by constants of one size that read the same tensor, each with its Add, into one MatMul, Add and Split, in place.

    So query, key and value of an attention layer become one matrix product. Returns how many groups were joined.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes = list(graph.node)
    users: dict[str, list[int]] = {}
    for place, node in enumerate(nodes):
        for name in node.input:
            users.setdefault(name, []).append(place)
    groups: dict[tuple, list[tuple[int, int, str]]] = {}
    for place, node in enumerate(nodes):
        after = users.get(node.output[0], [])
        if node.op_type == "MatMul" and node.input[1] in weights and len(after) == 1 and nodes[after[0]].op_type == "Add":
            for bias in set(nodes[after[0]].input) & set(weights):
                groups.setdefault((node.input[0], tuple(weights[node.input[1]].dims)), []).append((place, after[0], bias))
    made, gone = {}, set()
    for (source, _), members in groups.items():
        if len(members) > 1:
            name = f"joined_{len(made)}"
            arrays = {"weight": np.concatenate([numpy_helper.to_array(weights[nodes[place].input[1]]) for place, _, _ in members], axis=1),
                      "bias": np.concatenate([numpy_helper.to_array(weights[bias]) for _, _, bias in members]),
                      "sizes": np.array([weights[bias].dims[0] for _, _, bias in members], np.int64)}
            graph.initializer.extend(numpy_helper.from_array(array, f"{name}_{part}") for part, array in arrays.items())
            made[members[0][0]] = [
                helper.make_node("MatMul", [source, f"{name}_weight"], [f"{name}_product"]),
                helper.make_node("Add", [f"{name}_product", f"{name}_bias"], [f"{name}_sum"]),
                helper.make_node("Split", [f"{name}_sum", f"{name}_sizes"], [nodes[after].output[0] for _, after, _ in members], axis=-1)]
            gone |= {place for member in members for place in member[:2]}
    new = [copied for place, node in enumerate(nodes) for copied in [*made.get(place, []), *([] if place in gone else [node])]]
    del graph.node[:]
    graph.node.extend(new)
    return len(made)


def half(home):
    """FP16 graph with FP16 inputs and outputs, by ONNX Runtime's converter."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    graph = convert_float_to_float16(onnx.load(home / "fp32.onnx"), keep_io_types=False, disable_shape_infer=True, op_block_list=[])
    onnx.save(graph, home / "fp16.onnx")


def quantize(home, name, data):
    """Explicit INT8: Q/DQ around activations (per tensor) and weights (per channel), symmetric, min-max over 16 inputs."""
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            key = onnx.load(home / "fp32.onnx", load_external_data=False).graph.input[0].name
            self.rows = iter([{key: data[n : n + 8]} for n in (0, 8)])

        def get_next(self):
            return next(self.rows, None)

    kinds = {"mlp": ["Gemm"], "resnet50": ["Conv", "Gemm", "Add"], "bert": ["MatMul"]}[name]
    if os.environ.get("BENCH_INT8_KINDS"):  # where an engine cannot be built from these
        kinds = os.environ["BENCH_INT8_KINDS"].split(",")
    (home / "int8.json").write_text(json.dumps(kinds), encoding="utf-8")
    quantize_static(
        str(home / "fp32.onnx"), str(home / "int8.onnx"), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QInt8, weight_type=QuantType.QInt8, op_types_to_quantize=kinds,
        calibrate_method=CalibrationMethod.MinMax,
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False,
                       "AddQDQPairToWeight": True, "MatMulConstBOnly": True,
                       # TensorRT 8.6.0 cannot build a fused Add and ReLU with two quantized results, as a pair for each reader of a block's output gives
                       "DedicatedQDQPair": name != "resnet50"},
    )


def accuracy(name, precision, outputs, reference, labels=None):
    """Error of ``outputs`` (batch, ...) against float64: distance over the reference's spread over its 128 inputs.

    For the MLP also how many digits are read right, and how many labels differ from float64's.
    """
    batch = len(outputs)
    got = np.asarray(outputs, dtype=np.float64).reshape(batch, -1)
    if got.shape[1] != reference.reshape(len(reference), -1).shape[1]:
        return {"error": None, "tolerance": TOLERANCE[precision], "problem": f"outputs have shape {np.shape(outputs)}, the reference {reference.shape}"}
    want = reference.reshape(len(reference), -1).astype(np.float64)
    spread = np.sqrt(((want - want.mean(0)) ** 2).sum(1).mean())
    error = np.sqrt(((got - want[:batch]) ** 2).sum(1).mean()) / spread
    found = {"error": float(f"{error:.6g}") if np.isfinite(error) else None, "tolerance": TOLERANCE[precision], "inputs": batch,
             "measure": "root mean square distance from float64 over the spread of the float64 outputs between inputs"}
    if name != "bert":
        found["same_top_class"] = int((got.argmax(1) == want[:batch].argmax(1)).sum())
    if labels is not None:
        found["labels_right"] = int((got.argmax(1) == labels[:batch]).sum())
    return found


def main():
    if len(sys.argv) < 2 or not set(sys.argv[2:]) <= set(NAMES):
        sys.exit(f"Give a folder, and models out of {', '.join(NAMES)}: python -m course.bench.models FOLDER [NAME ...]")
    for name in sys.argv[2:] or NAMES:
        prepare(sys.argv[1], name)
        print(f"{name}: ready in {Path(sys.argv[1]) / name}", flush=True)


if __name__ == "__main__":
    main()
