"""Describes the machine that runs: GPU, driver, CUDA, processor, Python and the packages that matter.

    python -m course.system ID [FOLDER]       writes FOLDER/ID.json (FOLDER: measurements/systems) and prints it

Asks nvidia-smi and the operating system; a value that cannot be read is null, never guessed.
"""
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

from course import ROOT

PACKAGES = ("tensorrt", "tensorrt-rtx", "onnxruntime-gpu", "onnxruntime", "pycuda", "torch", "openvino", "onnx", "numpy")


def smi(*fields):
    """One value a field, as nvidia-smi prints them; None where it cannot be asked."""
    try:
        out = subprocess.run(["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"],
                             capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return [None] * len(fields)
    return [None if v.strip().startswith("[") else v.strip() for v in out.splitlines()[0].split(",")]


def cuda_version():
    try:
        text = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=60).stdout
    except OSError:
        return None
    found = re.search(r"CUDA(?: UMD)? Version: *([\d.]+)", text)
    return found and found[1]


def version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        if package.startswith("onnxruntime"):      # onnxruntime-gpu brings the module onnxruntime, and is not that package
            return None
        try:
            return __import__(package.replace("-", "_")).__version__
        except Exception:  # not installed, or not loadable here
            return None


def packages():
    """Of onnxruntime and onnxruntime-gpu only the one that is imported: both bring the module of that name."""
    found = {p: v for p in PACKAGES if (v := version(p))}
    if {"onnxruntime", "onnxruntime-gpu"} <= found.keys():
        import onnxruntime

        return {p: v for p, v in found.items() if not p.startswith("onnxruntime") or v == onnxruntime.__version__}
    return found


def processor():
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        return found and found[1]
    except OSError:
        return platform.processor() or None


def describe(name):
    gpu, driver, capability, memory = smi("name", "driver_version", "compute_cap", "memory.total")
    sm, mem, sm_max, mem_max, limit = smi("clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.limit")
    return {
        "id": name, "gpu": gpu and f"{gpu}, {memory} MiB", "driver": driver, "cuda": cuda_version(), "compute_capability": capability,
        "cpu": f"{processor()}, {os.cpu_count()} cores",
        "os": platform.platform(), "python": platform.python_version(),
        "packages": packages(),
        "clocks": {"sm_mhz": sm, "memory_mhz": mem, "sm_max_mhz": sm_max, "memory_max_mhz": mem_max, "power_limit_w": limit},
    }


def main():
    if len(sys.argv) < 2:
        sys.exit("Give the system an id, as in: python -m course.system h200-trt86")
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else ROOT / "measurements/systems"
    text = json.dumps(describe(sys.argv[1]), indent=2) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{sys.argv[1]}.json").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
