"""Three small models made on the spot from fixed seeds, with no torch: the digits MLP, a residual network, a transformer block.

Every suite that uses them has the same weights and inputs; the answer to compare with is computed here in NumPy, in float64.
"""

from __future__ import annotations

import functools
import math
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from course import ROOT
from course.bench import models

INPUTS = 32  # of every model; the spread of the reference over them is what errors are measured against
BATCHES = (1, 32)
TITLES = {"mlp": "MLP 784-128-10", "cnn": "residual network, 13 convolutions, images 3x32x32", "block": "transformer block, 512 wide, 8 heads, 128 tokens"}


class Net:
    """Builds an ONNX graph node by node, and computes the same in float64 as it goes: every method returns (name, values)."""

    def __init__(self, seed, x):
        self.rng, self.nodes, self.weights = np.random.default_rng(seed), [], {}
        self.source = ("x", x.astype(np.float64))

    def node(self, kind, names, value, **attributes):
        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, names, [name], **attributes))
        return name, value

    def weight(self, *shape, scale):
        """(name, values in float64) of a weight that is stored in float32."""
        name, array = f"w{len(self.weights)}", self.rng.normal(0, scale, shape).astype(np.float32)
        self.weights[name] = array
        return name, array.astype(np.float64)

    def constant(self, array):
        name = f"w{len(self.weights)}"
        self.weights[name] = array
        return name

    def conv(self, x, wide, size=3, stride=1, scale=1.0):
        deep = x[1].shape[1]
        w, b = self.weight(wide, deep, size, size, scale=scale * math.sqrt(2 / (deep * size * size))), self.weight(wide, scale=0.1)
        pad = size // 2
        padded = np.pad(x[1], ((0, 0), (0, 0), (pad, pad), (pad, pad)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(2, 3))[:, :, ::stride, ::stride]
        value = np.tensordot(windows, w[1], axes=([1, 4, 5], [1, 2, 3])).transpose(0, 3, 1, 2) + b[1][:, None, None]
        return self.node("Conv", [x[0], w[0], b[0]], value, kernel_shape=[size, size], strides=[stride, stride], pads=[pad] * 4)

    def relu(self, x):
        return self.node("Relu", [x[0]], np.maximum(x[1], 0))

    def add(self, a, b):
        return self.node("Add", [a[0], b[0]], a[1] + b[1])

    def linear(self, x, wide):
        w, b = self.weight(x[1].shape[-1], wide, scale=1 / math.sqrt(x[1].shape[-1])), self.weight(wide, scale=0.1)
        return self.add(self.node("MatMul", [x[0], w[0]], x[1] @ w[1]), b)

    def norm(self, x):
        g, b = self.weight(x[1].shape[-1], scale=0.3), self.weight(x[1].shape[-1], scale=0.1)
        mean, spread = x[1].mean(-1, keepdims=True), x[1].var(-1, keepdims=True)
        return self.node("LayerNormalization", [x[0], g[0], b[0]], (x[1] - mean) / np.sqrt(spread + 1e-5) * g[1] + b[1], axis=-1, epsilon=1e-5)

    def reshape(self, x, shape):
        value = x[1].reshape([x[1].shape[n] if size == 0 else size for n, size in enumerate(shape)])
        return self.node("Reshape", [x[0], self.constant(np.array(shape, np.int64))], value)

    def turn(self, x, order):
        return self.node("Transpose", [x[0]], x[1].transpose(order), perm=order)

    def times(self, x, factor):
        return self.node("Mul", [x[0], self.constant(np.array(factor, np.float32))], x[1] * np.float64(np.float32(factor)))

    def save(self, path, last, batch):
        """Writes the graph for a fixed batch."""
        given, result = self.source[1].shape, last[1].shape
        graph = helper.make_graph(self.nodes, path.stem, [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, *given[1:]])],
                                  [helper.make_tensor_value_info(last[0], TensorProto.FLOAT, [batch, *result[1:]])],
                                  [numpy_helper.from_array(array, name) for name, array in self.weights.items()])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, path)


def residual_network(net):
    x = net.relu(net.conv(net.source, 64))
    for stage, wide in enumerate((64, 128, 256)):
        for place in range(2):
            stride = 2 if stage and not place else 1
            side = net.conv(x, wide, size=1, stride=stride) if stride == 2 else x
            x = net.relu(net.add(net.conv(net.relu(net.conv(x, wide, stride=stride)), wide, scale=0.5), side))
    pooled = net.node("ReduceMean", [x[0]], x[1].mean((2, 3)), axes=[2, 3], keepdims=0)
    return net.linear(pooled, 10)


def transformer_block(net, heads=8):
    x, (_, length, width) = net.source, net.source[1].shape
    normed = net.norm(x)
    query, key, value = (net.reshape(net.linear(normed, width), [0, length, heads, width // heads]) for _ in range(3))
    query, key, value = net.turn(query, [0, 2, 1, 3]), net.turn(key, [0, 2, 3, 1]), net.turn(value, [0, 2, 1, 3])
    scores = net.times(net.node("MatMul", [query[0], key[0]], query[1] @ key[1]), 1 / math.sqrt(width // heads))
    shares = np.exp(scores[1] - scores[1].max(-1, keepdims=True))
    shares = net.node("Softmax", [scores[0]], shares / shares.sum(-1, keepdims=True), axis=-1)
    mixed = net.turn(net.node("MatMul", [shares[0], value[0]], shares[1] @ value[1]), [0, 2, 1, 3])
    x = net.add(x, net.linear(net.reshape(mixed, [0, length, width]), width))
    up = net.linear(net.norm(x), 4 * width)
    erf = np.frompyfunc(math.erf, 1, 1)
    bent = net.times(up, 1 / math.sqrt(2))
    inside = net.node("Erf", [bent[0]], erf(bent[1]).astype(np.float64))
    one = net.constant(np.array(1, np.float32))
    gate = net.times(net.node("Add", [inside[0], one], inside[1] + 1), 0.5)
    return net.add(x, net.linear(net.node("Mul", [up[0], gate[0]], up[1] * gate[1]), width))


@functools.cache
def prepared(name):
    """(folder with b1.onnx and b32.onnx, inputs (32, …) float32, reference outputs in float64); removed when the process ends."""
    home = tempfile.TemporaryDirectory(prefix="nets-")
    folder = Path(home.name)
    if name == "mlp":
        from course.bench.count import fix_batch
        from course.bench.cpu import _float64

        given = models.inputs("mlp")[:INPUTS]
        for batch in BATCHES:
            onnx.save(fix_batch(onnx.load(ROOT / "models/digits_mlp/digits_mlp.onnx"), batch), folder / f"b{batch}.onnx")
        return home, given, _float64(given)
    rng = np.random.default_rng(11)
    if name == "cnn":  # patches of colour with some noise, of different colour and contrast: images differ from each other, as real ones do
        colour, contrast = rng.standard_normal((INPUTS, 3, 1, 1)), rng.uniform(0.2, 2.0, (INPUTS, 1, 1, 1))
        patches = rng.standard_normal((INPUTS, 3, 4, 4)).repeat(8, 2).repeat(8, 3) + 0.3 * rng.standard_normal((INPUTS, 3, 32, 32))
        given = 2 * colour + contrast * patches
    else:
        given = rng.standard_normal((INPUTS, 128, 512))
    given = given.astype(np.float32)
    net = Net(5, given)
    last = {"cnn": residual_network, "block": transformer_block}[name](net)
    for batch in BATCHES:
        net.save(folder / f"b{batch}.onnx", last, batch)
    return home, given, last[1]
