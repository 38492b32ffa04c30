"""Grader of 03_tensorrt/ex02_dynamic_shapes. Profiles and the build run with no GPU, the run half needs one."""
import hashlib
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from course.grading import Raised, Wrong, show

EXERCISE = "03_tensorrt/ex02_dynamic_shapes"
PROBE = "probe_ex02.py"
LIMITS = {"call_seconds": 120.0, "memory_gib": 8.0}
TOLERANCE = 1e-2      # absolute, on numbers of the order of 1: TF32 keeps 10 bits of mantissa, and TensorRT uses it by default
gpu = pytest.mark.gpu("tensorrt", "pycuda")


# ---- a detector of the grader's own ----------------------------------------------------------------------------------------

def write_detector(path, seed=0, name="images", channels=3, size=("h", "w"), classes=2, batch="n"):
    """A small detector with heads at 1/2 and 1/4 of the size; returns its path and a NumPy function that computes the same in float64."""
    draw = np.random.default_rng(seed)
    weights = {"c1": draw.normal(0, (channels * 9 / 2) ** -0.5, (8, channels, 3, 3)), "c2": draw.normal(0, (8 * 9 / 2) ** -0.5, (12, 8, 3, 3)),
               "h1": draw.normal(0, 8 ** -0.5, (4 + classes, 8, 1, 1)), "h2": draw.normal(0, 12 ** -0.5, (4 + classes, 12, 1, 1))}
    weights = {k: v.astype("f4") for k, v in weights.items()}
    whole = {"first": [0], "rest": [4 + classes, -1], "s0": [0], "s4": [4], "end": [4 + classes], "axis": [2]}

    def rows(source, head):
        return [helper.make_node("Conv", [source, head], [f"{head}_y"], f"{head}_conv"),
                helper.make_node("Shape", [f"{head}_y"], [f"{head}_s"], f"{head}_shape"),
                helper.make_node("Gather", [f"{head}_s", "first"], [f"{head}_n"], f"{head}_batch"),
                helper.make_node("Concat", [f"{head}_n", "rest"], [f"{head}_to"], f"{head}_to_shape", axis=0),
                helper.make_node("Reshape", [f"{head}_y", f"{head}_to"], [f"{head}_flat"], f"{head}_reshape"),
                helper.make_node("Transpose", [f"{head}_flat"], [f"{head}_rows"], f"{head}_transpose", perm=[0, 2, 1])]
    nodes = []
    for source, conv in ((name, "c1"), ("c1_r", "c2")):
        nodes += [helper.make_node("Conv", [source, conv], [f"{conv}_y"], f"{conv}_conv", strides=[2, 2], pads=[1] * 4),
                  helper.make_node("Relu", [f"{conv}_y"], [f"{conv}_r"], f"{conv}_relu")]
    nodes += [*rows("c1_r", "h1"), *rows("c2_r", "h2"), helper.make_node("Concat", ["h1_rows", "h2_rows"], ["cells"], "join", axis=1),
              helper.make_node("Slice", ["cells", "s0", "s4", "axis"], ["boxes"], "boxes_of"),
              helper.make_node("Slice", ["cells", "s4", "end", "axis"], ["logits"], "logits_of"),
              helper.make_node("Sigmoid", ["logits"], ["scores"], "scores_of")]
    graph = helper.make_graph(nodes, "made_by_the_grader", [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, channels, *size])],
                              [helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [batch, "cells", 4]),
                               helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, "cells", classes])],
                              [numpy_helper.from_array(v, k) for k, v in weights.items()]
                              + [numpy_helper.from_array(np.array(v), k) for k, v in whole.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)

    def conv(x, w, stride):
        pad = w.shape[-1] // 2
        x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
        windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], (2, 3))[:, :, ::stride, ::stride]
        return np.einsum("ncyxij,kcij->nkyx", windows, w.astype("f8"), optimize=True)

    def oracle(images):
        a = np.maximum(conv(images.astype("f8"), weights["c1"], 2), 0)
        b = np.maximum(conv(a, weights["c2"], 2), 0)
        cells = np.concatenate([conv(x, weights[h], 1).reshape(len(x), 4 + classes, -1).transpose(0, 2, 1) for x, h in ((a, "h1"), (b, "h2"))], axis=1)
        return {"boxes": cells[:, :, :4], "scores": 1 / (1 + np.exp(-cells[:, :, 4:]))}
    return str(path), oracle


