"""The measurement pipeline, on this CPU: what it times, when it says INVALID, and that it survives an interruption."""
import json
import os
import statistics
import subprocess
import sys
import time

import jsonschema
import numpy as np
import onnx
import onnx.reference
import pytest
from onnx import TensorProto, helper

from course import ROOT, apinames
from course.bench import __main__ as bench
from course.bench import core, count, cpu, gpu, models, trtbuild


class Device:
    """A simulated device with its own clock: a call takes 1 ms to enqueue and 5 ms to do; the first one 100 ms more."""

    def __init__(self):
        self.now = self.busy_until = 0.0
        self.calls = 0

    def call(self):
        self.now += 0.001
        self.busy_until = max(self.now, self.busy_until) + (0.105 if not self.calls else 0.005)
        self.calls += 1

    def wait(self):
        self.now = max(self.now, self.busy_until)


def test_times_the_work_and_not_its_launch():
    device = Device()
    series, how = core.time_calls(device.call, device.wait, clock=lambda: device.now, warm_up_s=0.3)
    assert how["calls_per_block"] == 2
    assert series["latency"][0] == series["back_to_back"][0] == "ms"
    assert [round(v, 6) for v in series["latency"][1][0]] == [6.0] * len(series["latency"][1][0])  # enqueue, then do
    # Back to back the next launch hides behind the work before it: (1 + 2 * 5) / 2.
    assert {round(v, 6) for values in series["back_to_back"][1] for v in values} == {5.5}


def test_slow_work_is_sampled_less_and_says_so():
    device = Device()
    series, _ = core.time_calls(device.call, device.wait, clock=lambda: device.now, longest_s=0.2)
    assert "samples, at least" in " ".join(core.verdict(core.Result(series)))


@pytest.mark.parametrize("share, want", [(0.01, 1), (0.5, 50), (0.9, 90), (0.99, 99), (0.991, 100), (1, 100)])
def test_percentiles_are_nearest_rank(share, want):
    assert core.percentile(range(100, 0, -1), share) == want


@pytest.mark.parametrize("values, share", [([], 0.5), ([1.0], 0), ([1.0], 1.01)])
def test_percentile_of_nothing_is_an_error(values, share):
    with pytest.raises(ValueError):
        core.percentile(values, share)


def test_no_p99_of_few_samples():
    assert "p99" not in core.summary([[1.0] * 99])
    assert core.summary([[1.0] * 98 + [3.0, 2.0]])["p99"] == 2.0


def good():
    rng = np.random.default_rng(3)
    rounds = [list(1 + rng.random(20) / 100) for _ in range(5)]
    return core.Result({"back_to_back": ("ms", rounds)}, {}, {"error": 1e-6, "tolerance": 1e-4},
                       {"sm_mhz": {"min": 1900.0, "max": 1980.0}}, {})


SMI = """#!/bin/sh
case "$1" in
--help-query-gpu) echo '"{known}"' ;;
*) case "$1" in *clocks_event_reasons.active*) more=", 0x0000000000000024" ;; esac
   while :; do echo "1980, 3201, 650.5, 61, 1234$more"; echo "1500, 3201, 690.5, 63, 1300$more"; echo "N/A, 1, 2, 3, 4$more"; sleep 0.02; done ;;
esac
"""


@pytest.mark.parametrize(("known", "reasons"), [("clocks_event_reasons.active", ["software power cap", "software thermal slowdown"]), ("clocks.sm", [])])
def test_reads_clocks_power_memory_and_what_held_the_clock_down(tmp_path, monkeypatch, known, reasons):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(SMI.replace("{known}", known))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    core._nvidia_smi_fields.cache_clear()
    try:
        with core.Clocks() as clocks:
            end = time.monotonic() + 20
            while len(clocks.read) < 4 and time.monotonic() < end:
                time.sleep(0.02)
        found = clocks.summary()
    finally:
        core._nvidia_smi_fields.cache_clear()
    assert found["sm_mhz"] == {"min": 1500, "max": 1980} and found["power_w"]["max"] == 690.5 and found["temperature_c"] == {"max": 63}
    assert found["memory_used_mib"] == {"max": 1300} and found["event_reasons"] == reasons


