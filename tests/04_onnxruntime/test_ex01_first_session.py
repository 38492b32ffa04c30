"""Grader of 04_onnxruntime/ex01_first_session: models made here from seeds, answers from NumPy in float64."""
import contextlib
import math
import re
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from course import ROOT
from course.codec import Opaque
from course.exercises import gpu_problem
from course.grading import Raised, Wrong, show, write_call

EXERCISE = "04_onnxruntime/ex01_first_session"
PROBE = "probe_ex01.py"
# With a GPU, loading CUDA's libraries counts too: seconds, and gigabytes of resident memory.
LIMITS = {"call_seconds": 10.0, "memory_gib": 2.0} if gpu_problem("onnxruntime") else {"call_seconds": 60.0, "memory_gib": 8.0}

DIGITS = ROOT / "models" / "digits_mlp"
ONNX_TYPES = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE, "float16": TensorProto.FLOAT16}
TOLERANCE = {"float32": 1e-4, "float64": 1e-4, "float16": 5e-3}  # of a probability, by the model's own dtype
FALLBACK = "the session runs on another provider without a word"


# ---- models and what they must answer ------------------------------------------------------------------------------

def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@dataclass
class Model:
    """A two-layer network: its file, and in NumPy float64 what it computes."""
    path: str
    weights: tuple  # W1 (features, hidden), b1, W2 (hidden, classes), b2
    batch: object = "batch"  # an int: fixed
    shape: tuple = (784,)  # of one image as the model takes it
    dtype: str = "float32"
    input_name: str = "pixels"
    outputs: tuple = ("probabilities",)

    @property
    def features(self):
        return math.prod(self.shape)

    @property
    def classes(self):
        return self.weights[2].shape[1]

    def probabilities(self, pixels):
        """(n, classes) float64 for pixels (n, ...) that are scaled already."""
        w1, b1, w2, b2 = (np.asarray(w, np.float64) for w in self.weights)
        rows = np.asarray(pixels).astype(self.dtype).astype(np.float64).reshape(len(pixels), -1)
        return softmax(np.maximum(rows @ w1 + b1, 0) @ w2 + b2)

    def __str__(self):
        return f"model with input {self.input_name!r} {(self.batch, *self.shape)} {self.dtype}, outputs {list(self.outputs)}"


