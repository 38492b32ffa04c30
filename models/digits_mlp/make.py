"""Trains the course's 784-128-10 network on real handwritten digits and exports it to ONNX.

    python models/digits_mlp/make.py [OUT]        (OUT: this folder)

Writes into OUT:
  digits_mlp.onnx   input `pixels` (batch, 784) float32 in [0, 1]; output `probabilities` (batch, 10) float32
  heldout.npz       `images` (360, 28, 28) uint8 and `labels` (360,) int64: the digits it never saw
  digits_mlp.json   accuracy, sizes, versions and SHA-256 of what was written

Data: scikit-learn's `load_digits`, 1,797 handwritten digits of 8x8 pixels (UCI ML Repository, "Optical Recognition
of Handwritten Digits"), resized to 28x28 by bilinear interpolation.

Reproducible to the byte: training runs in float64 over the whole training set at once, so that what differs between
two CPUs stays near 1e-12, and the weights are then rounded to multiples of 2**-12, which removes it. The exporter's
stack traces and node metadata, which hold paths and line numbers of the machine, are taken out.
"""
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import sklearn
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

STEPS, GRID = 150, 2.0**12


class Net(torch.nn.Module):
    """The seed's network, `Dense(128, relu)` then `Dense(10, softmax)`, on rows of 784 pixels."""

    def __init__(self):
        super().__init__()
        self.hidden = torch.nn.Linear(784, 128)
        self.logits = torch.nn.Linear(128, 10)

    def forward(self, pixels):
        return torch.softmax(self.logits(torch.relu(self.hidden(pixels))), dim=-1)


def digits():
    """Train and held-out digits: images (n, 28, 28) uint8 and labels (n,) int64."""
    data = load_digits()
    small = torch.from_numpy(data.images / 16.0)[:, None]
    large = torch.nn.functional.interpolate(small, size=(28, 28), mode="bilinear", align_corners=False)[:, 0]
    images = np.round(large.numpy() * 255).astype(np.uint8)
    return train_test_split(images, data.target.astype(np.int64), test_size=360, random_state=0, stratify=data.target)


def flat(images):
    return torch.from_numpy(images.reshape(len(images), 784) / 255.0)


def train(images, labels):
    torch.manual_seed(0)
    net = Net().double()
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3, weight_decay=1e-4)
    for _ in range(STEPS):
        optimizer.zero_grad()
        probabilities = net(flat(images))
        torch.nn.functional.nll_loss(probabilities.log(), torch.from_numpy(labels)).backward()
        optimizer.step()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.round(parameter * GRID) / GRID)
    return net.float().eval()


def export(net, path):
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        net, (torch.zeros(2, 784),), dynamo=True, opset_version=18, verbose=False,
        input_names=["pixels"], output_names=["probabilities"], dynamic_shapes={"pixels": {0: batch}},
    )
    model = program.model_proto
    del model.metadata_props[:]
    for holder in (model.graph, *model.graph.node, *model.graph.initializer, *model.graph.input,
                   *model.graph.output, *model.graph.value_info):
        holder.doc_string = ""
        del holder.metadata_props[:]
    del model.graph.value_info[:]
    model.graph.name = "digits_mlp"
    model.producer_name, model.producer_version, model.doc_string = "torch", torch.__version__.split("+")[0], ""
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return model


def main(out):
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    train_images, heldout_images, train_labels, heldout_labels = digits()
    net = train(train_images, train_labels)
    with torch.no_grad():
        correct = int((net(flat(heldout_images).float()).argmax(1).numpy() == heldout_labels).sum())
    model = export(net, out / "digits_mlp.onnx")
    np.savez_compressed(out / "heldout.npz", images=heldout_images, labels=heldout_labels)
    facts = {
        "heldout_correct": correct, "heldout_total": len(heldout_labels), "train_total": len(train_labels),
        "opset": model.opset_import[0].version, "ir_version": model.ir_version,
        "torch": torch.__version__.split("+")[0], "scikit-learn": sklearn.__version__, "onnx": onnx.__version__,
        "files": {name: {"bytes": (out / name).stat().st_size,
                         "sha256": hashlib.sha256((out / name).read_bytes()).hexdigest()}
                  for name in ("digits_mlp.onnx", "heldout.npz")},
    }
    (out / "digits_mlp.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps(facts, indent=2))
    if correct < 0.96 * len(heldout_labels):
        sys.exit(f"{correct} of {len(heldout_labels)} held-out digits right: under 96 %")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