def test_a_sound_result_counts():
    assert core.verdict(good()) == []


def test_few_samples_count_only_where_a_case_says_so():
    result = good()
    result.series["build"] = ("s", [[50.0]])
    assert core.verdict(result) == ["build: 1 samples, at least 50 are wanted"]
    result.few["build"] = 1
    assert core.verdict(result) == []
    result.few["build"] = 2
    assert core.verdict(result) == ["build: 1 samples, at least 2 are wanted"]


def test_the_rounds_of_a_second_engine_may_not_lie_apart_either():
    result = good()
    result.series["plain_back_to_back"] = ("ms", [[1.0] * 20, [2.0] * 20, [1.0] * 20])
    assert "plain_back_to_back: the rounds' medians" in "; ".join(core.verdict(result))


@pytest.mark.parametrize("spoil, word", [
    (lambda r: r.accuracy.update(error=1e-3), "above the tolerance"),
    (lambda r: r.accuracy.update(error=float("nan")), "above the tolerance"),
    (lambda r: r.accuracy.update(error=None), "no error"),
    (lambda r: r.accuracy.pop("tolerance"), "no tolerance"),
    (lambda r: r.clocks["sm_mhz"].update(min=1500.0), "SM clock moved"),
    (lambda r: r.series.update(back_to_back=("ms", r.series["back_to_back"][1][:2])), "40 samples"),
    (lambda r: r.series["back_to_back"][1][0].__setitem__(0, 0.0), "not a positive"),
    (lambda r: r.series["back_to_back"][1].__setitem__(0, [2.0] * 20), "medians"),
    (lambda r: r.series.clear(), "no samples"),
])
def test_a_spoiled_result_is_invalid(spoil, word):
    result = good()
    spoil(result)
    assert word in "; ".join(core.verdict(result))


def conv_model():
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["c"], group=2, pads=[1, 1, 1, 1], strides=[2, 2]), helper.make_node("Relu", ["c"], ["y"])],
        "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 6, 4, 4])],
        [helper.make_tensor("w", TensorProto.FLOAT, [6, 2, 3, 3], [0.5] * 108)])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def test_counts_a_grouped_convolution_by_hand():
    found = count.count(conv_model(), 5)
    assert found.operations == 2 * 5 * 6 * 4 * 4 * (2 * 3 * 3)  # each output value: in-channels of its group times the kernel
    assert (found.weights, found.inputs, found.outputs) == (4 * 108, 4 * 5 * 4 * 64, 4 * 5 * 6 * 16)
    assert found.unfused == found.weights + found.inputs + 3 * found.outputs  # Conv writes, Relu reads and writes


def test_counts_of_a_table_the_rows_that_are_read():
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["rows"]), helper.make_node("MatMul", ["rows", "w"], ["y"])],
        "g", [helper.make_tensor_value_info("ids", TensorProto.INT32, ["n", 3])], [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3, 2])],
        [helper.make_tensor("table", TensorProto.FLOAT, [100, 4], [0.5] * 400), helper.make_tensor("w", TensorProto.FLOAT, [4, 2], [0.5] * 8)])
    found = count.count(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), 5)
    assert found.weights == 4 * (5 * 3 * 4 + 8) and found.operations == 2 * 5 * 3 * 4 * 2


