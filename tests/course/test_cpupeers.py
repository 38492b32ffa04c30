"""The suite cpupeers: rounds in turns, ratios of the same round, and the same work for every peer."""
import html
import json
import os
import re
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from course import ROOT
from course.bench import core, cpupeers, nets


def test_a_ratio_is_of_the_same_round():
    # The machine is twice as slow in the second round: the times move, and the ratio does not.
    found = cpupeers.ratios({"ort": [[1.0, 1.0, 1.0], [2.0, 2.0, 9.0]], "slow": [[3.0, 3.0, 8.0], [6.0, 6.0, 6.0]]})
    assert found == {"ort": {"p50": 1.0, "min": 1.0, "max": 1.0}, "slow": {"p50": 3.0, "min": 3.0, "max": 3.0}}


def test_cases_say_what_they_hold():
    cases = cpupeers.cases()
    assert len({case.name for case in cases}) == len(cases) == len(nets.TITLES) * len(nets.BATCHES) * 3
    for case in cases:
        kept = case.configuration
        assert case.name == f"{kept['model']}-fp32-b{kept['batch']}-t{kept['threads']}{'-cpu' * (kept['judged'] == 'cpu')}" and {"ort", "torch", "compile", "openvino"} <= set(kept["ways"])
        assert ("numpy" in kept["ways"]) == (kept["model"] == "mlp")


def test_peers_are_measured_in_turns(monkeypatch):
    monkeypatch.setattr(cpupeers, "ROUNDS", 3)
    asked = []
    plain = cpupeers.asked
    monkeypatch.setattr(cpupeers, "asked", lambda process, way, line="": (line and asked.append(way), plain(process, way, line))[1])
    result = cpupeers.measured("mlp", 1, 1, ["ort", "ortbind", "numpy"])
    assert asked == ["ort", "ortbind", "numpy", "ortbind", "numpy", "ort", "numpy", "ort", "ortbind"]
    assert result.accuracy["error"] == max(result.accuracy["error_of"].values()) < 1e-5
    for way in ("ort", "ortbind", "numpy"):
        for kind in ("clock_back_to_back", "cpu"):
            unit, rounds = result.series[f"{way}_{kind}"]
            assert unit == "ms" and [len(values) for values in rounds] == [cpupeers.BLOCKS] * 3 and min(map(min, rounds)) > 0
    json.dumps(result.results)
    assert result.results["ratio"]["clock"]["ort"]["p50"] == result.results["ratio"]["cpu"]["ort"]["p50"] == 1.0


def test_a_case_is_judged_by_its_own_time(monkeypatch):
    monkeypatch.setattr(cpupeers, "started", lambda way, model, path, *_: np.save(path.replace("model.onnx", f"{way}.npy"), nets.prepared(model)[2][:1]) or Ended())
    wall = iter([1.0, 9.0] * 5)
    monkeypatch.setattr(cpupeers, "asked", lambda process, way, line="": [[next(wall)] * cpupeers.BLOCKS, [2.0] * cpupeers.BLOCKS] if line else {"ready_s": 1.0, "calls_per_block": 1})
    assert any("medians lie" in reason for reason in core.verdict(cpupeers.measured("mlp", 1, 1, ["ort"])))
    wall = iter([1.0, 9.0] * 5)
    assert core.verdict(cpupeers.measured("mlp", 1, 1, ["ort"], judged="cpu")) == []


class Ended:
    def kill(self):
        return None

    wait = kill


def test_a_peer_that_ends_is_an_error():
    with pytest.raises(RuntimeError, match="nothing ended with 1"):
        cpupeers.asked(cpupeers.started("nothing", "cnn", "no/such/model.onnx", 1, 1, []), "nothing")