def raise_unexpected(error):
    name = error.call.partition("(")[0]
    if error.kind == "NotImplementedError":
        raise Wrong(f"{name} is not written yet.", call=error.call, got=str(error)) from None
    at = f" (your {error.where})" if error.where else ""
    raise Wrong(f"{name} raised {error.kind}{at}.", call=error.call, got=str(error)) from None


# ---- profiles from traffic -------------------------------------------------------------------------------------------------

PAGE = [("live", (1, 3, 320, 320), 52_000), ("live", (1, 3, 640, 640), 9_000), ("live", (4, 3, 320, 320), 6_000), ("live", (2, 3, 480, 640), 3_000),
        ("bulk", (32, 3, 320, 320), 800), ("bulk", (16, 3, 320, 320), 300), ("bulk", (8, 3, 256, 256), 40)]
TABLES = {
    "the page's": (PAGE, [((1, 3, 320, 320), (1, 3, 320, 320), (4, 3, 640, 640)), ((8, 3, 256, 256), (32, 3, 320, 320), (32, 3, 320, 320))]),
    "one row": ([("only", (2, 1, 64, 48), 1)], [((2, 1, 64, 48),) * 3]),
    "max in no row": ([("a", (1, 3, 64, 512), 5), ("a", (8, 3, 128, 64), 7)], [((1, 3, 64, 64), (8, 3, 128, 64), (8, 3, 128, 512))]),
    "opt is neither end": ([("a", (1, 3, 64, 64), 5), ("a", (4, 3, 64, 64), 90), ("a", (32, 3, 64, 64), 80)],
                           [((1, 3, 64, 64), (4, 3, 64, 64), (32, 3, 64, 64))]),
    "a shape in several rows": ([("a", (1, 3, 64, 64), 40), ("a", (2, 3, 64, 64), 30), ("a", (8, 3, 64, 64), 35), ("a", (2, 3, 64, 64), 15)],
                                [((1, 3, 64, 64), (2, 3, 64, 64), (8, 3, 64, 64))]),
    "equally many requests": ([("a", (8, 3, 64, 64), 10), ("a", (2, 3, 256, 256), 10), ("a", (1, 3, 512, 32), 10)],
                              [((1, 3, 64, 32), (2, 3, 256, 256), (8, 3, 512, 256))]),
    "kinds in turn": ([("z", (1, 3, 64, 64), 1), ("a", (4, 3, 96, 96), 9), ("z", (2, 3, 64, 64), 3), ("m", (1, 3, 32, 32), 2), ("a", (2, 3, 96, 96), 3)],
                      [((1, 3, 64, 64), (2, 3, 64, 64), (2, 3, 64, 64)), ((2, 3, 96, 96), (4, 3, 96, 96), (4, 3, 96, 96)), ((1, 3, 32, 32),) * 3]),
}


def tuples(value):
    try:
        return [tuple(tuple(int(d) for d in shape) for shape in profile) for profile in value]
    except (TypeError, ValueError):
        return None


@pytest.mark.parametrize("case", TABLES)
def test_profiles(submission, case):
    """Each kind of traffic gets one profile: smallest, most requested, largest"""
    traffic, want = TABLES[case]
    call = f"profiles_for(<{case}>)"
    returned = submission.call("profiles_for", traffic)
    got = tuples(returned)
    if got is None:
        raise Wrong("profiles_for returns a list of (min, opt, max), three shapes each.", call=call, got=show(returned, 400), expected=show(want, 400))
    if got == want:
        return
    if len(got) != len(want):
        raise Wrong(f"{len(want)} kinds of traffic are {len(want)} profiles, not {len(got)}.", call=call, got=show(got, 400), expected=show(want, 400))
    if sorted(got) == sorted(want):
        raise Wrong("The profiles are not in the order in which their kinds first appear.", call=call, got=show(got, 400), expected=show(want, 400))
    for mine, right in zip(got, want):
        if (mine[0], mine[2]) != (right[0], right[2]):
            mistake = "min and max are the smallest and the largest of each dimension by itself"
            mistake += ": a max that no request has is right, since any request has to fit." if mine[2] != right[2] else "."
            raise Wrong(mistake, call=call, got=show(mine, 200), expected=show(right, 200))
        if mine[1] != right[1]:
            mistake = "opt is not the shape with the most requests."
            if mine[1] == right[2] or mine[1][0] == right[2][0]:
                mistake += " It is tuned for the largest, or one of the largest."
            elif mine[1] not in [shape for _, shape, _ in traffic]:
                mistake += " Nobody ever asked for this shape."
            if case == "a shape in several rows":
                mistake += " The requests of a shape that stands in several rows add up."
            raise Wrong(mistake, call=call, got=show(mine[1]), expected=show(right[1]))


