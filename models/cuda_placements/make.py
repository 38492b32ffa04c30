"""Records where ONNX Runtime's CUDA provider puts the nodes of six small models. Needs an NVIDIA GPU and onnxruntime-gpu.

    python -m models.cuda_placements.make SYSTEM [FOLDER]      SYSTEM: the id of measurements/systems; FOLDER: this one

Leaves for each model NAME.onnx (the source), NAME.optimized.onnx (saved by the session, copies included) and NAME.profile.json (ONNX Runtime's
profile of two runs, as it was written), and for all of them record.json: versions, date, what each session answered, and its log.
"""
import contextlib
import datetime
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import parser

from course.system import describe

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
# Operators of one float tensor that the CUDA provider may not have; the first two that a session leaves to the CPU are used.
CANDIDATES = ("LpNormalization", "Hardmax", "Atan", "Asinh", "Cosh")
HEAD = '<ir_version: 8, opset_import: ["": 17]>'
GEMM = "float[16, 16] w1, float[16, 16] w2"
SOURCES = {
    # every node has a kernel for CUDA
    "all_cuda": "g (float[n, 16] x, {gemm}) => (float[n, 16] y) {{ [up] a = MatMul(x, w1) [bend] b = Sigmoid(a) [down] c = MatMul(b, w2) [add] y = Add(c, x) }}",
    # one operator in the middle has none
    "no_kernel": "g (float[n, 16] x, {gemm}) => (float[n, 16] y) {{ [up] a = MatMul(x, w1) [alone] b = {op}(a) [down] y = MatMul(b, w2) }}",
    # two readers of one value on the CPU, and an input that both sides read
    "shared": "g (float[n, 16] x, {gemm}) => (float[n, 16] y, float[n, 16] z) {{ [up] a = MatMul(x, w1) [first] b = {op}(a) [second] c = {op}(b) [third] d = {op2}(a)"
              " [fourth] e = {op}(x) [join] f = Add(c, d) [down] y = MatMul(f, w2) [tail] z = Mul(e, y) }}",
    # arithmetic on shapes: on the CPU by choice
    "shape_work": "g (float[n, 16] x, {gemm}) => (float[m, 16] y) <int64[1] zero = {{0}}, int64[1] wide = {{16}}, float[1, 16] row = {{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}}>"
                  " {{ [up] a = MatMul(x, w1) [total] r = ReduceMean<axes = [0], keepdims = 1>(a) [scale] b = Mul(r, row) [measure] s = Shape(x) [pick] k = Gather<axis = 0>(s, zero)"
                  " [double] h = Add(k, k) [glue] t = Concat<axis = 0>(h, wide) [spread] e = Expand(b, t) [bend] y = Sigmoid(e) }}",
    # the operator without a kernel inside a branch
    "branch": "g (float[n, 16] x, bool[1] flag, {gemm}) => (float[n, 16] y) {{ [up] a = MatMul(x, w1) [choose] b = If(flag) <then_branch = g1 () => (float[n, 16] t)"
              " {{ [inside] u = {op}(a) [after] t = Sigmoid(u) }}, else_branch = g2 () => (float[n, 16] e) {{ [other] e = Neg(a) }}> [down] y = MatMul(b, w2) }}",
    # the same as all_cuda, opened with an option that CUDA does not have
    "whole_fallback": "g (float[n, 16] x, {gemm}) => (float[n, 16] y) {{ [up] a = MatMul(x, w1) [bend] b = Sigmoid(a) [down] c = MatMul(b, w2) [add] y = Add(c, x) }}",
}


@contextlib.contextmanager
def native_log(into):
    """Collects what native code writes to stderr."""
    screen = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(screen, 2)
            os.close(screen)
            file.seek(0)
            text = re.sub(r"\x1b\[[0-9;]*m", "", file.read().decode(errors="replace"))
            into.extend(re.sub(r"^\S+ \S+ (\[\w:onnxruntime)", r"\1", line) for line in text.splitlines() if "Memcpy" in line or "[W:" in line or "[E:" in line)