@pytest.mark.parametrize("model", ["cnn", "block"])
def test_the_torch_network_is_the_same(model, monkeypatch):
    torch = pytest.importorskip("torch", reason="torch is not installed: what is measured elsewhere is checked by its own error")
    monkeypatch.setattr(nets, "INPUTS", 2)
    nets.prepared.cache_clear()
    home, given, reference = nets.prepared(model)
    weights = [array for array in map(numpy_helper.to_array, onnx.load(f"{home.name}/b1.onnx").graph.initializer) if array.dtype == np.float32 and array.ndim]
    with torch.inference_mode():
        got = cpupeers.torch_module(model, weights)(torch.from_numpy(given)).numpy()
    nets.prepared.cache_clear()
    assert got.shape == reference.shape and np.abs(got - reference).max() < 1e-3 * np.abs(reference).max()
    with pytest.raises(RuntimeError, match="leaves weights"):
        cpupeers.torch_module(model, [*weights, weights[0]])


CONF = """
extensions = ["myst_parser", "course.questions", "course.figures"]
exclude_patterns = ["out"]
"""
SYSTEM = {"id": "box", "gpu": None, "driver": None, "cuda": None, "cpu": "A CPU, 2 cores", "python": "3.11", "packages": {"onnxruntime": "1", "torch": "2", "onnx": "3"}}


def test_the_table_shows_the_numbers_of_valid_runs(tmp_path):
    def put(day, threads, time, status="ok", judged="clock"):
        run = {"id": f"{day}_box_cpupeers.net-fp32-b1-t{threads}-{judged}", "system": "box", "date": f"{day}T10:00:00Z", "status": status, "accuracy": {"error": 1e-6, "tolerance": 1e-3},
               "configuration": {"batch": 1, "threads": threads, "rounds": 10, "judged": judged, "ways": {"ort": "the engine", "torch": "the peer"}},
               "results": {f"ort_{judged}_back_to_back": {"p50": time}, "ratio": {"clock": {"torch": {"p50": 2.0, "min": 1.5, "max": 2.25}}, "cpu": {"torch": {"p50": 3.0, "min": 2.9, "max": 3.1}}}}}
        run["results"]["ratio"]["clock"]["ort"] = {}
        (tmp_path / "measurements/runs" / f"{run['id']}.json").write_text(json.dumps(run))

    for name in ("runs", "systems"):
        (tmp_path / "measurements" / name).mkdir(parents=True)
    (tmp_path / "measurements/systems/box.json").write_text(json.dumps(SYSTEM))
    put("2026-01-01", 1, 7.0)
    put("2026-01-02", 1, 1.23456)
    put("2026-01-03", 1, 9.0, status="INVALID")
    put("2026-01-02", 2, 0.8)
    put("2026-01-02", 1, 2.5, judged="cpu")
    (tmp_path / "conf.py").write_text(CONF)
    tables = "\n\n".join(f"```{{peer-table}} {model} fp32\n:systems: box{more}\n```" for model, more in (("net", ""), ("net", "\n:of: cpu"), ("other", "")))
    (tmp_path / "index.md").write_text(f"# Book\n\n{tables}\n")
    # In a process of its own: what another test's book registered would stay with this one's.
    warning = subprocess.run([sys.executable, "-m", "sphinx", "-q", "-b", "html", str(tmp_path), str(tmp_path / "out")],
                             cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1"}).stderr
    shown = re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", (tmp_path / "out/index.html").read_text())))
    assert "time by the clock batch 1, 1 thread batch 1, 2 threads the engine 1.23 ms 0.8 ms the peer 2.00 (1.50 to 2.25) 2.00 (1.50 to 2.25)" in shown
    assert "processor time batch 1, 1 thread the engine 2.5 ms the peer 3.00 (2.90 to 3.10)" in shown
    assert "A CPU, 2 cores, Python 3.11, onnxruntime 1, torch 2. 2026-01-02." in shown and "1.0e-06 of their spread" in shown
    assert warning.count("WARNING") == 1 and "other fp32: no valid run of cpupeers on box" in warning
