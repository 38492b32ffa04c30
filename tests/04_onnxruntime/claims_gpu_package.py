"""What the pages say of the package onnxruntime-gpu on a machine without a GPU; skipped where either does not hold.

    python -m venv plain && plain/bin/pip install "onnxruntime-gpu[cuda,cudnn]==1.31.1" pytest
    plain/bin/python -m pytest --noconftest -o addopts= -rA tests/04_onnxruntime/claims_gpu_package.py
"""
import ctypes
import importlib.metadata
import importlib.util
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

MODEL = str(Path(__file__).parents[2] / "models/digits_mlp/digits_mlp.onnx")
CPU, CUDA, TENSORRT = (f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "Tensorrt"))


def without_gpu_but_with_its_package():
    try:
        importlib.metadata.version("onnxruntime-gpu")
    except importlib.metadata.PackageNotFoundError:
        return False
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return True
    return False


pytestmark = pytest.mark.skipif(not without_gpu_but_with_its_package(), reason="needs onnxruntime-gpu and no driver for a GPU")


@pytest.fixture(scope="module")
def ort():
    import onnxruntime
    return onnxruntime


def locked(ort):
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return options


def test_the_lists_name_a_gpu_that_is_not_there(ort):
    assert ort.get_available_providers() == [TENSORRT, CUDA, CPU]
    assert ort.get_device() == "GPU"


def test_devices_that_are_there_are_the_cpu_only(ort):
    assert [device.ep_name for device in ort.get_ep_devices()] == [CPU]


@pytest.mark.parametrize("fallback", [1, 0])
def test_asked_for_cuda_the_session_is_on_the_cpu_with_two_lines_in_the_log(ort, capfd, fallback):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session = ort.InferenceSession(MODEL, providers=[CUDA], enable_fallback=fallback)
    out, log = capfd.readouterr()
    assert session.get_providers() == [CPU]
    assert out == ""
    assert "Failed to load library" in log
    assert "Failed to create CUDAExecutionProvider" in log


def test_with_the_default_logger_off_nothing_at_all_is_said(ort, capfd):
    ort.set_default_logger_severity(4)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            session = ort.InferenceSession(MODEL, providers=[CUDA])
    finally:
        ort.set_default_logger_severity(2)
    assert session.get_providers() == [CPU]
    assert capfd.readouterr() == ("", "")


def test_without_a_list_cuda_is_not_even_tried(ort, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session = ort.InferenceSession(MODEL)
    assert session.get_providers() == [CPU]
    assert capfd.readouterr() == ("", "")


def test_tensorrt_missing_prints_ep_error_and_goes_on(ort, capfd):
    session = ort.InferenceSession(MODEL, providers=[TENSORRT, CUDA])
    assert session.get_providers() == [CPU]
    assert "EP Error" in capfd.readouterr().out


def test_the_lock_refuses(ort):
    with pytest.raises(Exception, match="fallback to CPU EP has been explicitly disabled"):
        ort.InferenceSession(MODEL, locked(ort), providers=[CUDA])


def test_the_lock_refuses_a_list_that_names_the_cpu(ort):
    with pytest.raises(Exception, match="Conflicting session configuration"):
        ort.InferenceSession(MODEL, locked(ort), providers=[CUDA, CPU])


def test_add_provider_refuses(ort):
    with pytest.raises(Exception, match="Failed to add provider of type 'CUDAExecutionProvider'"):
        ort.SessionOptions().add_provider(CUDA, {})


@pytest.mark.skipif(importlib.util.find_spec("nvidia") is None, reason="needs the extra [cuda,cudnn]")
def test_with_the_libraries_of_cuda_the_driver_is_what_is_missing():
    code = f"import onnxruntime as o; o.preload_dlls(); print(o.InferenceSession({MODEL!r}, providers=[{CUDA!r}]).get_providers())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == str([CPU])
    assert "libcuda.so.1: cannot open shared object file" in done.stderr
