"""Operations and bytes of an ONNX graph, counted from the graph alone.

    python -m course.bench.count FOLDER      counts the models that course.bench.models has put there, into measurements/counts.json

Source of the formulas: the operators' definitions in the ONNX standard; one multiplication and addition are two operations.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from math import prod
from pathlib import Path
from typing import Any

import onnx
from onnx import helper, numpy_helper, shape_inference

from course import ROOT
from course.bench import models


@dataclasses.dataclass(frozen=True)
class Count:
    """``operations``: of Conv, Gemm and MatMul. ``weights``, ``inputs``, ``outputs``: bytes, each moved once; of a table that only
    Gather reads, as many rows as are picked.
    ``unfused``: bytes if every node read its inputs from memory and wrote its outputs to it."""

    operations: int
    weights: int
    inputs: int
    outputs: int
    unfused: int
    nodes: int

    @property
    def compulsory(self) -> int:
        """The fewest bytes that have to move: weights, inputs and outputs once each."""
        return self.weights + self.inputs + self.outputs


def fix_batch(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """A copy whose inputs and outputs have ``batch`` as their first dimension."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in [*fixed.graph.input, *fixed.graph.output]:
        first = value.type.tensor_type.shape.dim[0]
        first.ClearField("dim_param")
        first.dim_value = batch
    del fixed.graph.value_info[:]
    return fixed


def _size(dtype: int) -> int:
    return helper.tensor_dtype_to_np_dtype(dtype).itemsize


def count(model: onnx.ModelProto, batch: int) -> Count:
    """What one run at ``batch`` costs. Raises ValueError where a tensor's shape cannot be inferred."""
    model = shape_inference.infer_shapes(fix_batch(model, batch), data_prop=True)
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    shapes: dict[str, tuple[list[int], int]] = {
        name: (list(tensor.dims), tensor.data_type) for name, tensor in weights.items()
    }
    for value in [*graph.value_info, *graph.input, *graph.output]:
        tensor = value.type.tensor_type
        shapes[value.name] = ([dim.dim_value for dim in tensor.shape.dim], tensor.elem_type)
    constants = set()
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    array = numpy_helper.to_array(attribute.t)
                    shapes[node.output[0]] = (list(array.shape), attribute.t.data_type)
            constants.add(node.output[0])

    def bytes_of(name: str) -> int:
        if name not in shapes:
            raise ValueError(f"the shape of {name!r} could not be inferred at batch {batch}")
        dims, dtype = shapes[name]
        return prod(dims) * _size(dtype)

    operations = unfused = nodes = 0
    for node in graph.node:
        if node.op_type == "Constant":
            continue
        nodes += 1
        unfused += sum(bytes_of(name) for name in [*node.input, *node.output] if name)
        out = shapes[node.output[0]][0]
        if node.op_type == "Conv":
            kernel = shapes[node.input[1]][0]  # (out channels, in channels of a group, *spatial)
            operations += 2 * prod(out) * prod(kernel[1:])
        elif node.op_type == "MatMul":
            operations += 2 * prod(out) * shapes[node.input[0]][0][-1]
        elif node.op_type == "Gemm":
            across = next((a.i for a in node.attribute if a.name == "transA"), 0)
            operations += 2 * prod(out) * shapes[node.input[0]][0][0 if across else 1]
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)

    def read(name: str) -> int:
        nodes = users.get(name, [])
        if nodes and all(node.op_type == "Gather" and node.input[0] == name for node in nodes):
            return min(bytes_of(name), sum(bytes_of(node.output[0]) for node in nodes))
        return bytes_of(name)

    inputs = {value.name for value in graph.input} - set(weights)
    return Count(
        operations, sum(map(read, weights)), sum(map(bytes_of, sorted(inputs))), sum(bytes_of(v.name) for v in graph.output), unfused, nodes
    )


def count_file(path: Path, batch: int) -> Count:
    return count(onnx.load(path), batch)


def counts(folder: Path) -> dict[str, Any]:
    """{model: {storage: {batch: {operations, bytes, ...}}}} of the models in ``folder``; ``bytes`` is what has to move at least."""
    found: dict[str, Any] = {}
    for name in models.NAMES:
        for storage in ("fp32", "fp16"):
            model = onnx.load(folder / name / f"{storage}.onnx")
            for batch in models.BATCHES:
                one = count(model, batch)
                found.setdefault(name, {}).setdefault(storage, {})[str(batch)] = {
                    "operations": one.operations, "bytes": one.compulsory, "unfused_bytes": one.unfused, "nodes": one.nodes}
    return found


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit("Give the folder of the models: python -m course.bench.models FOLDER, then python -m course.bench.count FOLDER")
    target = ROOT / "measurements/counts.json"
    target.write_text(json.dumps(counts(Path(sys.argv[1])), indent=1) + "\n", encoding="utf-8")
    print(f"wrote {target.relative_to(ROOT)}")