def test_the_committed_counts_are_those_of_the_models():
    kept = json.loads((ROOT / "measurements/counts.json").read_text())
    for batch in (1, 8, 32, 128):
        one = count.count_file(cpu.MODEL, batch)
        assert kept["mlp"]["fp32"][str(batch)] == {"operations": one.operations, "bytes": one.compulsory, "unfused_bytes": one.unfused, "nodes": one.nodes}
        # BERT-base by hand: four products of 768 x 768 and two of 768 x 3072 a token and layer, scores and mix of 128 x 128 x 64 in 12 heads
        a_layer = 128 * (4 * 768 * 768 + 2 * 768 * 3072) + 2 * 12 * 128 * 128 * 64
        assert kept["bert"]["fp16"][str(batch)]["operations"] == 2 * 12 * a_layer * batch
        # what moves: the layers' weights, the ids' rows, the places, one gain and offset that all norms share, as untrained norms are equal;
        # ids are int32, the output 16 bits
        weights = 12 * (4 * 768 * 769 + 3072 * 769 + 768 * 3073) + 2 * 768 + 128 * 768
        rows, out = batch * 128 * 768, batch * 128 * 768
        assert abs(kept["bert"]["fp16"][str(batch)]["bytes"] - (2 * (weights + rows + out) + 4 * batch * 128)) < 4096
        # ResNet-50 is 4.09 billion multiplications and additions an image (stride in the 3 x 3 convolution)
        assert kept["resnet50"]["fp16"][str(batch)]["operations"] == pytest.approx(2 * 4.09e9 * batch, rel=0.003)