def test_no_traffic(submission):
    """No rows: ValueError"""
    expect_value_error(submission, "profiles_for", ([],), "There is nothing to make a profile of.", "profiles_for([])")


# ---- choosing a profile ----------------------------------------------------------------------------------------------------

TWO = tuple(TABLES["the page's"][1])
OVERLAP = [((1, 3, 64, 64), (32, 3, 64, 64), (32, 3, 256, 256)), ((1, 3, 64, 64), (1, 3, 128, 128), (8, 3, 256, 256)),
           ((2, 3, 32, 32), (4, 3, 64, 64), (64, 3, 256, 512))]
PICKS = [
    ("disjoint", TWO, (1, 3, 320, 320), 0), ("disjoint", TWO, (4, 3, 640, 640), 0), ("disjoint", TWO, (3, 3, 400, 352), 0), ("disjoint", TWO, (32, 3, 320, 320), 1),
    ("disjoint", TWO, (8, 3, 256, 256), 1), ("disjoint", TWO, (8, 3, 256, 320), 1),
    ("overlapping", OVERLAP, (1, 3, 64, 64), 1), ("overlapping", OVERLAP, (8, 3, 64, 64), 2), ("overlapping", OVERLAP, (24, 3, 64, 64), 0),
    ("overlapping", OVERLAP, (2, 3, 128, 128), 1), ("overlapping", OVERLAP, (1, 3, 256, 256), 1), ("overlapping", OVERLAP, (4, 3, 64, 400), 2),
    ("overlapping", OVERLAP, (32, 3, 256, 256), 0), ("overlapping", OVERLAP, (8, 3, 128, 128), 1), ("overlapping", OVERLAP, (64, 3, 32, 32), 2),
    ("by size", [((1, 3, 32, 32), (1, 3, 32, 32), (8, 3, 64, 64)), ((1, 3, 96, 96), (8, 3, 256, 256), (8, 3, 256, 256))], (1, 3, 96, 96), 1),
    ("same number of elements", [((1, 3, 64, 64), (1, 3, 128, 128), (8, 3, 128, 128)), ((1, 3, 64, 64), (8, 3, 64, 64), (8, 3, 128, 128))], (4, 3, 64, 64), 1),
    ("ratios, not differences", [((1, 3, 64, 64), (1, 3, 64, 64), (4, 3, 96, 96)), ((1, 3, 64, 64), (2, 3, 96, 64), (4, 3, 96, 96))], (2, 3, 64, 64), 1),
    ("equal", [TWO[0], TWO[0]], (1, 3, 320, 320), 0), ("fixed", [((4, 3, 64, 64),) * 3, ((8, 3, 64, 64),) * 3], (8, 3, 64, 64), 1),
]


def distance(shape, best):
    out = 1.0
    for a, b in zip(shape, best):
        out *= max(a, b) / min(a, b)
    return out


@pytest.mark.parametrize("kind, profiles, shape, want", PICKS, ids=lambda v: v if isinstance(v, str) else str(v) if isinstance(v, tuple) and len(v) == 4 else "")
def test_pick(submission, kind, profiles, shape, want):
    """The profile that covers a shape and is tuned nearest to it"""
    given = [[list(s) for s in p] for p in profiles] if kind == "overlapping" else list(profiles)
    got = submission.call("pick_profile", given, shape)
    call = f"pick_profile({kind}, {shape})"
    if isinstance(got, bool) or not isinstance(got, (int, np.integer)) or not 0 <= got < len(profiles):
        raise Wrong("pick_profile returns a profile's index.", call=call, got=show(got), expected=show(want))
    if got != want:
        least, best, most = profiles[got]
        covers = all(a <= s <= b for a, s, b in zip(least, shape, most))
        mistake = (f"Profile {got} covers the shape, but it is tuned for {best}, {distance(shape, best):.3g} away; profile {want}, for {profiles[want][1]}, is "
                   f"{distance(shape, profiles[want][1]):.3g} away." if covers else f"Profile {got} does not cover the shape: {least} to {most}.")
        raise Wrong(mistake, call=call, got=show(got), expected=show(want))


