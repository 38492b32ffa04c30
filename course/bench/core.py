"""What is the same for every measurement: timing, clocks, percentiles, the verdict, and the file."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import os
import platform
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from course import ROOT

CLOCK_SHARE = 0.20  # the SM clock may move by this share of its highest value while samples are taken: at its power limit
# an H200 was seen to wander by 15 %
SPREAD_SHARE = 0.25  # the medians of the rounds may lie this far apart, as a share of their median
SAMPLES = 50  # fewer samples of a series are too few
WARM_UP_S = 1.0  # a GPU is at its clocks by then
ROUNDS = 5


@dataclasses.dataclass
class Case:
    """One thing to measure. ``run()`` does it and returns a :class:`Result`; ``needs`` are modules it imports."""

    name: str
    what: str
    configuration: dict[str, Any]
    run: Callable[[], Result]
    needs: tuple[str, ...] = ()
    gpu: bool = False


@dataclasses.dataclass
class Result:
    """What a case measured. ``series`` maps a name to (unit, rounds of raw samples), none dropped.

    ``error`` and ``tolerance`` are of the outputs of the work that was timed; both None only where there are no outputs
    to be wrong (a copy, a launch). ``tasks`` are counts such as labels right.
    """

    series: dict[str, tuple[str, list[list[float]]]]
    results: dict[str, Any] = dataclasses.field(default_factory=dict)
    accuracy: dict[str, Any] = dataclasses.field(default_factory=dict)
    clocks: dict[str, Any] = dataclasses.field(default_factory=dict)
    configuration: dict[str, Any] = dataclasses.field(default_factory=dict)
    enough: int = SAMPLES  # fewer samples of a series are too few; less only where one sample takes half a minute
    few: dict[str, int] = dataclasses.field(default_factory=dict)  # the same for single series, beside others that have many


def percentile(values: Iterable[float], share: float) -> float:
    """The nearest-rank percentile, ``share`` in (0, 1]: always one of the samples (MLPerf and HdrHistogram count so).

    Raises ValueError for no samples or a share outside (0, 1].
    """
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no samples; a percentile needs at least one")
    if not 0 < share <= 1:
        raise ValueError(f"share {share} is outside (0, 1]; write 0.99 for the 99th percentile")
    rank = -(-share * len(ordered) // 1)  # ceiling
    return ordered[max(int(rank), 1) - 1]


def summary(rounds: list[list[float]]) -> dict[str, float]:
    """Percentiles over all samples of all rounds, and ``spread``: how far the rounds' medians lie apart, as a share.

    The 99th percentile is there only from 100 samples on: below, it would be the maximum under another name.
    """
    samples = [value for values in rounds for value in values]
    medians = [statistics.median(values) for values in rounds if values]
    middle = statistics.median(medians)
    found = {
        "n": len(samples), "rounds": len(rounds), "p50": percentile(samples, 0.5), "p90": percentile(samples, 0.9),
        "min": min(samples), "max": max(samples), "mean": statistics.fmean(samples),
        "spread": (max(medians) - min(medians)) / middle if middle else 0.0,
    }
    if len(samples) >= 100:
        found["p99"] = percentile(samples, 0.99)
    return {key: _short(value) for key, value in found.items()}


def _short(value: Any) -> Any:
    """Six significant digits: no clock here tells more."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def time_calls(
    call: Callable[[], Any],
    wait: Callable[[], Any],
    *,
    warm_up_s: float = WARM_UP_S,
    rounds: int = ROUNDS,
    blocks: int = 12,
    block_s: float = 0.01,
    singles: int = 24,
    longest_s: float = 6.0,
    rest: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[dict[str, tuple[str, list[list[float]]]], dict[str, Any]]:
    """Times ``call``, which may only enqueue work that ``wait`` waits for. Milliseconds, by the host's clock.

    Two series: ``back_to_back``, one sample = the time of a block of calls with one wait at its end, over the calls
    (what a loaded engine needs a batch); ``latency``, one sample = one call and its wait (what one request sees).
    ``longest_s`` bounds the sampling of slow work: fewer samples are taken then, and the verdict may call them too few.
    ``rest`` is a pause after each block and each call of the warm-up, in lengths of it: a board that rests stays below its power limit, and so at one clock.
    """
    call()
    wait()
    begun, calls = clock(), 0
    while clock() - begun < warm_up_s or calls < 3:
        start = clock()
        call()
        wait()
        calls += 1
        if rest:
            time.sleep(rest * (clock() - start))
    start = clock()
    for _ in range(3):
        call()
    wait()
    once = max((clock() - start) / 3, 1e-7)
    inner = max(1, min(5000, round(block_s / once)))
    cost = rounds * (blocks * inner * once + singles * once)
    if cost > longest_s:  # single calls give way first: a verdict hangs on the blocks
        blocks = max(2, min(blocks, int(0.7 * longest_s / (rounds * inner * once))))
        singles = max(2, min(singles, int((longest_s / rounds - blocks * inner * once) / once)))
    busy: list[list[float]] = []
    alone: list[list[float]] = []
    for _ in range(rounds):
        values = []
        for _ in range(blocks):
            start = clock()
            for _ in range(inner):
                call()
            wait()
            spent = clock() - start
            values.append(spent / inner * 1e3)
            if rest:
                time.sleep(rest * spent)
        busy.append(values)
        values = []
        for _ in range(singles):
            start = clock()
            call()
            wait()
            values.append((clock() - start) * 1e3)
        alone.append(values)
    series = {"back_to_back": ("ms", busy), "latency": ("ms", alone)}
    return series, {"warm_up_s": warm_up_s, "warm_up_calls": calls, "calls_per_block": inner, "rounds": rounds, **({"rest": rest} if rest else {})}