def test_joins_projections_of_one_tensor_and_keeps_the_result():
    rng = np.random.default_rng(3)
    arrays = {f"{kind}{n}": rng.standard_normal(shape).astype(np.float32) for n in range(3) for kind, shape in (("w", (4, 6)), ("b", (6,)))}
    nodes = [node for n in range(3) for node in (helper.make_node("MatMul", ["x", f"w{n}"], [f"m{n}"]), helper.make_node("Add", [f"b{n}", f"m{n}"], [f"a{n}"]))]
    nodes += [helper.make_node("Sub", ["a0", "a1"], ["d"]), helper.make_node("Mul", ["d", "a2"], ["y"])]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])], [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 6])],
                              [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    x = rng.standard_normal((5, 4)).astype(np.float32)
    before = onnx.reference.ReferenceEvaluator(model).run(None, {"x": x})[0]
    assert models.join_projections(model) == 1
    assert [node.op_type for node in model.graph.node] == ["MatMul", "Add", "Split", "Sub", "Mul"]
    np.testing.assert_allclose(onnx.reference.ReferenceEvaluator(model).run(None, {"x": x})[0], before, rtol=1e-5)
    assert models.join_projections(model) == 0


def test_reads_the_kernels_that_ncu_lists():
    text = '''==PROF== Connected to process 12
"ID","Process ID","Kernel Name","gpu__time_duration.sum"
"","","","ns"
"0","12","gemm, a","2,500"
"1","12","gemm, a","1500"
"2","12","norm","750"
==PROF== Disconnected
'''
    assert gpu.ncu_kernels(text) == {"unit": "us", "total": 4.75, "kernels": 3, "slowest": [["gemm, a", 4.0, 2], ["norm", 0.75, 1]]}
    with pytest.raises(ValueError, match="no kernel"):
        gpu.ncu_kernels("==ERROR== No kernels were profiled.")


def test_counts_the_digits_model():
    found = count.count_file(cpu.MODEL, 32)
    assert found.operations == 2 * 32 * (784 * 128 + 128 * 10)
    assert found.weights == 4 * (784 * 128 + 128 + 128 * 10 + 10)


def test_float64_oracle_reads_the_digits():
    data = np.load(ROOT / "models/digits_mlp/heldout.npz")
    read = cpu._float64(data["images"].reshape(-1, 784).astype(np.float32) / 255).argmax(1)
    assert (read == data["labels"]).sum() == 348


def test_error_is_about_one_for_outputs_of_other_inputs():
    want = cpu._float64(models.inputs("mlp"))
    assert models.accuracy("mlp", "fp32", want.astype(np.float32), want)["error"] < 1e-6
    assert models.accuracy("mlp", "fp32", want[::-1], want)["error"] > 0.5
    assert models.accuracy("mlp", "fp32", want[:, :3], want)["error"] is None


@pytest.fixture
def place(tmp_path):
    subprocess.run([sys.executable, "-m", "course.system", "here", str(tmp_path / "systems")], cwd=ROOT, check=True, capture_output=True)
    return tmp_path / "runs"


def measure(place, *more):
    return bench.main(["cpu", "--system", "here", "--out", str(place), "--only", "mlp-fp32-b1-ort", *more])


def test_a_run_fits_its_schema_and_is_not_made_twice(place, capsys, monkeypatch):
    monkeypatch.setattr(core, "SPREAD_SHARE", 10.0)  # this machine is busy with other tests
    assert measure(place) == 0
    (path,) = place.glob("*.json")
    run = json.loads(path.read_text())
    schema = json.loads((ROOT / "course/run_schema.json").read_text())
    jsonschema.validate(run, {**schema, "$ref": "#/$defs/run"})
    samples = run["samples"]["back_to_back"]
    assert sum(samples["rounds"]) == len(samples["values"]) == run["results"]["back_to_back"]["n"]
    assert run["results"]["back_to_back"]["p50"] in samples["values"]
    assert run["accuracy"]["same_top_class"] == 1 and run["accuracy"]["error"] < 1e-5
    capsys.readouterr()
    assert measure(place) == 0 and "finished before" in capsys.readouterr().out
    assert json.loads(path.read_text()) == run


def test_a_half_written_or_invalid_run_is_made_again(place, monkeypatch):
    monkeypatch.setattr(core, "SPREAD_SHARE", 10.0)
    measure(place)
    (path,) = place.glob("*.json")
    run = json.loads(path.read_text())
    path.write_text(path.read_text()[:200])
    assert bench.done(place, "here", "cpu", "mlp-fp32-b1-ort") is None
    run["status"], run["reasons"] = "INVALID", ["for this test"]
    path.write_text(json.dumps(run))
    assert measure(place) == 0
    assert json.loads(path.read_text())["status"] == "ok"


def test_wrong_outputs_come_out_invalid(place, monkeypatch):
    true = models.inputs("mlp")
    calls = iter([true[::-1].copy(), true[::-1].copy()])  # the timed inputs; the oracle keeps its own
    oracle = cpu._float64(true)
    monkeypatch.setattr(models, "inputs", lambda name: next(calls))
    monkeypatch.setattr(cpu, "_float64", lambda images: oracle)
    assert measure(place) == 1
    (path,) = place.glob("*.json")
    run = json.loads(path.read_text())
    assert run["status"] == "INVALID" and "above the tolerance" in " ".join(run["reasons"])


def test_every_recorded_summary_follows_from_its_samples():
    seen = 0
    for path in sorted((ROOT / "measurements/runs").glob("*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        for name, samples in run["samples"].items():
            if "rounds" not in samples:
                continue
            at, medians = 0, []
            for size in samples["rounds"]:
                medians.append(statistics.median(samples["values"][at:at + size]))
                at += size
            found = run["results"][name]
            ordered = sorted(samples["values"])
            assert found["p50"] == ordered[-(-len(ordered) // 2) - 1], path.name
            assert found["spread"] == pytest.approx((max(medians) - min(medians)) / statistics.median(medians), abs=1e-4), path.name
            seen += 1
    assert seen > 50


@pytest.mark.parametrize("arguments, word", [
    (["cpu"], "--system"), (["cpu", "--system", "no-such-machine"], "course.system"),
    (["cpu", "--system", "here", "--only", "nothing-*"], "no case"), (["nothing"], "invalid choice"),
])
def test_bad_input_says_what_to_do(arguments, word, capsys):
    with pytest.raises(SystemExit):
        bench.main(arguments)
    assert word in capsys.readouterr().err


def test_fix_batch_leaves_the_model_as_it_was():
    model = conv_model()
    before = model.SerializeToString()
    fixed = count.fix_batch(model, 3)
    assert model.SerializeToString() == before and fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 3
    onnx.checker.check_model(fixed)


# What the suite ``trt`` does on a CPU: its network, its oracle, its builds (by TensorRT for RTX), and what it makes of two engines.


def test_the_small_networks_oracle_agrees_with_onnx_runtime():
    import onnxruntime as ort

    reference, model = trtbuild.conv_reference(), trtbuild.Model("convnet")
    run = {kind: ort.InferenceSession(trtbuild.conv_model(kind).SerializeToString(), providers=["CPUExecutionProvider"]) for kind in ("fp32", "fp16")}
    given = trtbuild.conv_inputs()
    full = run["fp32"].run(None, {"input": given.astype(np.float32)})[0]
    assert reference.shape == (32, 10) and np.abs(full - reference).max() < 1e-5
    half = run["fp16"].run(None, {"input": given})[0]
    assert 1e-5 < model.accuracy(half)["error"] < model.accuracy(half)["tolerance"] / 10
    assert model.accuracy(half[::-1])["error"] > 0.5  # outputs of other inputs


def test_builds_the_small_network_for_one_batch_and_for_a_range():
    trt = pytest.importorskip("tensorrt_rtx")
    weights = sum(array.nbytes for array in trtbuild.conv_weights().values())
    plans = {batch: trtbuild.builds(trt, trtbuild.Model("convnet", batch), 1)[0].plan for batch in (8, 1, 0)}
    assert min(map(len, plans.values())) > weights and len(set(plans.values())) == 3
    full = trtbuild.builds(trt, trtbuild.Model("convnet"), 1, precision="fp32")[0].plan
    assert len(full) > len(plans[8]) + weights / 2  # its weights are twice as large


def test_a_build_that_fails_says_what_tensorrt_said():
    trt = pytest.importorskip("tensorrt_rtx")
    with pytest.raises(RuntimeError, match="libnvinfer_lean"):  # it comes from the logger, written in C++
        trtbuild.builds(trt, trtbuild.Model("convnet"), 1, flags=("VERSION_COMPATIBLE",))
    broken = trtbuild.conv_model()
    broken.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(RuntimeError, match="NoSuchOperator"):
        trtbuild.build(trt, broken, batch=8)


def test_hears_what_is_written_below_python_and_gives_the_streams_back():
    with trtbuild.heard() as said:
        os.write(1, b"out of C\n")
        os.write(2, b"  error of C \n\n")
    assert said == ["out of C", "error of C"]
    with pytest.raises(ValueError), trtbuild.heard() as said:
        os.write(2, b"before it broke\n")
        raise ValueError
    assert said == ["before it broke"]
    with trtbuild.heard() as nothing:
        pass
    assert nothing == []


def test_a_plan_takes_a_library_along_whole(tmp_path):
    trt = pytest.importorskip("tensorrt_rtx")
    library = tmp_path / "lib.so"
    library.write_bytes(b"\x7fELF" + bytes(range(256)) * 40)
    (made,) = trtbuild.builds(trt, trtbuild.Model("convnet"), 1, libraries=(str(library),))
    assert library.read_bytes() in made.plan
    with pytest.raises(RuntimeError, match="Cannot open file"):
        trtbuild.builds(trt, trtbuild.Model("convnet"), 1, libraries=(str(tmp_path / "absent.so"),))


def test_sees_which_libraries_were_mapped():
    before = trtbuild._mapped()
    assert any("libpython" in name or "python" in name for name in before)
    import _lsprof  # noqa: F401

    assert {name for name in trtbuild._mapped() - before if "_lsprof" in name} or any("_lsprof" in name for name in before)


def test_a_child_that_dies_by_a_signal_is_an_answer(monkeypatch):
    monkeypatch.setattr(trtbuild.sys, "executable", "/bin/sh")
    monkeypatch.setattr(trtbuild.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, -11, "", "Segmentation fault"))
    assert trtbuild.child("load") == {"signal": 11}
    monkeypatch.setattr(trtbuild.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 0, 'a log line\nanswer: {"engine": true}\nanother\n', ""))
    assert trtbuild.child("load") == {"engine": True}


def test_two_engines_are_compared_by_layer_and_by_value():
    one, other = {"conv": "a", "relu": "b", "gemm": "c"}, {"conv": "a", "relu": "x", "copy": "y"}
    assert trtbuild.compared(one, other) == {"layers": [3, 3], "layers_of_one_only": 2, "layers_with_another_tactic": 1, "same_tactics": False}
    assert trtbuild.compared(one, dict(one))["same_tactics"] is True
    assert trtbuild.compared({}, {})["same_tactics"] is None  # an engine that tells nothing proves nothing
    found = trtbuild.difference(np.array([1, -4, 2], np.float16), np.array([1, -4, 2.5], np.float16))
    assert found == {"identical": False, "values": 3, "values_that_differ": 1, "largest": 0.5, "largest_output": 4.0}
    unwritten = trtbuild.difference(np.array([np.nan]), np.array([np.nan]))  # nothing was written, and JSON has no NaN
    assert unwritten["identical"] is False and unwritten["largest"] is None


def test_clocks_of_two_parts_keep_the_lowest_and_the_highest():
    def part(low, high, watts, reasons):
        return {"readings": 4, "sm_mhz": {"min": low, "max": high}, "memory_mhz": {"min": 3000, "max": 3000}, "power_w": {"mean": watts, "max": watts},
                "temperature_c": {"max": 50}, "memory_used_mib": {"max": 100}, "event_reasons": reasons}

    joined = trtbuild.worst_clocks(part(1900, 1980, 300, ["b"]), {}, part(1200, 1950, 500, ["a", "b"]))
    assert joined["sm_mhz"] == {"min": 1200, "max": 1980} and joined["power_w"] == {"mean": 400, "max": 500}
    assert joined["event_reasons"] == ["a", "b"] and joined["readings"] == 8 and trtbuild.worst_clocks({}, {}) == {}


class Release:
    """A release as its inventory has it: names of classes and enums, no behaviour."""

    def __init__(self, release):
        for name, entry in apinames.inventory(release).items():
            setattr(self, name, type(name, (), dict.fromkeys(entry.get("members", {}))))


@pytest.mark.parametrize("release, has, lacks", [
    ("8.6", {"convnet-version-compatible", "convnet-ampere-plus", "convnet-both"},
     {"convnet-strip", "convnet-same-capability", "convnet-editable", "convnet-typed-strong", "convnet-typed-weak"}),
    ("10.16", {"convnet-strip", "convnet-same-capability", "convnet-editable", "convnet-typed-strong", "convnet-typed-weak"}, set()),
    ("11.4", {"convnet-strip", "convnet-same-capability", "convnet-editable"}, {"convnet-typed-strong", "convnet-typed-weak"}),
])
def test_a_release_is_asked_only_for_what_it_offers(release, has, lacks):
    names = {case.name for case in trtbuild.cases(Release(release))}
    assert has <= names and not lacks & names
    assert {"resnet50-twice", "resnet50-start", "bert-start", "resnet50-range", "convnet-refit", *(f"convnet-level{n}" for n in range(6))} <= names


def test_the_suite_names_only_what_its_releases_have():
    assert apinames.check_source("trtbuild.py", (ROOT / "course/bench/trtbuild.py").read_text(encoding="utf-8")) == []


def test_a_child_that_fails_says_why():
    with pytest.raises(RuntimeError, match="No such file|No module named"):
        trtbuild.child("start", model="convnet", plan="no/such.plan")