def expect_value_error(submission, name, args, mistake, call, check=None):
    try:
        got = submission.attempt(name, *args)
    except Raised as error:
        if error.kind in ("NotImplementedError", "NameError", "AttributeError", "ImportError"):
            raise_unexpected(error)
        if "ValueError" not in error.bases:
            raise Wrong(f"{mistake} It raised {error.kind}, which is no ValueError.", call=call, got=str(error), expected="ValueError") from None
        if check:
            check(error)
        return
    raise Wrong(mistake, call=call, got=f"returned {show(got)}", expected="ValueError")


def holds(text, shape):
    """Whether the numbers of a shape stand one after another in a text."""
    numbers = re.findall(r"-?\d+", text)
    wanted = [str(d) for d in shape]
    return any(numbers[i:i + len(wanted)] == wanted for i in range(len(numbers)))


MISFITS = [("batch above every max", TWO, (33, 3, 320, 320)), ("between two profiles", TWO, (6, 3, 320, 320)), ("one of each: batch of bulk, size of live", TWO, (32, 3, 640, 640)),
           ("height above", TWO, (1, 3, 641, 320)), ("width below", TWO, (1, 3, 320, 255)), ("channels", TWO, (1, 1, 320, 320)), ("an empty batch", TWO, (0, 3, 320, 320)),
           ("rank 3", TWO, (3, 320, 320)), ("rank 5", TWO, (1, 1, 3, 320, 320)), ("between fixed ones", [((4, 3, 64, 64),) * 3, ((8, 3, 64, 64),) * 3], (6, 3, 64, 64))]


@pytest.mark.parametrize("kind, profiles, shape", MISFITS, ids=[m[0] for m in MISFITS])
def test_no_profile_covers(submission, kind, profiles, shape):
    """A shape that fits no profile: ValueError that says what came, what is allowed, and what to do"""
    call = f"pick_profile(<{' | '.join(f'{a} to {c}' for a, _, c in profiles)}>, {shape})"

    def check(error):
        for what, wanted in [("the shape that came", shape), *((f"{end} of profile {i}", p[j]) for i, p in enumerate(profiles) for end, j in (("min", 0), ("max", 2)))]:
            if not holds(error.text, wanted):
                raise Wrong(f"The message does not hold {what}, {wanted}.", call=call, got=str(error), expected="the shape, and min and max of every profile")
        if not re.search("split|pad|resize|rebuild", error.text, re.IGNORECASE):
            raise Wrong("The message does not say what the caller can do.", call=call, got=str(error), expected="split, pad, resize or rebuild, whichever helps")
    expect_value_error(submission, "pick_profile", (list(profiles), shape), f"No profile covers this shape ({kind}), and one was picked.", call, check)


# ---- the build -------------------------------------------------------------------------------------------------------------

SMALL = [((1, 3, 32, 32), (1, 3, 32, 48), (4, 3, 64, 64)), ((8, 3, 24, 24), (16, 3, 32, 32), (32, 3, 32, 32))]