def make(folder, seed, shape=(784,), classes=10, batch="batch", dtype="float32", input_name="pixels",
         output_name="probabilities", before=(), after=(), hidden=16):
    """Writes a model with seeded weights. before, after: (name, kind) of further outputs, kinds as in `extra`."""
    rng, features = np.random.default_rng(seed), math.prod(shape)
    weights = (rng.normal(0, 2.5 / math.sqrt(features), (features, hidden)), rng.normal(0, 0.3, hidden),
               rng.normal(0, 2.0 / math.sqrt(hidden), (hidden, classes)), rng.normal(0, 0.3, classes))
    weights = tuple(w.astype(np.float32) for w in weights)
    kind, node = ONNX_TYPES[dtype], helper.make_node
    nodes = [node("Cast", [input_name], ["_x32"], to=TensorProto.FLOAT), node("Flatten", ["_x32"], ["_x"], axis=1),
             node("Gemm", ["_x", "_w1", "_b1"], ["_a"]), node("Relu", ["_a"], ["_h"]),
             node("Gemm", ["_h", "_w2", "_b2"], ["_z"]), node("Softmax", ["_z"], ["_p32"], axis=1),
             node("Cast", ["_p32"], [output_name], to=kind)]
    wanted = helper.make_tensor_value_info(output_name, kind, [batch, classes])

    def extra(name, what):
        if what == "labels":
            nodes.append(node("ArgMax", ["_p32"], [name], axis=1, keepdims=0))
            return helper.make_tensor_value_info(name, TensorProto.INT64, [batch])
        if what == "best":
            nodes.append(node("ReduceMax", ["_p32"], [name], axes=[1], keepdims=0))
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch])
        if what == "top2":
            nodes.append(node("TopK", ["_p32", "_two"], [f"_{name}_values", name], axis=1))
            return helper.make_tensor_value_info(name, TensorProto.INT64, [batch, 2])
        nodes.append(node("Unsqueeze", ["_p32", "_one"], [name]))
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 1, classes])

    outputs = [*(extra(*e) for e in before), wanted, *(extra(*e) for e in after)]
    constants = [numpy_helper.from_array(w, n) for w, n in zip(weights, ("_w1", "_b1", "_w2", "_b2"))]
    constants += [numpy_helper.from_array(np.array([v], np.int64), n) for v, n in ((1, "_one"), (2, "_two"))]
    graph = helper.make_graph(nodes, "grader", [helper.make_tensor_value_info(input_name, kind, [batch, *shape])],
                              outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    path = folder / f"model_{seed}.onnx"
    onnx.save(model, path)
    return Model(str(path), weights, batch, tuple(shape), dtype, input_name, tuple(o.name for o in outputs))


def two_dynamic(folder):
    """A model whose batch and length are both dynamic, for `describe` alone."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "length", 3]) for name in ("signal", "rectified")]
    graph = helper.make_graph([helper.make_node("Relu", ["signal"], ["rectified"])], "grader", ends[:1], ends[1:])
    path = folder / "two_dynamic.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return Model(str(path), (), "n", ("length", 3), "float32", "signal", ("rectified",))


def digits():
    """The course's model, with its weights read from the file, and its held-out digits."""
    path = DIGITS / "digits_mlp.onnx"
    graph = onnx.load(path).graph
    values = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    weights = []
    for gemm in (n for n in graph.node if n.op_type == "Gemm"):
        w = values[gemm.input[1]]
        weights += [w.T if any(a.name == "transB" and a.i for a in gemm.attribute) else w, values[gemm.input[2]]]
    with np.load(DIGITS / "heldout.npz") as data:
        return Model(str(path), tuple(weights)), data["images"], data["labels"]


def pictures(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def scaled(images):
    return images / 255.0 if images.dtype == np.uint8 else images.astype(np.float64)


# ---- asking a submission and reading its answer ---------------------------------------------------------------------

RAISED_BECAUSE = (  # words of ONNX Runtime's error, the mistake behind it
    (r"Unexpected input data type", "The array's dtype is not the one that the model's input declares: ask get_inputs()[0].type."),
    (r"missing from input feed|Invalid (Feed )?Input Name", "The input's name is taken on trust: this model's input has another name."),
    (r"Invalid Output Name", "The output's name is taken on trust: this model's output has another name."),
    (r"invalid dimensions[\s\S]*index: 0 ", "The model's batch is fixed and got another number of rows: split, and pad the last batch."),
    (r"Invalid rank for input|invalid dimensions", "The array does not have the shape that the model's input declares."),
)


def ask(submission, model, images, session=None):
    """predict's answer, or `Wrong` with the mistake behind the error that it raised."""
    session = session or submission.probe("open_plain", model.path)
    submission.probe("reset")
    call = f"{describe_call(session, images)}  ({model})"
    try:
        return submission.attempt("predict", session, images), call
    except Raised as error:
        if error.kind == "NotImplementedError":
            raise Wrong("predict is not written yet.", call=error.call, got=error.text) from None
        at = f" (your {error.where})" if error.where else ""
        for words, mistake in RAISED_BECAUSE:
            if re.search(words, error.text, re.IGNORECASE):
                raise Wrong(f"{mistake} predict raised {error.kind}{at}.", call=call, got=error.text) from None
        hint = " Everything that your answer uses belongs into the graded cells." if error.kind == "NameError" else ""
        raise Wrong(f"predict raised {error.kind}{at}.{hint}", call=call, got=error.text) from None


def describe_call(session, images):
    return write_call("predict", (session, images), {})


def explain(model, images, got):
    """The mistake that turns `images` into the probabilities `got`, if it is one of the usual ones."""
    right, x = model.probabilities(scaled(images)), scaled(images)
    peak = images.max() if images.size and images.max() else 1
    guesses = []
    if images.dtype == np.uint8:
        guesses += [("The pixels are not scaled: the model wants 0 to 1, uint8 images hold 0 to 255.", images),
                    ("The pixels are divided by 255 twice.", x / 255),
                    ("The pixels are divided with //, which leaves only 0 and 1.", images // 255)]
    else:
        guesses += [("Float images are in [0, 1] already and were divided by 255 again.", x / 255),
                    ("Float images were cast to integers, which leaves only 0 and 1.", np.trunc(x))]
    guesses += [("The pixels are scaled by the images' own maximum, not by 255: the result depends on the batch.", images / peak),
                ("The pixels are scaled to [-1, 1], not to [0, 1].", 2 * x - 1),
                ("The pixels are inverted.", 1 - x)]
    if images.ndim >= 3:
        turned = np.swapaxes(x, -1, -2)
        if not images.flags.c_contiguous:
            mistake = "The values are read in the order of memory, and this array is stored column by column: reshape in C order."
            guesses.append((mistake, turned))
        guesses += [("The images are transposed: rows and columns are exchanged.", turned),
                    ("The images are upside down or mirrored.", x[..., ::-1, :]),
                    ("The images are upside down or mirrored.", x[..., ::-1])]
    n = len(images)
    if n > 1:
        guesses.append(("The pixels of different images are mixed: reshape to (n, ...) without a transpose.",
                        x.reshape(n, -1).ravel().reshape(-1, n).T))
        guesses.append(("The pixels of different images are mixed: reshape in C order.", np.reshape(x, (n, -1), order="F")))
    tolerance = TOLERANCE[model.dtype]
    for mistake, pixels in guesses:
        if np.shape(pixels)[0] == n and np.abs(model.probabilities(pixels) - got).max() <= tolerance:
            return mistake
    if np.abs(softmax(right) - got).max() <= tolerance:
        return "Softmax is applied twice: the model's output holds probabilities already."
    if np.abs(np.log(right + 1e-12) - got).max() <= 1e-2:
        return "These are logarithms of the probabilities."
    if np.abs(right - got).max() <= 0.02:
        return "The probabilities are rounded: a type with fewer digits than float32, or than the model's, was used on the way."
    good = np.abs(right - got).max(axis=1) <= tolerance
    if n > 1 and good.sum() < n and np.abs(np.sort(right, axis=0) - np.sort(got, axis=0)).max() <= tolerance:
        return "The rows are right, in another order than the images."
    if good.any():
        return f"{good.sum()} of {n} rows are right; the first wrong one is row {np.flatnonzero(~good)[0]}."
    return "The probabilities are not the model's."


def verify(answer, call, model, images):
    """Raises `Wrong` unless the answer is what the contract says for these images."""
    n, classes = len(images), model.classes
    form = f"(labels int64 ({n},), probabilities float32 ({n}, {classes}))"
    if not (isinstance(answer, tuple) and len(answer) == 2 and all(isinstance(a, (np.ndarray, np.generic)) for a in answer)):
        raise Wrong("predict returns a tuple of two NumPy arrays.", call, answer, form)
    labels, got = answer
    if labels.ndim == 2 and got.ndim == 1:
        raise Wrong("The tuple is the wrong way round: labels come first.", call, answer, form)
    if (got.ndim != 2 or got.dtype.kind != "f") and len(model.outputs) > 1:
        raise Wrong("Another output of the model was taken: the probabilities are its only output of rank 2 and of "
                    "floating-point type.", call, got, f"probabilities, float32 of shape ({n}, {classes})")
    if got.shape != (n, classes):
        size = model.batch if isinstance(model.batch, int) else max(n, 1)
        if n and got.shape == (-(-n // size) * size, classes):
            mistake = "The rows of the padding are in the answer: cut it back to the number of images."
        elif n and got.shape == (n // size * size, classes):
            mistake = "The images of the last, incomplete batch are missing."
        else:
            mistake = "The probabilities have the wrong shape."
        raise Wrong(mistake, call, got, f"shape ({n}, {classes})")
    if got.dtype != np.float32:
        raise Wrong("The probabilities are not float32.", call, got, "float32, whatever the model's own type is")
    if labels.shape != (n,):
        raise Wrong("The labels have the wrong shape: one integer for each image.", call, labels, f"shape ({n},)")
    if labels.dtype != np.int64:
        raise Wrong("The labels are not int64.", call, labels, "int64")
    if n == 0:
        return
    right = model.probabilities(scaled(images))
    difference = np.abs(got.astype(np.float64) - right)
    if not np.isfinite(got).all() or difference.max() > TOLERANCE[model.dtype]:
        row = int(np.argmax(np.nan_to_num(difference.max(axis=1), nan=np.inf)))
        mistake = explain(model, images, got.astype(np.float64)) if np.isfinite(got).all() else "The probabilities are not finite."
        raise Wrong(mistake, call, f"row {row}: {show(got[row])}",
                    f"row {row}: {show(right[row].astype(np.float32))}, each within {TOLERANCE[model.dtype]:g}")
    two = np.sort(right, axis=1)[:, -2:]
    clear = two[:, 1] - two[:, 0] > 2 * TOLERANCE[model.dtype]
    assert clear.any(), "the grader's model has no clear winner"
    wrong = clear & (labels != right.argmax(axis=1))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise Wrong("The labels are not the classes of the highest probability.", call,
                    f"row {row}: label {labels[row]}", f"row {row}: label {right[row].argmax()}")


def check_predict(submission, model, images, session=None):
    verify(*ask(submission, model, images, session), model, images)


def expect_error(submission, name, args, kinds, mistake, expected, silent=""):
    """The `Raised` of a call that must raise one of `kinds` (or a class derived from one). silent: what no error means."""
    try:
        got = submission.attempt(name, *args)
    except Raised as error:
        if error.kind == "NotImplementedError":
            raise Wrong(f"{name} is not written yet.", call=error.call, got=error.text) from None
        if not set(kinds) & set(error.bases):
            raise Wrong(f"{mistake} It raised {error.kind}, which is no {kinds[0]}.", error.call,
                        f"{error.kind}: {error.text}", expected) from None
        return error
    raise Wrong(mistake + silent, write_call(name, args, {}), got, expected)


# ---- open_session ---------------------------------------------------------------------------------------------------

def test_open_session_uses_the_provider(submission):
    """open_session opens the model on the provider that comes first"""
    path, here = str(DIGITS / "digits_mlp.onnx"), submission.probe("available")
    absent = [p for p in ("CUDAExecutionProvider", "OpenVINOExecutionProvider") if p not in here][:1]
    cases = [(), (["CPUExecutionProvider"],), ([("CPUExecutionProvider", {})],), (("CPUExecutionProvider", *absent),)]
    for name in ("AzureExecutionProvider", "CUDAExecutionProvider"):  # another one than the CPU, where one works
        both = (name, "CPUExecutionProvider")
        if name in here and submission.probe("registered", submission.probe("open_plain", path, both))[0] == name:
            cases.append((both,))
    for extra in cases:
        submission.probe("reset")
        session = submission.call("open_session", path, *extra)
        opened, providers = submission.probe("counts")["sessions"], submission.probe("registered", session)
        call = write_call("open_session", (path, *extra), {})
        if providers is None:
            raise Wrong("open_session returns an ort.InferenceSession.", call, session, "an InferenceSession")
        if opened != 1:
            raise Wrong("open_session opens more than one session: each reads, optimizes and plans the whole model.", call,
                        f"{opened} sessions opened", "1")
        first = extra[0][0] if extra else "CPUExecutionProvider"
        first = first if isinstance(first, str) else first[0]
        if providers[0] != first:
            raise Wrong("The providers asked for were not handed on to ONNX Runtime.", call, f"a session on {providers}",
                        f"a session with {first} first")


def test_open_session_hands_options_on(submission):
    """open_session hands the providers' options on to ONNX Runtime"""
    path, wanted = str(DIGITS / "digits_mlp.onnx"), {"use_arena": "1"}
    providers = [("CPUExecutionProvider", wanted)]
    submission.probe("reset")
    submission.call("open_session", path, providers)
    got = submission.probe("handed_on")
    if not any(name == "CPUExecutionProvider" and options == wanted for session in got for name, options in session):
        raise Wrong("The options of a provider do not reach ONNX Runtime.", write_call("open_session", (path, providers), {}),
                    f"providers and options of the sessions opened: {got}", f"CPUExecutionProvider with {wanted}")


def test_open_session_refuses_fallback(submission):
    """open_session refuses a provider that is not on this machine, and names it"""
    path, here = str(DIGITS / "digits_mlp.onnx"), submission.probe("available")
    absent = next(p for p in ["CUDAExecutionProvider", *submission.probe("known")] if p not in here)
    for providers in ((absent,), [absent, "CPUExecutionProvider"], [(absent, {"device_id": "0"}), "CPUExecutionProvider"]):
        refuses(submission, path, providers, absent)


def test_open_session_refuses_unknown_name(submission):
    """open_session refuses a provider that ONNX Runtime does not know, and names it"""
    for name in ("NoSuchExecutionProvider", "cpuexecutionprovider"):
        refuses(submission, str(DIGITS / "digits_mlp.onnx"), (name, "CPUExecutionProvider"), name)


def test_open_session_looks_at_the_session(submission):
    """open_session refuses a session that lost its first provider while it was opened"""
    if "AzureExecutionProvider" not in submission.probe("available"):
        pytest.skip("not run here: this onnxruntime has no AzureExecutionProvider to lose")
    # An unknown name further down makes ONNX Runtime give up the whole list and take the CPU.
    providers = ["AzureExecutionProvider", "NoSuchExecutionProvider", "CPUExecutionProvider"]
    with contextlib.suppress(Raised):     # an answer that leaves absent fall-backs out keeps its first provider: right, too
        session = submission.attempt("open_session", str(DIGITS / "digits_mlp.onnx"), providers)
        if (submission.probe("registered", session) or [None])[0] == providers[0]:
            return
    refuses(submission, str(DIGITS / "digits_mlp.onnx"), providers, "AzureExecutionProvider",
            "AzureExecutionProvider is in this package, but this session does not have it", other=providers[1])


def refuses(submission, path, providers, name, fact=None, other=None):
    """Fails unless open_session raises RuntimeError with this name in it, or with the `other` name that is to blame."""
    error = expect_error(submission, "open_session", (path, providers), ("RuntimeError",),
                         f"{fact or name + ' is not here'}: open_session has to raise RuntimeError.",
                         f"RuntimeError with {name} in its message", f" Here {FALLBACK}.")
    if not any(n in error.text for n in (name, other) if n):
        raise Wrong("The RuntimeError does not name the provider.", error.call, error.text, f"{name} in the message")


def test_open_session_missing_file(submission, tmp_path):
    """open_session raises FileNotFoundError for a model that is not there"""
    path = str(tmp_path / "nowhere" / "absent_model.onnx")
    error = expect_error(submission, "open_session", (path,), ("FileNotFoundError",), "There is no such file.",
                         "FileNotFoundError (ONNX Runtime's own NoSuchFile is not derived from it)")
    if "absent_model.onnx" not in error.text:
        raise Wrong("The FileNotFoundError does not name the file.", error.call, error.text, "the path in the message")


# ---- describe and provider_used ---------------------------------------------------------------------------------------

def test_describe(submission, tmp_path):
    """describe tells names, shapes and dtypes of all inputs and outputs"""
    models = [
        digits()[0],
        make(tmp_path, 1, shape=(6, 5), classes=4, input_name="image", output_name="scores", dtype="float64"),
        make(tmp_path, 2, shape=(1, 7, 9), classes=3, batch=None, input_name="x:0", dtype="float16",
             before=[("label", "labels")], after=[("top", "top2"), ("best", "best"), ("cube", "rank3")]),
        make(tmp_path, 3, shape=(20,), classes=5, batch=8, input_name="rows", output_name="y"),
        two_dynamic(tmp_path),
    ]
    for model in models:
        session = submission.probe("open_plain", model.path)
        got = submission.call("describe", session)
        call = f"describe(InferenceSession object)  ({model})"
        want = facts(model)
        if not isinstance(got, dict) or set(got) != {"inputs", "outputs"}:
            raise Wrong("describe returns a dict with the keys 'inputs' and 'outputs'.", call, got, "{'inputs': […], 'outputs': […]}")
        for key in ("inputs", "outputs"):
            entries = got[key]
            if not isinstance(entries, (list, tuple)) or len(entries) != len(want[key]):
                raise Wrong(f"describe lists every one of the model's {key}.", call, entries, f"{len(want[key])} of them, in the model's order")
            for entry, right in zip(entries, want[key]):
                check_entry(submission, entry, right, call, key)


def facts(model):
    """What `describe` has to tell, read from the file with onnx."""
    graph = onnx.load(model.path).graph

    def entry(value):
        tensor = value.type.tensor_type
        shape = tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
        return {"name": value.name, "shape": shape, "dtype": helper.tensor_dtype_to_np_dtype(tensor.elem_type).name}

    return {"inputs": [entry(v) for v in graph.input], "outputs": [entry(v) for v in graph.output]}


def check_entry(submission, entry, right, call, key):
    if not isinstance(entry, dict) or set(entry) != {"name", "shape", "dtype"}:
        raise Wrong(f"Each of {key} is a dict with the keys 'name', 'shape' and 'dtype'.", call, entry, right)
    if entry["name"] != right["name"]:
        raise Wrong(f"A name in {key} is not the model's.", call, entry["name"], right["name"])
    shape = entry["shape"]
    if isinstance(shape, list) and tuple(shape) == right["shape"]:
        raise Wrong("A shape is a tuple in describe's answer.", call, shape, right["shape"])
    if not isinstance(shape, (list, tuple)) or tuple(shape) != right["shape"]:
        text = isinstance(shape, (list, tuple)) and any(isinstance(d, (str, Opaque)) or d in (-1, 0) for d in shape)
        mistake = ("A dynamic dimension is None in describe's answer; ONNX Runtime gives its name (a str), or None if it "
                   "has none." if text else f"The shape of {right['name']!r} is wrong.")
        raise Wrong(mistake, call, shape, right["shape"])
    name = submission.probe("dtype_name", entry["dtype"])
    if name != right["dtype"]:
        mistake = (f"The dtype of {right['name']!r} is wrong: it is in the metadata of each input and output (.type)." if name else
                   f"The dtype of {right['name']!r} is nothing that np.dtype() takes; ONNX Runtime's own name is 'tensor(float)' and the like.")
        raise Wrong(mistake, call, entry["dtype"] if name is None else name, right["dtype"])


def test_provider_used(submission):
    """provider_used tells the provider that this session has first"""
    path, here = str(DIGITS / "digits_mlp.onnx"), submission.probe("available")
    lists = [["CPUExecutionProvider"], ["CUDAExecutionProvider", "CPUExecutionProvider"]]
    if "AzureExecutionProvider" in here:
        lists.insert(0, ["AzureExecutionProvider", "CPUExecutionProvider"])
    for providers in lists:
        session = submission.probe("open_plain", path, providers)
        right = submission.probe("registered", session)[0]
        got = submission.call("provider_used", session)
        if got != right:
            raise Wrong("That is not this session's first provider: ask the session, not the package or the request.",
                        f"provider_used(a session opened with providers={providers})", got, right)


# ---- predict ----------------------------------------------------------------------------------------------------------

def test_predict_digits(submission):
    """predict classifies the 360 held-out digits as the model does"""
    model, images, labels = digits()
    answer, call = ask(submission, model, images)
    verify(answer, call, model, images)
    right = int((model.probabilities(images / 255.0).argmax(axis=1) == labels).sum())
    got = int((answer[0] == labels).sum())
    if got != right:
        raise Wrong("The number of digits that are classified right is not the model's.", call, got, right)


@pytest.mark.parametrize("seed", [11, 12, 13])
def test_predict_other_models(submission, tmp_path, seed):
    """predict works for models with other names, sizes and numbers of classes"""
    rng = np.random.default_rng(seed)
    height, width, classes = (int(v) for v in rng.integers(5, 14, 3))
    width += height == width
    name = ["input", "x", "serving_default:0"][seed % 3]
    model = make(tmp_path, seed, shape=(height * width,), classes=classes, batch=[None, "N", "rows"][seed % 3],
                 input_name=name, output_name=["output", "y", "scores"][seed % 3])
    session = submission.probe("open_plain", model.path)
    for images in (pictures(seed, 5, height, width), pictures(seed + 1, 9, height * width), pictures(seed + 2, 1, height, width)):
        check_predict(submission, model, images, session)


def test_predict_chooses_the_output(submission, tmp_path):
    """predict finds the probabilities among further outputs"""
    extras = [[("label", "labels"), ("top", "top2")], [("cube", "rank3")], [("probabilities", "best")], []]
    after = [[], [("label", "labels")], [("top", "top2")], [("best", "best"), ("cube", "rank3"), ("label", "labels")]]
    for case, (first, last) in enumerate(zip(extras, after)):
        model = make(tmp_path, 21 + case, shape=(30,), classes=6, before=first, after=last, output_name="y")
        check_predict(submission, model, pictures(case, 7, 5, 6))


def test_predict_scaling(submission, tmp_path):
    """predict scales by the images' dtype, not by their values"""
    model = make(tmp_path, 31, shape=(48,), classes=5)
    bright = pictures(31, 6, 8, 6)
    floats = bright / 255.0
    for images in (bright, bright // 128, np.zeros((3, 8, 6), np.uint8), floats.astype(np.float32), floats,
                   floats.astype(np.float16), floats[:1] * 0.004, floats * 1.25):
        check_predict(submission, model, images)


def test_predict_keeps_nothing(submission, tmp_path):
    """predict asks the session that is given, not the one it saw before"""
    first = make(tmp_path, 35, shape=(30,), classes=4, input_name="a")
    second = make(tmp_path, 36, shape=(42,), classes=6, input_name="b")
    submission.close()  # the next call starts a fresh process
    check_predict(submission, first, pictures(1, 3, 5, 6))
    try:
        check_predict(submission, second, pictures(2, 3, 6, 7))
    except Wrong as error:
        submission.close()
        check_predict(submission, second, pictures(2, 3, 6, 7))
        raise Wrong("predict works for this model alone, but not after another: something of the first is kept.\n"
                    f"  The failure was: {error}") from None


def test_predict_leaves_the_callers_array_alone(submission, tmp_path):
    """predict changes no image, and reads them anew when the caller fills the same array again"""
    model = make(tmp_path, 37, shape=(30,), classes=4, input_name="a")
    session = submission.probe("open_plain", model.path)
    one, two = (pictures(seed, 4, 5, 6) / np.float32(255) for seed in (3, 4))
    unchanged, first, second, first_later = submission.drive("fill_again", session, one, two)
    call = "x[:] = one; a = predict(session, x); x[:] = two; b = predict(session, x)"
    if not unchanged:
        raise Wrong("predict changes the array that it is given: the caller's images are not yours to write to.", call)
    verify(first, call, model, one)
    try:
        verify(second, call, model, two)
    except Wrong:
        raise Wrong("The same array, filled again, gives an old answer: something is kept for an array that may change.", call,
                    second[1][0], model.probabilities(two.astype(np.float64))[0].astype(np.float32)) from None
    if not all(np.array_equal(a, b) for a, b in zip(first, first_later)):
        raise Wrong("A later call changed an earlier call's answer: return arrays of their own.", call)


def test_predict_looks_at_all_images(submission, tmp_path):
    """predict computes every batch anew, also one that starts like an earlier one"""
    model = make(tmp_path, 38, shape=(30,), classes=4, input_name="a")
    session = submission.probe("open_plain", model.path)
    one = pictures(5, 6, 5, 6)
    two = one.copy()
    two[-1] = pictures(6, 5, 6)
    check_predict(submission, model, one, session)
    check_predict(submission, model, two, session)


@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_predict_casts(submission, tmp_path, dtype):
    """predict casts to the dtype that the model declares, and returns float32"""
    model = make(tmp_path, 41, shape=(35,), classes=4, dtype=dtype, input_name="data")
    bright = pictures(41, 6, 7, 5)
    for images in (bright, bright / 255.0, (bright / 255.0).astype(np.float32)):
        check_predict(submission, model, images)


def test_predict_layout(submission, tmp_path):
    """predict brings the images into the model's input shape, row by row"""
    for case, shape in enumerate([(7, 4), (1, 7, 4), (7, 4, 1), (28,)]):
        model = make(tmp_path, 51 + case, shape=shape, classes=5, input_name="image")
        images = pictures(case, 6, 7, 4)
        for given in (images, images.reshape(6, 28), images.reshape(6, 1, 7, 4), images.reshape(6, 2, 14), np.asfortranarray(images)):
            check_predict(submission, model, given)


@pytest.mark.parametrize("batch, counts", [(8, (8, 13, 3, 1, 24)), (1, (1, 3)), (5, (12,))])
def test_predict_fixed_batch(submission, tmp_path, batch, counts):
    """predict serves any number of images with a model whose batch is fixed"""
    model = make(tmp_path, 60 + batch, shape=(30,), classes=4, batch=batch, input_name="rows")
    session = submission.probe("open_plain", model.path)
    for n in counts:
        check_predict(submission, model, pictures(n, n, 5, 6), session)


def test_predict_no_images(submission, tmp_path):
    """predict gives empty arrays for no images"""
    for batch in ("N", 8):
        model = make(tmp_path, 71, shape=(30,), classes=4, batch=batch)
        check_predict(submission, model, pictures(0, 0, 5, 6))


def test_predict_refuses_shapes(submission, tmp_path):
    """predict raises ValueError for images that do not fit, with both shapes"""
    flat = make(tmp_path, 81, shape=(784,), classes=4)
    boxed = make(tmp_path, 82, shape=(1, 6, 7), classes=4)
    fixed = make(tmp_path, 83, shape=(60,), classes=4, batch=4)
    cases = [(flat, (3, 27, 28)), (flat, (28, 28)), (flat, (784,)), (flat, (4, 14, 28)), (flat, (56, 28)),
             (boxed, (2, 5, 7)), (boxed, (2, 84)), (fixed, (4, 5, 7)), (fixed, (8, 30)), (flat, ())]
    for model, given in cases:
        session = submission.probe("open_plain", model.path)
        images = np.asarray(pictures(1, *given))
        error = expect_error(submission, "predict", (session, images), ("ValueError",),
                             f"Images of shape {given} do not fit a model that takes {(model.batch, *model.shape)}: "
                             f"an image would be {math.prod(given[1:]) if len(given) > 1 else 1} of {model.features} values.",
                             "ValueError with the shape given and the shape expected")
        numbers = set(map(int, re.findall(r"\d+", error.text)))
        for what, values, product in (("given", given[1:] or given, math.prod(given[1:] or given)), ("expected", model.shape, model.features)):
            if not (set(values) <= numbers or product in numbers):
                raise Wrong(f"The ValueError does not say what was {what}.", error.call, error.text,
                            f"{given} and {(model.batch, *model.shape)} in the message")


def test_predict_refuses_dtypes(submission, tmp_path):
    """predict raises TypeError for pixels that are neither uint8 nor floating point"""
    model = make(tmp_path, 91, shape=(30,), classes=4)
    images = pictures(1, 3, 5, 6)
    for dtype in (np.int64, np.int8, np.uint16, np.bool_, np.complex64):
        session = submission.probe("open_plain", model.path)
        error = expect_error(submission, "predict", (session, images.astype(dtype)), ("TypeError",),
                             f"Nobody can know how {np.dtype(dtype).name} pixels are scaled: predict must not guess.",
                             "TypeError with the dtype in its message")
        if np.dtype(dtype).name not in error.text:
            raise Wrong("The TypeError does not say which dtype was given.", error.call, error.text, np.dtype(dtype).name)


def test_predict_cost(submission, tmp_path):
    """predict runs the session once a batch and opens no session"""
    dynamic = make(tmp_path, 101, shape=(30,), classes=4)
    fixed = make(tmp_path, 102, shape=(30,), classes=4, batch=8)
    for model in (dynamic, fixed):
        session = submission.probe("open_plain", model.path)
        for n in (37, 8, 1, 0, 600):
            batch = model.batch if isinstance(model.batch, int) else max(n, 1)
            images = pictures(n, n, 5, 6)
            _, call = ask(submission, model, images, session)
            got, want = submission.probe("counts"), -(-n // batch)
            if got["sessions"]:
                raise Wrong("predict opens a session of its own: opening one reads, optimizes and plans the whole model again.",
                            call, f"{got['sessions']} sessions opened", "none: use the session given")
            if got["runs"] != want:
                mistake = ("The session runs once an image: hand over whole batches." if got["runs"] == n > 1 else
                           "The model does not run in the session given." if not got["runs"] else
                           "The session runs in vain: no images need no run." if not n else
                           "The session runs more often than there are batches." if got["runs"] > want else
                           "The session runs too seldom for these images.")
                raise Wrong(mistake, call, f"{got['runs']} runs", f"{want} {'run' if want == 1 else 'runs'} "
                            f"(ceil({n} / {model.batch}))" if isinstance(model.batch, int) else f"{want} run{'s' * (want != 1)}")


# ---- with a GPU -------------------------------------------------------------------------------------------------------

@pytest.mark.gpu("onnxruntime")
@pytest.mark.parametrize("options, limit", [({}, 5e-3), ({"use_tf32": "0"}, 1e-4)], ids=["TF32 as by default", "TF32 off"])
def test_cuda(submission, options, limit):
    """On the GPU: open_session takes the CUDA provider, predict agrees with the CPU"""
    if "CUDAExecutionProvider" not in submission.probe("available"):
        pytest.skip("not run here: this onnxruntime has no CUDAExecutionProvider (the package onnxruntime-gpu has)")
    model, images, _ = digits()
    cuda = [("CUDAExecutionProvider", options), "CPUExecutionProvider"]
    call = write_call("open_session", (model.path, cuda), {})
    session = submission.call("open_session", model.path, cuda)
    providers = submission.probe("registered", session)
    if not providers or providers[0] != "CUDAExecutionProvider":
        raise Wrong(f"CUDAExecutionProvider was asked for: {FALLBACK}.", call, providers, "CUDAExecutionProvider first")
    used = submission.call("provider_used", session)
    if used != "CUDAExecutionProvider":
        raise Wrong("provider_used does not tell the session's first provider.", f"provider_used({call})", used, "CUDAExecutionProvider")
    on_gpu, gpu_call = ask(submission, model, images, session)
    on_cpu, _ = ask(submission, model, images)
    for part, a, b in zip(("labels", "probabilities"), on_gpu, on_cpu):
        if np.shape(a) != np.shape(b) or not isinstance(a, np.ndarray):
            raise Wrong(f"The {part} from the GPU have another shape than those from the CPU.", gpu_call, a, b)
    difference = float(np.abs(np.float64(on_gpu[1]) - on_cpu[1]).max())
    if not difference <= limit:
        raise Wrong("GPU and CPU differ by more than rounding explains.", gpu_call, f"largest difference {difference:.1e}",
                    f"at most {limit:g}")
