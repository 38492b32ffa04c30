"""Grader of 04_onnxruntime/ex02_iobinding: models from seeds, answers from NumPy in float64, addresses and bytes from the probe."""
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from course.grading import Raised, Wrong, show

EXERCISE = "04_onnxruntime/ex02_iobinding"
PROBE = "probe_ex02.py"
LIMITS = {"call_seconds": 10.0, "memory_gib": 2.0}
TOLERANCE, PYTHON_BYTES = 1e-4, 16384
KINDS = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE, "int64": TensorProto.INT64}


# ---- models and what they must answer -------------------------------------------------------------------------------

@dataclass
class Model:
    """A file, its tensors {name: (shape behind the batch, dtype)}, and what it computes: {name: float64 array} of named inputs."""
    path: str
    inputs: dict
    outputs: dict
    compute: object
    batch: object = "n"
    most: int = 0       # indices are below

    def arrays(self, seed, rows):
        rng = np.random.default_rng(seed)
        return {name: rng.integers(0, self.most, (rows, *rest)) if dtype == "int64" else rng.standard_normal((rows, *rest)).astype(dtype) for name, (rest, dtype) in self.inputs.items()}

    def blank(self, rows, names=None):
        return {name: np.full((rows, *rest), 7, dtype) for name, (rest, dtype) in self.outputs.items() if names is None or name in names}

    def __str__(self):
        return "model of " + ", ".join(f"{name} ({', '.join(map(str, (self.batch, *rest)))}) {dtype}" for name, (rest, dtype) in self.inputs.items())