def build(submission, model, engine, profiles):
    submission.probe("take_builds")
    call = f"build_engine({Path(model).name!r}, {engine.name!r}, {profiles})"
    try:
        returned = submission.attempt("build_engine", model, str(engine), profiles)
        failed = None
    except Raised as error:
        failed = error
    builds = submission.probe("take_builds")
    if builds and builds[0]["sha256"] is None:
        given = builds[0]["profiles"]
        mistake = "the config had no profile." if not given else "its profiles were not min <= opt <= max, or not for this input."
        raise Wrong(f"build_serialized_network returned None: {mistake}", call=call, got=show(given, 500), expected=show(profiles, 500))
    if failed:
        raise_unexpected(failed)
    if len(builds) != 1:
        raise Wrong("One engine holds all the profiles: it is built once.", call=call, got=f"{len(builds)} calls of build_serialized_network", expected="1 call")
    got = [list(profile.values())[0] for profile in builds[0]["profiles"]]
    want = [[tuple(shape) for shape in profile] for profile in profiles]
    got = [[tuple(shape) for shape in profile] for profile in got]
    if any(-1 not in shape for shape in builds[0]["inputs"].values()) and any(least != most for least, _, most in want):
        raise Wrong("The network's input has no dynamic dimension any more: it was fixed before the build.", call=call, got=show(builds[0]["inputs"]))
    if got != want:
        mistake = "The profiles in the builder's config are not those that were given."
        if len(got) < len(want):
            mistake = f"{len(got)} of {len(want)} profiles went into the config."
        elif len(want) > 1 and all(profile == got[0] for profile in got):
            mistake += " All are the same: was one profile object changed and added again? The config keeps the object."
        elif len(got) == len(want) and sorted(map(str, got)) == sorted(map(str, want)):
            mistake += " They are in another order: the index is what the run half switches to."
        raise Wrong(mistake, call=call, got=show(got, 500), expected=show(want, 500))
    if returned is not None:
        raise Wrong("build_engine returns nothing: the plan is in the file.", call=call, got=show(returned), expected="None")
    if not engine.exists() or hashlib.sha256(engine.read_bytes()).hexdigest() != builds[0]["sha256"]:
        raise Wrong("The file is not the plan that the builder returned.", call=call,
                    got=f"{engine.stat().st_size} bytes" if engine.exists() else "no file", expected="the plan, in that file")
    left = sorted(p.name for p in engine.parent.iterdir())
    if left != sorted({engine.name, Path(model).name}):
        raise Wrong("Files were left beside the engine.", call=call, got=left, expected=[engine.name])


BUILDS = {
    "two profiles": (dict(), SMALL),
    "one profile": (dict(seed=1, name="frames:0"), SMALL[:1]),
    "three, two of them equal": (dict(seed=2), [SMALL[0], SMALL[1], SMALL[0]]),
    "a profile of one shape": (dict(seed=3), [((2, 3, 40, 24),) * 3, SMALL[0]]),
    "only the batch is dynamic": (dict(seed=4, size=(32, 48), channels=1, name="gray"), [((1, 1, 32, 48), (2, 1, 32, 48), (4, 1, 32, 48)),
                                                                                          ((5, 1, 32, 48), (16, 1, 32, 48), (16, 1, 32, 48))]),
    "only the size is dynamic": (dict(seed=5, batch=1), [((1, 3, 32, 32), (1, 3, 64, 32), (1, 3, 96, 96))]),
}


@pytest.mark.parametrize("case", BUILDS)
def test_build(submission, tmp_path, case):
    """One engine is built, and exactly these profiles are in it"""
    how, profiles = BUILDS[case]
    model, _ = write_detector(tmp_path / "m.onnx", **how)
    build(submission, model, tmp_path / "made.engine", profiles)


def refuse_build(submission, folder, kinds, model, profiles, mistake, needles=(), may_build=False):
    engine = folder / "made.engine"
    engine.write_bytes(b"an older engine")
    before = sorted(p.name for p in folder.iterdir())
    submission.probe("take_builds")
    call = f"build_engine({Path(model).name!r}, 'made.engine', {profiles})"
    try:
        got = submission.attempt("build_engine", model, str(engine), profiles)
        raise Wrong(mistake, call=call, got=f"returned {show(got)}", expected=kinds[0])
    except Raised as error:
        if error.kind in ("NotImplementedError", "NameError", "AttributeError", "ImportError"):
            raise_unexpected(error)
        if not set(kinds) & set(error.bases):
            raise Wrong(f"{mistake} It raised {error.kind}, which is no {kinds[0]}.", call=call, got=str(error), expected=kinds[0]) from None
        for needle in needles:
            if needle not in error.text:
                raise Wrong(f"The error's message does not help: it does not mention {needle!r}.", call=call, got=str(error), expected=kinds[0]) from None
    if not may_build and submission.probe("take_builds"):
        raise Wrong("It was built before the profiles were looked at.", call=call, got="a call of build_serialized_network", expected="none")
    if not engine.exists() or engine.read_bytes() != b"an older engine" or sorted(p.name for p in folder.iterdir()) != before:
        raise Wrong("A build that failed changed what is on disk.", call=call, got=sorted(p.name for p in folder.iterdir()), expected="the older engine, untouched, and nothing else")