def source(name, op, op2="Neg"):
    model = parser.parse_model(HEAD + SOURCES[name].format(gemm=GEMM, op=op, op2=op2))
    rng = np.random.default_rng(3)
    for weight in ("w1", "w2"):  # weights, so that they are stored on the device once
        model.graph.initializer.append(onnx.numpy_helper.from_array(rng.standard_normal((16, 16)).astype(np.float32) / 4, weight))
        model.graph.input.remove(next(i for i in model.graph.input if i.name == weight))
    onnx.checker.check_model(model, full_check=True)
    return model


def session_of(model, settings, provider, options):
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    settings.log_severity_level = 1
    return ort.InferenceSession(model.SerializeToString(), settings, providers=[(provider, options), CPU])


def owners(session):
    return [[part.ep_name, node.name, node.op_type] for part in session.get_provider_graph_assignment_info() for node in part.get_nodes()]


def record(name, ops, folder, provider):
    model, log, printed = source(name, *ops), [], io.StringIO()
    onnx.save(model, folder / f"{name}.onnx")
    settings = ort.SessionOptions()
    settings.enable_profiling = True
    settings.profile_file_prefix = str(folder / f"{name}.running")
    settings.optimized_model_filepath = str(folder / f"{name}.optimized.onnx")
    options = {"use_tf23": "0"} if name == "whole_fallback" else {"use_tf32": "0"}
    with native_log(log), contextlib.redirect_stdout(printed), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        session = session_of(model, settings, provider, options)
        rng = np.random.default_rng(4)
        feeds = {"x": rng.standard_normal((8, 16)).astype(np.float32)} | ({"flag": np.array([True])} if name == "branch" else {})
        for _ in range(2):
            session.run(None, feeds)
    profile = folder / f"{name}.profile.json"
    Path(session.end_profiling()).replace(profile)
    events = json.loads(profile.read_text())
    profile.write_text("[\n" + ",\n".join(json.dumps(event) for event in events) + "\n]\n", encoding="utf-8")
    return {"asked": [[provider, options], [CPU, {}]], "providers": session.get_providers(), "assignment": owners(session), "log": log,
            "printed": [line for line in printed.getvalue().splitlines() if line], "warned": [str(w.message).splitlines()[0] for w in warned]}


def main():
    if len(sys.argv) < 2:
        sys.exit("Say which system this is, as in: python -m models.cuda_placements.make h200-ort131")
    provider = CUDA if CUDA in ort.get_available_providers() else CPU  # without CUDA only to try this script: the record says so
    if provider == CUDA:
        ort.preload_dlls()
    folder = Path(sys.argv[2] if len(sys.argv) > 2 else __file__).resolve()
    folder = folder if len(sys.argv) > 2 else folder.parent
    folder.mkdir(parents=True, exist_ok=True)
    tried = {}
    for op in CANDIDATES:
        with native_log([]):
            tried[op] = next(owner for owner, node, _ in owners(session_of(source("no_kernel", op), ort.SessionOptions(), provider, {})) if node == "alone")
    chosen = [op for op, owner in tried.items() if owner == CPU][:2]
    if len(chosen) < 2:
        sys.exit(f"fewer than two candidates have no kernel for {provider}: {tried}; add operators that have none")
    found = {}
    for name in SOURCES:
        try:
            found[name] = record(name, chosen, folder, provider)
        except Exception as problem:  # one model that a release refuses must not cost the others
            found[name] = {"error": f"{type(problem).__name__}: {problem}"}
    commit = os.environ.get("BENCH_COMMIT") or subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True).stdout.strip()
    about = {"date": f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%dT%H:%M:%SZ}", "system": sys.argv[1], "described": describe(sys.argv[1]),
             "command": f"python -m models.cuda_placements.make {sys.argv[1]}", "commit": commit, "provider": provider, "operators": chosen, "tried": tried}
    (folder / "record.json").write_text(json.dumps({**about, "models": found}, indent=1) + "\n", encoding="utf-8")
    for name, one in found.items():
        if "error" in one:
            print(f"{name:15}", one["error"])
            continue
        print(f"{name:15}", one["providers"], [f"{node}:{owner[:4]}" for owner, node, _ in one["assignment"]], f"{sum('Memcpy' in line for line in one['log'])} lines about copies")


if __name__ == "__main__":
    main()