def write(folder, name, nodes, inputs, outputs, constants, batch):
    def info(entries):
        return [helper.make_tensor_value_info(n, KINDS[dtype], [batch, *rest]) for n, (rest, dtype) in entries.items()]
    graph = helper.make_graph(nodes, "grader", info(inputs), info(outputs), [numpy_helper.from_array(a, n) for n, a in constants.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    path = folder / f"{name}.onnx"
    onnx.save(model, path)
    return str(path)


def mixer(folder, seed, batch="n", width=40, words=30, names=("pixels", "kind", "scores", "total", "halves")):
    """Two inputs, one of them indices of rank 1; outputs of rank 2, 1 and 3."""
    rng, node = np.random.default_rng(seed), helper.make_node
    x, kind, scores, total, halves = names
    table, w = rng.standard_normal((words, width)).astype(np.float32), rng.normal(0, 0.3, (width, width)).astype(np.float32)
    nodes = [node("Gather", ["_table", kind], ["_row"]), node("Add", [x, "_row"], ["_sum"]), node("MatMul", ["_sum", "_w"], [scores]),
             node("ReduceSum", [scores, "_last"], [total], keepdims=0), node("Reshape", [scores, "_shape"], [halves])]
    inputs = {x: ((width,), "float32"), kind: ((), "int64")}
    outputs = {scores: ((width,), "float32"), total: ((), "float32"), halves: ((2, width // 2), "float32")}
    constants = {"_table": table, "_w": w, "_last": np.array([1], np.int64), "_shape": np.array([0, 2, width // 2], np.int64)}

    def compute(given):
        right = (given[x].astype(np.float64) + table.astype(np.float64)[given[kind]]) @ w.astype(np.float64)
        return {scores: right, total: right.sum(axis=1), halves: right.reshape(-1, 2, width // 2)}
    return Model(write(folder, f"mixer{seed}", nodes, inputs, outputs, constants, batch), inputs, outputs, compute, batch, words)


def wide(folder, seed, batch="n", width=8192):
    """Rows of 64 KiB in float64, so that a copy of one row is seen."""
    inputs, outputs = {"signal": ((width,), "float64")}, {"negated": ((width,), "float64")}
    return Model(write(folder, f"wide{seed}", [helper.make_node("Neg", ["signal"], ["negated"])], inputs, outputs, {}, batch), inputs, outputs,
                 lambda given: {"negated": -given["signal"]}, batch)


def cell(folder, seed, features=5, hidden=4096, names=("x", "h", "h_next", "change", "level")):
    """A recurrent cell with two states; `change` needs the old state when the new one is there already. A state row is 16 KiB."""
    rng, node = np.random.default_rng(seed), helper.make_node
    x, h, h_next, change, level = names
    u, d, v = rng.standard_normal((features, hidden)).astype(np.float32), rng.uniform(0.2, 0.9, hidden).astype(np.float32), rng.normal(0, 0.02, (hidden, 3)).astype(np.float32)
    nodes = [node("MatMul", [x, "_u"], ["_a"]), node("Mul", [h, "_d"], ["_b"]), node("Add", ["_a", "_b"], ["_c"]), node("Tanh", ["_c"], [h_next]),
             node("Sub", [h_next, h], [change]), node("MatMul", [h_next, "_v"], ["_m"]), node("Mul", ["count", "_half"], ["_n"]), node("Add", ["_n", "_m"], ["count_next"]),
             node("Sub", ["count_next", "count"], [level])]
    inputs = {x: ((features,), "float32"), h: ((hidden,), "float32"), "count": ((3,), "float32")}
    outputs = {h_next: ((hidden,), "float32"), "count_next": ((3,), "float32"), change: ((hidden,), "float32"), level: ((3,), "float32")}
    constants = {"_u": u, "_d": d, "_v": v, "_half": np.array(0.5, np.float32)}
    u, d, v = (a.astype(np.float64) for a in (u, d, v))

    def compute(given):
        new = np.tanh(given[x].astype(np.float64) @ u + given[h] * d)
        count = given["count"] * 0.5 + new @ v
        return {h_next: new, "count_next": count, change: new - given[h], level: count - given["count"]}
    model = Model(write(folder, f"cell{seed}", nodes, inputs, outputs, constants, "n"), inputs, outputs, compute)
    model.carry = {h_next: h, "count_next": "count"}
    return model


# ---- asking a submission ----------------------------------------------------------------------------------------------

def ask(submission, function, *args, call, **more):
    try:
        return submission._ask("probe", function, args, more, call)["ok"]
    except Raised as error:
        raise RuntimeError(f"the grader's probe failed: {error}") from None


def judge(error, kinds, mistake, words, call, expected=None):
    """Raises `Wrong` unless `error` (of probe's `failure`) is one of `kinds` and names `words`."""
    expected = expected or f"{' or '.join(kinds)}" + (f" that names {', '.join(words)}" if words else "")
    if error is None:
        raise Wrong(mistake, call, "no error", expected)
    kind, text, bases, _ = error
    if kind == "NotImplementedError":
        raise Wrong("This is not written yet.", call, text)
    if not set(kinds) & set(bases):
        raise Wrong(mistake, call, f"{kind}: {text}", expected)
    missing = [word for word in words if word not in text]
    if missing:
        raise Wrong(f"The {kind} does not name {', '.join(missing)}.", call, text, expected)


def no_error(error, call):
    if error:
        kind, text, _, line = error
        if kind == "NotImplementedError":
            raise Wrong("This is not written yet.", call, text)
        raise Wrong(f"It raised {kind}{f' (your {line})' if line else ''}.", call, text)


def close(got, right, name, call, mistake="is wrong"):
    difference = np.abs(got.astype(np.float64) - right).max() if got.size else 0.0
    if not difference <= TOLERANCE:
        rows = np.flatnonzero(np.abs(got.astype(np.float64) - right).reshape(len(got), -1).max(axis=1) > TOLERANCE)
        raise Wrong(f"{name} {mistake}.", call, f"{len(rows)} of {len(got)} rows are off, row {rows[0]}: {show(np.ravel(got[rows[0]]))}",
                    f"row {rows[0]}: {show(np.ravel(right[rows[0]]).astype(got.dtype))}, each within {TOLERANCE:g}")


def windows_of(submission, model, windows, seed, rows, wanted=None, **more):
    """Runs a Window over windows of arrays, and yields (call, entry) with the results checked."""
    inputs, outputs = model.arrays(seed, rows), model.blank(rows, wanted)
    session = submission.probe("open_plain", model.path)
    making = f"Window(session, {{{', '.join(inputs)}}}, {{{', '.join(outputs)}}}) with {rows} rows  ({model})"
    answer = ask(submission, "run_windows", session, inputs, outputs, [list(w) for w in windows], call=making, **more)
    no_error(answer["made"], making)
    found = []
    for n, ((start, stop), entry) in enumerate(zip(windows, answer["runs"])):
        call = f"run({start}, {stop}) as run {n + 1} of {making}"
        no_error(entry["error"], call)
        if entry["got"] is not None:
            raise Wrong("run returns something: the results are in the caller's arrays.", call, entry["got"], "None")
        fixed = [name for name, how in more.get("twists", {}).items() if how == "read-only"]
        right = model.compute({name: array if name in fixed else np.roll(array, n + 1, axis=0) for name, array in inputs.items()})
        earlier = model.compute({name: np.roll(array, n, axis=0) for name, array in inputs.items()})
        for name, got in entry["now"].items():
            if not (np.delete(got, np.s_[start:stop], axis=0) == 7).all():
                raise Wrong(f"Rows of {name} outside of the window are changed.", call, "other rows too", f"rows {start} to {stop} only")
            if stop > start and (got[start:stop] == 7).all():
                raise Wrong(f"Nothing was written into the caller's {name}.", call, show(np.ravel(got[start])), show(np.ravel(right[name][start])))
            stale = stop > start and np.abs(got[start:stop] - earlier[name][start:stop]).max() <= TOLERANCE
            close(got[start:stop], right[name][start:stop], name, call, "is that of the inputs before: the array was filled again, and a copy was read" if stale else "is wrong")
        found.append((call, entry))
    if not answer["unchanged"]:
        raise Wrong("The caller's inputs are changed.", making)
    return found


def check_cost(call, entry, runs, window=True):
    places = [what for kind, what in entry["events"] if kind == "run"]
    if len(places) != runs:
        raise Wrong("The model runs more often than once." if len(places) > runs else "The model does not run in this session.", call, f"{len(places)} runs", f"{runs}")
    if any(kind == "session" for kind, _ in entry["events"]):
        raise Wrong("A session is opened in the loop.", call)
    for wrong in places:
        if wrong is None:
            raise Wrong("The run goes through no binding: ONNX Runtime allocates the outputs, and somebody copies them.", call, "session.run", "run_with_iobinding")
        for name, how in wrong.items():
            mistake = {"other memory": f"{name} is not bound where the caller has it: there is a copy on the way.",
                       "nothing": f"{name} is bound without memory: ONNX Runtime allocates a buffer in every run.",
                       "not bound": f"{name} is not bound.", "not asked for": f"{name} is bound although nobody asked for it: that is memory of somebody else's, or an allocation.",
                       "written where it is read": f"{name} is written into the memory that this step still reads.",
                       "not read where the step before wrote it": f"{name} is read from other memory than the step before wrote: the state was copied."}.get(
                           how, f"{name} is bound with another shape than these rows.")
            raise Wrong(mistake, call, how, "the caller's rows, in place" if window else "the caller's arrays, and two sets of state")
    copies = [what for kind, what in entry["events"] if kind == "copy"]
    if copies:
        raise Wrong("Something is copied in the loop.", call, copies, "no copy")
    if any(kind == "value" for kind, _ in entry["events"]):
        raise Wrong("An OrtValue with memory of its own is made in the loop.", call, "ortvalue_from_shape_and_type", "none after construction")
    if entry["bytes"] > PYTHON_BYTES:
        raise Wrong("NumPy allocates in the loop: a cast, a copy or a result in memory of its own.", call, f"{entry['bytes']:,} bytes", f"at most {PYTHON_BYTES:,} for Python's own objects")


# ---- Window -----------------------------------------------------------------------------------------------------------

def test_window_computes(submission, tmp_path):
    """A Window writes the results of the rows it is asked for, for windows of any size"""
    windows = [(0, 9), (3, 5), (8, 9), (0, 1), (2, 9), (3, 5)]
    for model, wanted in ((mixer(tmp_path, 1), None), (mixer(tmp_path, 2, names=("image", "which", "a", "b", "c")), ["c", "a"]), (mixer(tmp_path, 3), ["total"]), (wide(tmp_path, 4), None)):
        windows_of(submission, model, windows, 5, 9, wanted)


def test_window_copies_nothing(submission, tmp_path):
    """A run binds the callers' rows where they are: no copy, no allocation"""
    for model, wanted in ((wide(tmp_path, 5), None), (mixer(tmp_path, 6), ["scores", "total"]), (mixer(tmp_path, 7), ["halves"])):
        runs = windows_of(submission, model, [(0, 6), (1, 4), (5, 6), (1, 4), (0, 6)], 6, 6, wanted)
        for call, entry in runs[1:]:        # Python sets some things up in a first call
            check_cost(call, entry, 1)


def test_window_of_views(submission, tmp_path):
    """Contiguous views of larger arrays, and subclasses of arrays, are used in place too"""
    model = mixer(tmp_path, 8)
    for how in ("view at an offset", "matrix"):
        runs = windows_of(submission, model, [(0, 6), (2, 5), (5, 6)], 7, 6, twists={"pixels": how, "kind": how, "scores": how})
        for call, entry in runs[1:]:
            check_cost(f"{call}, arrays: {how}", entry, 1)


def test_window_no_rows(submission, tmp_path):
    """No rows need no run"""
    model = mixer(tmp_path, 9)
    for call, entry in windows_of(submission, model, [(0, 0), (3, 3), (6, 6)], 8, 6):
        check_cost(call, entry, 0)


def test_window_refuses_rows(submission, tmp_path):
    """run raises IndexError for rows that are not there, and nothing is touched"""
    model = mixer(tmp_path, 10)
    inputs, outputs = model.arrays(9, 6), model.blank(6)
    session = submission.probe("open_plain", model.path)
    windows = [(0, 7), (-1, 3), (-3, -1), (4, 2), (7, 7), (6, 8)]
    answer = ask(submission, "run_windows", session, inputs, outputs, [list(w) for w in windows], call="Window(…)")
    no_error(answer["made"], "Window(session, inputs, outputs)")
    for (start, stop), entry in zip(windows, answer["runs"]):
        call = f"run({start}, {stop}) of a Window with 6 rows"
        mistake = ("A negative row is counted from the end: the address is that of other rows than the shape says." if start < 0 else "The rows are the wrong way round." if start > stop else
                   "Rows behind the end of the array: an address is believed, and memory of others is read and written.")
        judge(entry["error"], ("IndexError",), mistake, [str(start), str(stop)], call)
        if any(kind == "run" for kind, _ in entry["events"]) or any(not np.array_equal(entry["now"][name], outputs[name]) for name in outputs):
            raise Wrong("The model ran all the same.", call)


def test_window_fixed_batch(submission, tmp_path):
    """With a fixed batch, only windows of that size run"""
    model = mixer(tmp_path, 11, batch=4)
    windows_of(submission, model, [(0, 4), (3, 7), (8, 12), (5, 5)], 10, 12)
    inputs, outputs = model.arrays(10, 12), model.blank(12)
    session = submission.probe("open_plain", model.path)
    for start, stop in ((0, 3), (2, 12), (11, 12)):
        call = f"run({start}, {stop}) of a {model}"
        answer = ask(submission, "run_windows", session, inputs, outputs, [[start, stop]], call=call)
        no_error(answer["made"], call)
        judge(answer["runs"][0]["error"], ("ValueError",), "The model's batch is 4.", ["4", str(stop - start)], call)


def test_window_keeps_the_arrays(submission, tmp_path):
    """A Window keeps the callers' arrays alive"""
    model = mixer(tmp_path, 12)
    session = submission.probe("open_plain", model.path)
    call = "window = Window(session, inputs, outputs); del inputs, outputs"
    answer = ask(submission, "run_windows", session, model.arrays(11, 6), model.blank(6), [], call=call, forget=True)
    no_error(answer["made"], call)
    if answer["forgotten"]:
        raise Wrong("Arrays are collected while the Window still has their address: the next run reads and writes memory of others.", call, f"{answer['forgotten']} arrays are gone", "all are kept")


CASES = [({"pixels": how}, kind, "pixels", mistake) for how, kind, mistake in (
    ("columns", "ValueError", "The array is stored column by column: at its address are other numbers."),
    ("every second row", "ValueError", "The rows are not one after another: at the address are other rows."),
    ("part of wider rows", "ValueError", "The rows are parts of wider ones: at the address are other numbers."),
    ("mirrored", "ValueError", "The array runs backwards in memory: behind its address is somebody else's."),
    ("not aligned", "ValueError", "The array is not aligned."),
    ("other byte order", "TypeError", "The array has the other byte order: its dtype is called float32 too, and its bytes are noise."),
    ("list", "TypeError", "A list has no address that could be bound."), ("OrtValue", "TypeError", "The contract asks for NumPy arrays."))]
CASES += [({"scores": "columns"}, "ValueError", "scores", "The output is stored column by column: the results end up elsewhere."),
          ({"scores": "every second row"}, "ValueError", "scores", "The output's rows are not one after another: results end up in other rows."),
          ({"total": "read-only"}, "ValueError", "total", "The output is read-only, and an address does not know that."),
          ({"scores": "other byte order"}, "TypeError", "scores", "The output has the other byte order.")]


@pytest.mark.parametrize("twists, kind, name, mistake", CASES, ids=[f"{n} {list(t.values())[0]}" for t, _, n, _ in CASES])
def test_window_refuses_arrays(submission, tmp_path, twists, kind, name, mistake):
    """A Window refuses an array that cannot be used in place, and names it"""
    model = mixer(tmp_path, 13)
    session = submission.probe("open_plain", model.path)
    call = f"Window(session, inputs, outputs) with {name}: {list(twists.values())[0]}"
    judge(ask(submission, "refuse", session, model.arrays(12, 6), model.blank(6), twists, call=call), (kind,), mistake, [name], call)


def test_window_takes_a_read_only_input(submission, tmp_path):
    """An input that is read-only is fine: it is only read"""
    windows_of(submission, mixer(tmp_path, 14), [(0, 6), (2, 3)], 13, 6, twists={"pixels": "read-only"})


def test_window_refuses_shapes_and_names(submission, tmp_path):
    """A Window refuses names, dtypes and shapes that are not the model's"""
    model = mixer(tmp_path, 15)
    session = submission.probe("open_plain", model.path)
    good, blank = model.arrays(14, 6), model.blank(6)
    pixels, kind = good["pixels"], good["kind"]
    cases = [({"pixels": pixels}, blank, "ValueError", "kind", "An input is missing."), ({**good, "mask": pixels}, blank, "ValueError", "mask", "The model has no such input."),
             (good, {**blank, "logits": pixels.copy()}, "ValueError", "logits", "The model has no such output."), (good, {}, "ValueError", "", "No output is asked for: the run would do nothing that anybody sees."),
             ({**good, "pixels": pixels.astype(np.float64)}, blank, "TypeError", "pixels", "float64 at an address that is said to be float32."),
             ({**good, "kind": kind.astype(np.int32)}, blank, "TypeError", "kind", "int32 at an address that is said to be int64: half of the indices are read from behind the array."),
             ({**good, "kind": kind.view(np.uint64)}, blank, "TypeError", "kind", "uint64 is another dtype than int64."),
             (good, {"total": np.zeros(6, np.float64)}, "TypeError", "total", "A float64 output for float32 results."),
             ({**good, "pixels": np.ascontiguousarray(pixels[:, :20])}, blank, "ValueError", "pixels", "Rows that are too short: each row would begin in the one before."),
             ({**good, "pixels": pixels.reshape(6, 2, 20)}, blank, "ValueError", "pixels", "The same number of values in another shape."),
             ({**good, "kind": kind.reshape(6, 1)}, blank, "ValueError", "kind", "A column in the place of a vector."),
             (good, {"halves": np.zeros((6, 40), np.float32)}, "ValueError", "halves", "The output has another shape than the model's."),
             (good, {"scores": np.zeros((5, 40), np.float32)}, "ValueError", ("pixels", "kind", "scores"), "An output with fewer rows than the inputs: the last rows are written behind its end."),
             ({**good, "kind": kind[:5].copy()}, blank, "ValueError", ("pixels", "kind", *blank), "Inputs with different numbers of rows."),
             ({**good, "kind": np.array(3)}, blank, "ValueError", "kind", "An array without rows.")]
    for inputs, outputs, error, name, mistake in cases:
        call = f"Window(session, {{{', '.join(f'{n}: {np.shape(a)} {a.dtype}' for n, a in inputs.items())}}}, {{{', '.join(f'{n}: {np.shape(a)} {a.dtype}' for n, a in outputs.items())}}})"
        found = ask(submission, "refuse", session, inputs, outputs, {}, call=call)
        judge(found, (error,), mistake, [name] if name and isinstance(name, str) else [], call)
        if isinstance(name, tuple) and not any(one in found[1] for one in name):      # which of two arrays is the wrong one, nobody knows
            raise Wrong(f"The {found[0]} names no tensor.", call, found[1], f"one of {', '.join(name)}")


def test_window_refuses_shared_memory(submission, tmp_path):
    """A Window refuses an output that shares memory with an input or another output"""
    model = mixer(tmp_path, 16, names=("pixels", "kind", "scores", "total", "halves"))
    session = submission.probe("open_plain", model.path)
    inputs = model.arrays(15, 6)
    for shared, wanted, mistake in (({"scores": ("pixels", 0)}, ["scores"], "The output is the input: rows are overwritten that are still read."),
                                    ({"scores": ("pixels", 3)}, ["scores"], "The output overlaps the input by some rows: it is another array, of the same memory."),
                                    ({"scores": ("pixels", 5)}, ["scores", "total"], "The output overlaps the input by one row.")):
        call = f"Window(session, inputs, outputs), scores a view of pixels' memory, {list(shared.values())[0][1]} rows further on"
        judge(ask(submission, "refuse", session, inputs, model.blank(6, wanted), {}, call=call, shared=shared), ("ValueError",), mistake, ["scores"], call)
    twin = twins(tmp_path)
    call = "Window(session, inputs, {first: array, second: the same array, two rows further on})"
    judge(ask(submission, "refuse", submission.probe("open_plain", twin.path), twin.arrays(1, 6), twin.blank(6), {}, call=call, shared={"second": ("first", 2)}), ("ValueError",),
          "Two outputs share memory: one result overwrites the other.", [], call)
    pair = pairs(tmp_path)
    call = "Window(session, {left: array, right: the same array, two rows further on}, {sum: another array})"
    error = ask(submission, "refuse", submission.probe("open_plain", pair.path), pair.arrays(1, 6), pair.blank(6), {}, call=call, shared={"right": ("left", 2)})
    if error:
        raise Wrong("Two inputs that share memory are only read: nothing is overwritten.", call, f"{error[0]}: {error[1]}", "accepted")
    neighbours = {"second": ("first", 6)}
    call = "Window(session, inputs, {first: rows 0 to 6 of an array, second: rows 6 to 12 of it})"
    error = ask(submission, "refuse", submission.probe("open_plain", twin.path), twin.arrays(1, 6), twin.blank(6), {}, call=call, shared=neighbours)
    if error:
        raise Wrong("Two parts of one array that do not overlap share no memory: they are refused for their base.", call, f"{error[0]}: {error[1]}", "accepted")


def pairs(folder):
    inputs, outputs = {"left": ((4,), "float32"), "right": ((4,), "float32")}, {"sum": ((4,), "float32")}
    return Model(write(folder, "pairs", [helper.make_node("Add", ["left", "right"], ["sum"])], inputs, outputs, {}, "n"), inputs, outputs,
                 lambda given: {"sum": given["left"] + given["right"]})


def twins(folder):
    inputs, outputs = {"x": ((4,), "float32")}, {"first": ((4,), "float32"), "second": ((4,), "float32")}
    nodes = [helper.make_node("Neg", ["x"], ["first"]), helper.make_node("Abs", ["x"], ["second"])]
    return Model(write(folder, "twins", nodes, inputs, outputs, {}, "n"), inputs, outputs, lambda given: {"first": -given["x"], "second": np.abs(given["x"])})


# ---- Stepper ------------------------------------------------------------------------------------------------------------

def drive(submission, model, plan, call):
    done = ask(submission, "run_steps", submission.probe("open_plain", model.path), model.carry, plan, call=call)
    if len(done) == 1 and len(plan) > 1:
        no_error(done[0]["error"], "Stepper(session, carry)")
    return done


def initial(model, seed, rows):
    arrays = model.arrays(seed, rows)
    return {name: arrays[name] for name in model.carry.values()}


def feeds(model, seed, rows):
    return {name: array for name, array in model.arrays(seed, rows).items() if name not in model.carry.values()}


def wanted(model, rows, *names):
    return {name: [[rows, *model.outputs[name][0]], model.outputs[name][1]] for name in names}


def test_stepper_computes(submission, tmp_path):
    """A Stepper carries the state from step to step, for 60 steps and after a new reset"""
    model = cell(tmp_path, 17, hidden=24)
    plan, right = [], []
    for rows, seed, steps in ((3, 1, 60), (1, 2, 5), (7, 3, 4)):
        start = initial(model, seed, rows)
        state = {name: array.astype(np.float64) for name, array in start.items()}
        plan += [["reset", start], ["state"]]
        right += [None, state]
        for n in range(steps):
            given = feeds(model, 100 * seed + n, rows)
            after = model.compute({**given, **state})
            names = [("change", "level"), ("level",), (), ("change",)][n % 4]
            plan += [["step", given, wanted(model, rows, *names)]]
            right += [{name: after[name] for name in names}]
            state = {source: after[target] for target, source in model.carry.items()}
            if n % 7 == 4 or n == steps - 1:
                plan += [["state"]]
                right += [state]
    done = drive(submission, model, plan, "reset, 60 steps")
    for n, ((action, *rest), expected, entry) in enumerate(zip(plan, right, done)):
        call = f"{action} as call {n + 1}" + (f", outputs {list(rest[1])}" if action == "step" else "") + f"  ({model})"
        no_error(entry["error"], call)
        if action == "reset" and not entry["unchanged"]:
            raise Wrong("reset changes the caller's arrays.", call)
        got = entry["outputs"] if action == "step" else entry["state"]
        if action == "state" and entry["got"] != sorted(expected):
            raise Wrong("state returns a dict from the carried inputs to NumPy arrays.", call, entry["got"], sorted(expected))
        for name in expected or {}:
            stale = action == "step" and name == "change" and not got[name].any()
            if action == "state" and n == 1 and np.all(got[name] == 99):
                raise Wrong("The state is the caller's initial array, which he uses for something else now: copy it.", call, got[name])
            close(got[name], expected[name], name, call, "is zero: the state was overwritten before the step had read it" if stale else "is wrong")


def test_stepper_copies_nothing(submission, tmp_path):
    """A step binds the callers' arrays in place, and two sets of state that swap"""
    model = cell(tmp_path, 18)
    plan = [["reset", initial(model, 4, 4)]] + [["step", feeds(model, 40 + n, 4), wanted(model, 4, *(("change", "level") if n % 2 else ("level",)))] for n in range(6)]
    done = drive(submission, model, plan, "reset, 6 steps")
    no_error(done[0]["error"], "reset(initial)")
    for n, entry in enumerate(done[1:]):
        call = f"step {n + 1} with a state of 4 rows of 16 KiB"
        no_error(entry["error"], call)
        if n:
            check_cost(call, entry, 1, window=False)


def test_stepper_writes_what_is_wanted(submission, tmp_path):
    """A step writes the outputs that it was given, and none of an earlier step's"""
    model = cell(tmp_path, 19, hidden=24)
    plan = [["reset", initial(model, 5, 2)], ["step", feeds(model, 50, 2), wanted(model, 2, "change", "level")], ["step", feeds(model, 51, 2), wanted(model, 2, "level")],
            ["step", feeds(model, 52, 2), {}], ["state"]]
    done = drive(submission, model, plan, "reset, step {change, level}, step {level}, step {}")
    for entry, (action, *_) in zip(done, plan):
        no_error(entry["error"], action)
    for n in (1, 2, 3):
        for name, array in done[n]["outputs"].items():
            if not np.array_equal(array, done[n]["later"][name]):
                raise Wrong(f"A later step wrote into the array that an earlier one was given for {name}: what was bound stays bound.", f"step {n}, then steps that do not ask for {name}",
                            show(done[n]["later"][name]), show(array))


def test_stepper_state_is_the_callers(submission, tmp_path):
    """state gives copies"""
    model = cell(tmp_path, 20, hidden=24)
    plan = [["reset", initial(model, 6, 2)], ["state"]] + [["step", feeds(model, 60, 2), {}], ["state"], ["step", feeds(model, 61, 2), {}], ["step", feeds(model, 62, 2), {}], ["state"]]
    done = drive(submission, model, plan, "state, then more steps")
    for entry, (action, *_) in zip(done, plan):
        no_error(entry["error"], action)
        for name in entry["state"]:
            if not np.array_equal(entry["state"][name], entry["state later"][name]):
                raise Wrong("A state that was handed out changes with later steps: it is a view of the buffer.", "kept = state(); step(…); step(…)", show(entry["state later"][name]), show(entry["state"][name]))


def test_stepper_before_reset(submission, tmp_path):
    """step and state raise RuntimeError before the first reset"""
    model = cell(tmp_path, 21, hidden=24)
    for plan in ([["step", feeds(model, 70, 2), {}], ["state"]], [["state"], ["step", feeds(model, 70, 2), {}]]):
        for entry, (action, *_) in zip(drive(submission, model, plan, plan[0][0]), plan):
            judge(entry["error"], ("RuntimeError",), "There is no state yet, and nobody says so.", [], f"{action} before reset")