BAD = {
    "min above opt": [((2, 3, 32, 32), (1, 3, 32, 32), (4, 3, 32, 32))],
    "opt above max, in the width": [SMALL[0], ((1, 3, 32, 32), (1, 3, 32, 128), (4, 3, 32, 64))],
    "the second of two is wrong": [SMALL[0], ((8, 3, 64, 32), (16, 3, 32, 32), (32, 3, 32, 32))],
    "batch 0": [((0, 3, 32, 32), (1, 3, 32, 32), (4, 3, 32, 32))],
    "other channels than the model": [((1, 1, 32, 32), (1, 1, 32, 32), (4, 1, 64, 64))],
    "a range of channels": [((1, 1, 32, 32), (1, 3, 32, 32), (4, 3, 64, 64))],
    "fixed channels in min and opt, more in max": [((1, 3, 32, 32), (1, 3, 32, 32), (4, 5, 64, 64))],
    "another rank": [((1, 3, 32), (1, 3, 32), (4, 3, 64))],
    "opt of another rank than min and max": [((1, 3, 32, 32), (1, 3, 32), (4, 3, 64, 64))],
    "max of another rank": [((1, 3, 32, 32), (1, 3, 32, 32), (4, 3, 64, 64, 1))],
    "no profile": [],
}


@pytest.mark.parametrize("case", BAD)
def test_profiles_that_do_not_fit(submission, tmp_path, case):
    """Profiles that do not fit the input: ValueError that names it, before anything is built"""
    model, _ = write_detector(tmp_path / "m.onnx", seed=6, name="camera_input")
    refuse_build(submission, tmp_path, ["ValueError"], model, BAD[case], "A profile that cannot be was not noticed: TensorRT says it late, or not at all.", ["camera_input"])


def test_fixed_size(submission, tmp_path):
    """A dimension that the model fixes cannot be widened by a profile: ValueError"""
    model, _ = write_detector(tmp_path / "m.onnx", seed=7, name="fixed_input", size=(32, 32))
    refuse_build(submission, tmp_path, ["ValueError"], model, SMALL, "The model's height and width are fixed, and a profile asks for a range.", ["fixed_input"])


def test_build_that_fails(submission, tmp_path):
    """The builder returns None: RuntimeError, and the older engine file stays"""
    model, _ = write_detector(tmp_path / "m.onnx", seed=8)
    submission.probe("fail_next_build")
    refuse_build(submission, tmp_path, ["RuntimeError"], model, SMALL, "build_serialized_network returned None, and that was not noticed.", may_build=True)


def test_missing_and_broken_model(submission, tmp_path):
    """No file: FileNotFoundError. No model: ValueError"""
    refuse_build(submission, tmp_path, ["FileNotFoundError"], str(tmp_path / "gone.onnx"), SMALL, "A missing file is not said to be missing.")
    (tmp_path / "text.onnx").write_bytes(b"hello world")
    refuse_build(submission, tmp_path, ["ValueError"], str(tmp_path / "text.onnx"), SMALL, "A file that is no ONNX model was not noticed.")


# ---- the run half: a GPU with TensorRT 8.6 to 11 and pycuda ----------------------------------------------------------------

@pytest.fixture(scope="module")
def opened(submission, tmp_path_factory):
    """Detectors of the submission over engines that the grader built."""
    folder, cache = tmp_path_factory.mktemp("engines"), {}

    def get(seed=0, profiles=tuple(SMALL), **how):
        key = (seed, str(profiles), str(how))
        if key not in cache:
            model, oracle = write_detector(folder / f"m{len(cache)}.onnx", seed, **how)
            engine = str(folder / f"m{len(cache)}.engine")
            submission.probe("build_plan", model, engine, list(profiles))
            cache[key] = [engine, oracle, None, None]
        entry = cache[key]
        if entry[3] != submission.started or submission.process is None:
            submission.probe("keep_detectors")
            entry[2] = submission.call("open_detector", entry[0])
            entry[3] = submission.started
        return entry[2], entry[1]
    return get


