"""The model is what its script makes, reads digits it never saw, and stays small."""
import hashlib
import importlib.util
import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from course import ROOT

FOLDER = ROOT / "models/digits_mlp"
FACTS = json.loads((FOLDER / "digits_mlp.json").read_text())


def test_files_are_those_that_the_script_wrote():
    for name, fact in FACTS["files"].items():
        data = (FOLDER / name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (fact["bytes"], fact["sha256"])
    assert FACTS["files"]["digits_mlp.onnx"]["bytes"] < 500_000


def test_model_is_the_seeds_network_with_a_dynamic_batch():
    model = onnx.load(FOLDER / "digits_mlp.onnx")
    onnx.checker.check_model(model, full_check=True)
    shapes = {w.name: tuple(w.dims) for w in model.graph.initializer}
    assert shapes == {"hidden.weight": (128, 784), "hidden.bias": (128,), "logits.weight": (10, 128), "logits.bias": (10,)}
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    assert batch.dim_param and not batch.HasField("dim_value")


def test_it_holds_no_path_of_the_machine_that_made_it():
    data = (FOLDER / "digits_mlp.onnx").read_bytes()
    assert not [word for word in (b"/home", b"/root", b"/work", b"/tmp", b"site-packages", b"File \"") if word in data]


def test_heldout_digits_are_read():
    data = np.load(FOLDER / "heldout.npz")
    session = ort.InferenceSession(FOLDER / "digits_mlp.onnx", providers=["CPUExecutionProvider"])
    probabilities, = session.run(None, {"pixels": (data["images"].reshape(-1, 784) / 255).astype(np.float32)})
    right = int((probabilities.argmax(1) == data["labels"]).sum())
    assert right == FACTS["heldout_correct"] and right >= 0.96 * len(data["labels"])
    assert sorted(set(data["labels"].tolist())) == list(range(10))


@pytest.mark.skipif(not all(map(importlib.util.find_spec, ("torch", "sklearn", "onnxscript"))),
                    reason="not run here: training the model again needs torch (make test WITH_TORCH=1)")
def test_training_again_gives_the_same_bytes(tmp_path):
    done = subprocess.run([sys.executable, FOLDER / "make.py", tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("digits_mlp.onnx", "heldout.npz"):
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes(), name