# Source: NVML's nvmlClocksEventReasons, CUDA 13.0. Power cap, thermal and brake slowdowns are what a benchmark has to know.
EVENT_REASONS = {
    0x1: "gpu idle", 0x2: "application clocks setting", 0x4: "software power cap", 0x8: "hardware slowdown", 0x10: "sync boost",
    0x20: "software thermal slowdown", 0x40: "hardware thermal slowdown", 0x80: "hardware power brake", 0x100: "display clocks setting",
}


@functools.cache
def _nvidia_smi_fields() -> str:
    """What `nvidia-smi --help-query-gpu` prints; empty where there is no driver."""
    try:
        return subprocess.run(["nvidia-smi", "--help-query-gpu"], capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


class Clocks:
    """Reads clocks, power, temperature, used memory and what held the clocks down while a block runs, by ``nvidia-smi`` every 50 ms.

    ``read`` is empty where there is no driver to ask: a CPU's clock is not read, and the run says null.
    """

    FIELDS = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu", "memory.used")
    REASONS = "clocks_event_reasons.active"  # bits, named in NVML's nvmlClocksEventReasons; asked for where the driver knows the name

    def __init__(self) -> None:
        self.read: list[tuple[float, ...]] = []
        self.reasons = 0

    def __enter__(self) -> Clocks:
        which = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]
        fields = [*self.FIELDS, *([self.REASONS] if self.REASONS in _nvidia_smi_fields() else [])]
        command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits", "-lms", "50"]
        try:
            self.process = subprocess.Popen(command + (["-i", which] if which else []), stdout=subprocess.PIPE,
                                            stderr=subprocess.DEVNULL, text=True)
        except OSError:
            self.process = None
            return self
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()
        return self

    def _listen(self) -> None:
        for line in self.process.stdout:
            try:
                parts = line.split(",")
                self.read.append(tuple(float(part) for part in parts[: len(self.FIELDS)]))
                self.reasons |= int(parts[len(self.FIELDS)], 16) if len(parts) > len(self.FIELDS) else 0
            except ValueError:  # a field that this board does not tell
                continue

    def mark(self) -> None:
        """Forgets what was read so far: called when the warm-up is over."""
        self.read.clear()
        self.reasons = 0

    def __exit__(self, *_: Any) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
            self.thread.join(timeout=2)

    def summary(self) -> dict[str, Any]:
        if not self.read:
            return {}
        sm, memory, power, heat, used = zip(*self.read)
        return {
            "readings": len(sm), "sm_mhz": {"min": min(sm), "max": max(sm)}, "memory_mhz": {"min": min(memory), "max": max(memory)},
            "power_w": {"mean": round(statistics.fmean(power), 1), "max": max(power)}, "temperature_c": {"max": max(heat)},
            "memory_used_mib": {"max": max(used)}, "event_reasons": [name for bit, name in EVENT_REASONS.items() if self.reasons & bit],
        }


