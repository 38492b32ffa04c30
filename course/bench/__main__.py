"""python -m course.bench SUITE --system ID [--out FOLDER] [--only PATTERN …] [--budget S] [--again] [--list]"""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import importlib
import importlib.util
import json
import shlex
import sys
import time
import traceback
from pathlib import Path

from course import ROOT
from course.bench import core

SUITES = {"cpu": "the digits MLP on any machine", "cpupeers": "MLP, residual network and transformer block on the CPU: ONNX Runtime, NumPy, torch, torch.compile, OpenVINO in turns",
          "book": "the book's own builds and pages", "micro": "a GPU's ceilings and experiments (torch)",
          "gpu": "MLP, ResNet-50 and BERT-base on an NVIDIA GPU (what this interpreter can import of tensorrt, onnxruntime, torch)",
          "int8": "INT8, FP16 and TF32 of one model on an NVIDIA GPU: speed and accuracy (TensorRT 8.6 to 10)",
          "ortcuda": "ONNX Runtime's CUDA provider, one option at a time: IOBinding, TF32, CUDA graph, NHWC",
          "loops": "inference loops around one TensorRT engine: the floor of launch latency, one context and two",
          "trt": "TensorRT's builder on an NVIDIA GPU: levels, timing caches, portability, cold starts, refits"}
MODULES = {"trt": "trtbuild"}  # of the suites whose module is not called like them


def done(folder: Path, system: str, suite: str, name: str) -> Path | None:
    """A finished, valid run of the case on that system, whatever its date."""
    for path in sorted(folder.glob(f"*_{system}_{suite}.{name}.json"), reverse=True):
        try:
            run = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            continue
        if run.get("status") == "ok" and run.get("id", "").endswith(f"_{system}_{suite}.{name}"):
            return path
    return None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m course.bench", description="Measures a suite; each case leaves one file.",
                                     epilog="Suites: " + "; ".join(f"{n}: {w}" for n, w in SUITES.items()))
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--system", help="the id that `python -m course.system ID` gave this machine and stack")
    parser.add_argument("--out", type=Path, default=ROOT / "measurements/runs", help="where the runs go (default: measurements/runs)")
    parser.add_argument("--only", nargs="*", default=["*"], metavar="PATTERN", help="cases by name, with * and ?")
    parser.add_argument("--budget", type=float, help="start no case after this many seconds")
    parser.add_argument("--again", action="store_true", help="measure also what has a finished run")
    parser.add_argument("--list", action="store_true", help="name the cases and stop")
    given = parser.parse_args(arguments)
    module = importlib.import_module(f"course.bench.{MODULES.get(given.suite, given.suite)}")
    cases = [case for case in module.cases() if any(fnmatch.fnmatch(case.name, pattern) for pattern in given.only)]
    if not cases:
        parser.error(f"no case of {given.suite} is named like {' '.join(given.only)}; --list names them all")
    if given.list:
        for case in cases:
            missing = [need for need in case.needs if importlib.util.find_spec(need) is None]
            print(f"{case.name:32} {case.what}" + (f" (not here: needs {', '.join(missing)})" if missing else ""))
        return 0
    if not given.system:
        parser.error("say which machine this is: --system ID, with the id that `python -m course.system ID` was given")
    system_file = ROOT / "measurements/systems" / f"{given.system}.json"
    if not system_file.is_file() and not (given.out.parent / "systems" / f"{given.system}.json").is_file():
        parser.error(f"there is no system {given.system!r}; describe this machine first: python -m course.system {given.system}")
    # Where the files went and how long it might take is not part of what was measured.
    command = shlex.join(["python", "-m", "course.bench", given.suite, "--system", given.system, *(["--only", *given.only] if given.only != ["*"] else [])])
    begun, counts = time.monotonic(), {"ok": 0, "INVALID": 0, "finished before": 0, "not here": 0, "out of time": 0}
    for number, case in enumerate(cases, 1):
        label = f"[{number:3}/{len(cases)} {time.monotonic() - begun:6.0f} s] {case.name:30}"
        missing = [need for need in case.needs if importlib.util.find_spec(need) is None]
        if missing:
            counts["not here"] += 1
            continue
        if not given.again and done(given.out, given.system, given.suite, case.name):
            counts["finished before"] += 1
            print(label, "finished before", flush=True)
            continue
        if given.budget is not None and time.monotonic() - begun > given.budget:
            counts["out of time"] += 1
            continue
        run = measure(case, given.suite, given.system, command)
        if run["status"] != "ok" and run["samples"]:  # once more: a clock that moved may have been the machine waking up
            run = measure(case, given.suite, given.system, command)
        core.write(run, given.out)
        counts[run["status"]] += 1
        shown = next(((name, value["p50"]) for name, value in run["results"].items() if isinstance(value, dict) and "p50" in value), None)
        print(label, run["status"], *(f"{shown[0]} p50 {shown[1]:.4g}",) if shown else (), "; ".join(run["reasons"])[:300], flush=True)
    print(", ".join(f"{what}: {n}" for what, n in counts.items() if n), flush=True)
    return 1 if counts["INVALID"] else 0


def measure(case: core.Case, suite: str, system: str, command: str) -> dict:
    began = datetime.datetime.now(datetime.timezone.utc)
    try:
        result, failure = case.run(), ""
    except KeyboardInterrupt:
        raise
    except Exception as problem:  # the case's own failure is its result
        traceback.print_exc(limit=4)
        result, failure = core.Result({}), f"{type(problem).__name__}: {str(problem)[:400]}"
    return core.record(case, result, suite=suite, system=system, command=command, began=began, failure=failure)


if __name__ == "__main__":
    sys.exit(main())
