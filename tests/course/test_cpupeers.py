"""The suite cpupeers: rounds in turns, ratios of the same round, and the same work for every peer."""
import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from course import figures
from course.bench import core, cpupeers, nets


def test_a_ratio_is_of_the_same_round():
    # The machine is twice as slow in the second round: the times move, and the ratio does not.
    found = cpupeers.ratios({"ort": [[1.0, 1.0, 1.0], [2.0, 2.0, 9.0]], "slow": [[3.0, 3.0, 8.0], [6.0, 6.0, 6.0]]})
    assert found == {"ort": {"p50": 1.0, "min": 1.0, "max": 1.0}, "slow": {"p50": 3.0, "min": 3.0, "max": 3.0}}


def test_cases_say_what_they_hold():
    cases = cpupeers.cases()
    assert len({case.name for case in cases}) == len(cases) == len(nets.TITLES) * len(nets.BATCHES) * 2
    for case in cases:
        kept = case.configuration
        assert case.name == f"{kept['model']}-fp32-b{kept['batch']}-t{kept['threads']}" and {"ort", "torch", "compile", "openvino"} <= set(kept["ways"])
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
        for kind in ("back_to_back", "cpu"):
            unit, rounds = result.series[f"{way}_{kind}"]
            assert unit == "ms" and [len(values) for values in rounds] == [cpupeers.BLOCKS] * 3 and min(map(min, rounds)) > 0
    run = {"results": {**result.results, "ort_back_to_back": core.summary(result.series["ort_back_to_back"][1])}}
    json.dumps(run)
    assert result.results["ratio"]["ort"]["p50"] == 1.0


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


def test_the_table_shows_the_run_s_own_numbers():
    table = figures.PeerTable.__new__(figures.PeerTable)
    run = {"results": {"ort_back_to_back": {"p50": 1.23456}, "ort_cpu": {"p50": 2.5}, "ratio": {"torch": {"p50": 2.0, "min": 1.5, "max": 2.25}}, "cpu_ratio": {"torch": {"p50": 1.0, "min": 1.0, "max": 1.0}}}}
    table.options = {}
    assert table.cell(run, "ort") == "1.23 ms" and table.cell(run, "torch") == "2.00 (1.50 to 2.25)"
    table.options = {"of": "cpu"}
    assert table.cell(run, "ort") == "2.5 ms" and table.cell(run, "torch") == "1.00 (1.00 to 1.00)"