def verdict(result: Result) -> list[str]:
    """Why a result does not count; empty where it does."""
    reasons = []
    if not result.series:
        reasons.append("no samples were taken")
    for name, (unit, rounds) in result.series.items():
        samples = [value for values in rounds for value in values]
        wanted = result.few.get(name, result.enough)
        if len(samples) < wanted:
            reasons.append(f"{name}: {len(samples)} samples, at least {wanted} are wanted")
        if any(not value > 0 or value == float("inf") for value in samples):
            reasons.append(f"{name}: a sample is not a positive number of {unit}")
        elif samples and name.endswith("back_to_back") and summary(rounds)["spread"] > SPREAD_SHARE:
            reasons.append(f"{name}: the rounds' medians lie {summary(rounds)['spread']:.0%} apart, at most {SPREAD_SHARE:.0%} is allowed")
    if result.accuracy:
        error, tolerance = result.accuracy.get("error"), result.accuracy.get("tolerance")
        if error is None or tolerance is None:
            reasons.append("accuracy: no error or no tolerance is given")
        elif not error <= tolerance:  # NaN is not below anything
            reasons.append(f"accuracy: the error {error:.3g} is above the tolerance {tolerance:.3g}")
    sm = result.clocks.get("sm_mhz")
    if sm and sm["max"] > 0 and (sm["max"] - sm["min"]) / sm["max"] > CLOCK_SHARE:
        reasons.append(f"clocks: the SM clock moved from {sm['min']:.0f} to {sm['max']:.0f} MHz, more than {CLOCK_SHARE:.0%}")
    return reasons


def commit() -> str:
    """The commit of this checkout, or that of the environment's BENCH_COMMIT where there is no git (a copied tree)."""
    given = os.environ.get("BENCH_COMMIT")
    if given:
        return given
    try:
        return subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as problem:
        raise SystemExit("This folder is not a git checkout, so the run could not say which code it is of.\n"
                         "Measure in a clone, or set BENCH_COMMIT to the commit that was copied here.") from problem


def gpu_identity() -> str | None:
    """The first eight characters of the GPU's UUID: runs with the same one were on the same board."""
    which = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] or "0"
    try:
        out = subprocess.run(["nvidia-smi", "-i", which, "--query-gpu=uuid", "--format=csv,noheader"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return out.stdout.strip().replace("GPU-", "")[:8] or None


def record(case: Case, result: Result, *, suite: str, system: str, command: str, began: datetime.datetime, failure: str = "") -> dict[str, Any]:
    """The run as its file holds it; ``status`` is INVALID wherever :func:`verdict` finds a reason, or the case failed."""
    reasons = [failure] if failure else verdict(result)
    return {
        "id": f"{began:%Y-%m-%d}_{system}_{suite}.{case.name}",
        "date": f"{began:%Y-%m-%dT%H:%M:%SZ}",
        "system": system,
        "command": command,
        "commit": commit(),
        "what": case.what,
        "status": "INVALID" if reasons else "ok",
        "reasons": reasons,
        "configuration": {**case.configuration, **result.configuration, "host": platform.machine(), "gpu_board": gpu_identity() if case.gpu else None},
        "results": {
            **{name: summary(rounds) for name, (_, rounds) in result.series.items() if any(rounds)},
            **result.results,
            "clocks": result.clocks or None,
        },
        "accuracy": result.accuracy,
        "samples": {name: {"unit": unit, "rounds": [len(values) for values in rounds],
                           "values": [_short(value) for values in rounds for value in values]}
                    for name, (unit, rounds) in result.series.items() if any(rounds)},
    }


def write(run: dict[str, Any], folder: Path) -> Path:
    """Writes the run whole or not at all: a measurement that is interrupted leaves no half file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{run['id']}.json"
    part = path.with_suffix(".part")
    part.write_text(dump(run), encoding="utf-8")
    os.replace(part, path)
    return path


def dump(run: dict[str, Any]) -> str:
    """JSON a person can read, with each list of samples on one line."""
    short = {f"@{n}@": values["values"] for n, values in enumerate(run["samples"].values())}
    shown = {**run, "samples": {name: {**values, "values": f"@{n}@"} for n, (name, values) in enumerate(run["samples"].items())}}
    text = json.dumps(shown, indent=1, ensure_ascii=False, allow_nan=False)
    for mark, values in short.items():
        text = text.replace(f'"{mark}"', json.dumps(values))
    return text + "\n"