def images_of(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("f4")


def detect(submission, detector, oracle, images, mistake="The numbers are wrong."):
    got = submission.call("detect", detector, images)
    want = oracle(images)
    call = f"detect(detector, <array {images.shape} {images.dtype}>)"
    if not isinstance(got, dict) or sorted(got) != sorted(want):
        raise Wrong("detect returns a dictionary: output's name to array.", call=call, got=show(got), expected=sorted(want))
    for name, right in want.items():
        array = got[name]
        if not isinstance(array, np.ndarray) or array.shape != right.shape or array.dtype != np.float32:
            wrong = f"Output {name!r} has the wrong shape or dtype."
            if isinstance(array, np.ndarray) and array.size > right.size:
                wrong += " Was it sized by the profile's maximum, or by the request before?"
            raise Wrong(wrong, call=call, got=show(array), expected=f"array of shape {right.shape}, float32")
        worst = float(np.abs(array - right).max()) if np.isfinite(array).all() else float("nan")
        if not worst <= TOLERANCE:
            raise Wrong(f"{mistake} Output {name!r} is {worst:.3g} off.", call=call, got=show(array), expected=f"{show(right.astype('f4'))} within {TOLERANCE}")


@gpu
@pytest.mark.parametrize("shape", [(1, 3, 32, 48), (4, 3, 64, 64), (3, 3, 50, 33), (16, 3, 32, 32), (32, 3, 24, 31), (8, 3, 24, 24)], ids=str)
def test_gpu_results(submission, opened, shape):
    """On the GPU: right numbers for shapes of both profiles"""
    detector, oracle = opened()
    detect(submission, detector, oracle, images_of(shape))


@gpu
def test_gpu_in_turn(submission, opened):
    """On the GPU: requests of both profiles in turn, of all sizes"""
    detector, oracle = opened()
    for i, shape in enumerate([(1, 3, 32, 48), (16, 3, 32, 32), (2, 3, 64, 40), (32, 3, 32, 32), (1, 3, 32, 48), (1, 3, 64, 64), (9, 3, 24, 32), (1, 3, 32, 32)]):
        detect(submission, detector, oracle, images_of(shape, i), f"Request {i + 1} of a row that goes to and fro between two profiles is wrong.")


@gpu
def test_gpu_second_profile_first(submission, opened, tmp_path):
    """On the GPU: the first request of all needs the second profile"""
    model, oracle = write_detector(tmp_path / "m.onnx", 9)
    submission.probe("build_plan", model, str(tmp_path / "m.engine"), SMALL)
    submission.probe("keep_detectors")
    detector = submission.call("open_detector", str(tmp_path / "m.engine"))
    detect(submission, detector, oracle, images_of((20, 3, 32, 32)))


@gpu
def test_gpu_other_model(submission, opened):
    """On the GPU: another input name, one channel, one profile"""
    detector, oracle = opened(seed=10, profiles=(((1, 1, 16, 16), (2, 1, 32, 32), (6, 1, 64, 64)),), name="gray:0", channels=1, classes=5)
    detect(submission, detector, oracle, images_of((5, 1, 33, 62)))


@gpu
def test_gpu_overlapping_profiles(submission, opened):
    """On the GPU: of two profiles that cover a request, the nearer one runs it"""
    profiles = (((1, 3, 32, 32), (32, 3, 32, 32), (32, 3, 64, 64)), ((1, 3, 32, 32), (1, 3, 64, 64), (8, 3, 64, 64)))
    detector, oracle = opened(seed=11, profiles=profiles)
    submission.probe("watch_cuda")
    detect(submission, detector, oracle, images_of((32, 3, 32, 32)))
    submission.probe("take_trace")
    detect(submission, detector, oracle, images_of((1, 3, 64, 64)))
    switches = [entry[2] for entry in submission.probe("take_trace") if entry[0] == "switch"]
    if switches != [1]:
        raise Wrong("Both profiles cover (1, 3, 64, 64); the second is tuned for it, and was not switched to.", call="detect(detector, <array (1, 3, 64, 64) float32>)",
                    got=f"switches to profile: {switches}", expected="[1]")


@gpu
def test_gpu_memory_layout(submission, opened):
    """On the GPU: arrays that are not contiguous in memory"""
    detector, oracle = opened()
    detect(submission, detector, oracle, images_of((2, 40, 48, 3)).transpose(0, 3, 1, 2),
           "A transposed (not contiguous) array gives wrong numbers: use np.ascontiguousarray before the copy.")


@gpu
@pytest.mark.parametrize("shape, dtype", [((33, 3, 32, 32), "f4"), ((6, 3, 32, 32), "f4"), ((1, 3, 65, 64), "f4"), ((1, 1, 32, 32), "f4"), ((3, 32, 32), "f4"),
                                          ((0, 3, 32, 32), "f4"), ((1, 3, 32, 32), "f8"), ((1, 3, 32, 32), "u1")], ids=str)
def test_gpu_refused(submission, opened, shape, dtype):
    """On the GPU: what fits no profile is refused with ValueError, and the next request works"""
    detector, oracle = opened()
    good = images_of((16, 3, 32, 32), 3)
    detect(submission, detector, oracle, good)
    expect_value_error(submission, "detect", (detector, np.zeros(shape, dtype)), "A request that the engine cannot take was taken.",
                       f"detect(detector, <array {shape} {np.dtype(dtype)}>)")
    detect(submission, detector, oracle, good, "After a refused request, the next one is wrong.")


@gpu
def test_gpu_switches(submission, opened):
    """On the GPU: the profile is switched when, and only when, another one is needed, and the run waits for the switch"""
    detector, oracle = opened()
    submission.probe("watch_cuda")
    detect(submission, detector, oracle, images_of((1, 3, 32, 48)))
    submission.probe("take_trace")
    row = [((1, 3, 32, 48), None), ((2, 3, 64, 64), None), ((16, 3, 32, 32), 1), ((32, 3, 32, 32), None), ((1, 3, 32, 32), 0), ((4, 3, 32, 32), None)]
    for shape, wanted in row:
        detect(submission, detector, oracle, images_of(shape))
        trace = submission.probe("take_trace")
        call = f"detect(detector, <array {shape} float32>), a request of {'another' if wanted is not None else 'the same'} profile"
        seen = [entry[0] for entry in trace]
        if "context" in seen:
            raise Wrong("A request made an execution context: a detector keeps one.", call=call, got=show(seen, 300), expected="none")
        if seen.count("run") != 1:
            raise Wrong("The contract asks for execute_async_v3, once a request.", call=call, got=show(seen, 300), expected="one")
        switches = [entry[2] for entry in trace if entry[0] == "switch"]
        if switches != ([] if wanted is None else [wanted]):
            mistake = "The profile was switched though the request needs the one that is active." if wanted is None else "The profile was not switched once to the one needed."
            raise Wrong(mistake, call=call, got=f"switches to profile: {switches}", expected=show([] if wanted is None else [wanted]))
        if wanted is not None:
            at, run = seen.index("switch"), seen.index("run")
            if at > run:
                raise Wrong("The profile was switched after the run.", call=call, got=show(seen, 300))
            if not ordered(trace[at], trace[at + 1:run], trace[run]):
                raise Wrong("The switch was put on one stream and the run on another, with nothing between that makes the run wait: undefined behaviour.", call=call,
                            got=show(trace[at:run + 1], 400), expected="the same stream; or an event; or a synchronization of the switch's stream")


def ordered(switch, between, run):
    """Whether what was called between makes the run wait for the switch."""
    if switch[1] == run[1]:
        return True
    recorded = set()
    for kind, stream, event in between:
        if kind == "all done" or (kind == "stream done" and stream == switch[1]):
            return True
        if kind == "record" and stream == switch[1]:
            recorded.add(event)
        if event in recorded and (kind == "event done" or (kind == "wait" and stream == run[1])):
            return True
    return False


@gpu
def test_gpu_calls_do_not_share(submission, opened):
    """On the GPU: a second request changes no result of the first"""
    detector, _ = opened()
    if not submission.drive("call_twice", detector, images_of((2, 3, 32, 32), 1), images_of((2, 3, 32, 32), 2)):
        raise Wrong("Two requests returned the same memory: the second changed the first one's result. Return copies.",
                    call="a = detect(detector, x1); b = detect(detector, x2)")


@gpu
def test_gpu_no_leak(submission, opened):
    """On the GPU: 200 requests leave no device memory behind"""
    detector, _ = opened()
    batches = [images_of((4, 3, 64, 64)), images_of((32, 3, 32, 32))]
    submission.drive("call_many", detector, batches, 10)
    before = submission.probe("free_device_bytes")
    submission.drive("call_many", detector, batches, 100)
    lost = before - submission.probe("free_device_bytes")
    if lost > 24 * 2**20:
        raise Wrong("Device memory is lost with every request: free what was allocated, or keep it and use it again.", call="200 times detect(detector, x)",
                    got=f"{lost / 2**20:.0f} MiB less", expected="nothing less")


@gpu
def test_gpu_damaged_engine(submission, tmp_path):
    """On the GPU: a file that is no engine is refused with ValueError"""
    (tmp_path / "broken.engine").write_bytes(b"no engine at all" * 64)
    expect_value_error(submission, "open_detector", (str(tmp_path / "broken.engine"),), "deserialize_cuda_engine returned None, and that was not noticed.",
                       "open_detector('broken.engine')")
