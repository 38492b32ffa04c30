"""The counted device keeps CUDA's rules of order; what it calls a race is what an exhaustive search of all orders calls one."""
import itertools

import numpy as np
import pytest

from course.counted_device import Device, DeviceError, Program, ancestors, ordered, races


@pytest.fixture
def ready():
    """(device, program, stream, instance, pinned in, pinned out, device in, device out), set to 2 rows."""
    device, program = Device(), Program(features=5, classes=3, max_rows=4)
    stream, instance = device.stream(), program.instance(device)
    memory = [device.alloc_pinned(80), device.alloc_pinned(48), device.alloc(80), device.alloc(48)]
    instance.bind("input", memory[2])
    instance.bind("output", memory[3])
    instance.set_rows(2)
    return device, program, stream, instance, *memory


def put_all(stream, instance, host_in, host_out, there, back):
    stream.copy_in(there, host_in, 40)
    instance.enqueue(stream)
    stream.copy_out(host_out, back, 24)


def test_runs_when_somebody_waits(ready):
    device, program, stream, instance, host_in, host_out, there, back = ready
    x = np.random.default_rng(0).standard_normal((2, 5)).astype(np.float32)
    host_in.write(x)
    put_all(stream, instance, host_in, host_out, there, back)
    assert np.isnan(host_out.view((2, 3))).all() and device.pending() == 4
    stream.synchronize()
    assert np.abs(host_out.read((2, 3)) - program.expected(x)).max() < 1e-5 and device.pending() == 0
    counts = device.counts()
    assert (counts["kernel"], counts["bytes_in"], counts["bytes_out"], counts["synchronize"], counts["setup"]) == (2, 40, 24, 1, 1)


def test_asking_an_event_often_enough_gets_there(ready):
    _, program, stream, instance, host_in, host_out, there, back = ready
    host_in.write(np.ones((2, 5), np.float32))
    put_all(stream, instance, host_in, host_out, there, back)
    event = host_in.device.event()
    assert event.done()
    stream.record(event)
    asked = 1
    while not event.done():
        asked += 1
    assert asked == 6 and np.abs(host_out.read((2, 3)) - program.expected(np.ones((2, 5)))).max() < 1e-5
    assert not races(host_in.device.trace)


def test_an_event_that_is_not_done_orders_nothing(ready):
    _, _, stream, instance, host_in, host_out, there, back = ready
    host_in.write(np.ones((2, 5), np.float32))
    put_all(stream, instance, host_in, host_out, there, back)
    event = host_in.device.event()
    stream.record(event)
    assert not event.done()
    host_out.read((2, 3))
    assert [race.memory for race in races(host_in.device.trace)] == [host_out.name]


def test_a_copy_reads_the_host_when_it_runs_and_not_when_it_is_called(ready):
    _, program, stream, instance, host_in, host_out, there, back = ready
    host_in.write(np.zeros((2, 5), np.float32))
    put_all(stream, instance, host_in, host_out, there, back)
    late = np.ones((2, 5), np.float32)
    host_in.view((2, 5))[...] = late
    stream.synchronize()
    assert np.abs(host_out.read((2, 3)) - program.expected(late)).max() < 1e-5


def test_pageable_memory_makes_the_host_wait(ready):
    device, _, stream, _, _, _, there, _ = ready
    stream.copy_in(there, np.ones((2, 5), np.float32), 40)
    assert device.pending() == 0 and device.counts()["pageable"] == 1


def test_a_graph_runs_whole_with_one_call_and_reads_what_is_there_then(ready):
    device, program, stream, instance, host_in, host_out, there, back = ready
    instance.enqueue(stream)
    stream.synchronize()
    stream.begin_capture()
    put_all(stream, instance, host_in, host_out, there, back)
    graph = stream.end_capture()
    assert device.pending() == 0
    for seed in range(3):
        x = np.random.default_rng(seed).standard_normal((2, 5)).astype(np.float32)
        host_in.write(x)
        before = len(device.trace)
        stream.launch(graph)
        stream.synchronize()
        assert np.abs(host_out.read((2, 3)) - program.expected(x)).max() < 1e-5
        counts = device.counts(before)
        assert (counts["graph_launch"], counts["kernel"], counts["copy_in"], counts["kernels"], counts["bytes_in"]) == (1, 0, 0, 2, 40)


@pytest.mark.parametrize("name", ["alloc", "alloc_pinned", "free", "synchronize", "device", "event", "query", "pageable", "setup", "record", "wait", "capture", "launch"])
def test_what_a_capture_forbids(ready, name):
    device, _, stream, instance, host_in, host_out, there, back = ready
    instance.enqueue(stream)
    stream.synchronize()
    other, event = device.stream(), device.event()
    other.begin_capture()
    graph = other.end_capture()
    stream.begin_capture()
    calls = {"alloc": lambda: device.alloc(8), "alloc_pinned": lambda: device.alloc_pinned(8), "free": lambda: device.free(host_out), "synchronize": stream.synchronize,
             "device": device.synchronize, "event": event.synchronize, "query": event.done, "pageable": lambda: stream.copy_in(there, np.ones(5, np.float32), 20),
             "setup": lambda: (instance.set_rows(3), instance.enqueue(stream)), "record": lambda: stream.record(event), "wait": lambda: stream.wait(event),
             "capture": other.begin_capture, "launch": lambda: stream.launch(graph)}
    with pytest.raises(DeviceError, match="not permitted while a stream is capturing"):
        calls[name]()
    stream.end_capture()


def test_freed_memory_is_refused(ready):
    device, _, stream, instance, host_in, host_out, there, back = ready
    put_all(stream, instance, host_in, host_out, there, back)
    with pytest.raises(DeviceError, match="freed while queued work uses it"):
        device.free(there)
    stream.synchronize()
    stream.begin_capture()
    put_all(stream, instance, host_in, host_out, there, back)
    graph = stream.end_capture()
    device.free(there)
    with pytest.raises(DeviceError, match="was freed before"):
        stream.launch(graph)
    with pytest.raises(DeviceError, match="was freed before"):
        stream.copy_in(there, host_in, 40)


def test_a_graph_of_a_shape_that_was_left_is_refused(ready):
    _, _, stream, instance, host_in, host_out, there, back = ready
    instance.enqueue(stream)
    stream.synchronize()
    stream.begin_capture()
    put_all(stream, instance, host_in, host_out, there, back)
    graph = stream.end_capture()
    instance.set_rows(1)
    instance.enqueue(stream)
    with pytest.raises(DeviceError, match="captured for 2 rows"):
        stream.launch(graph)


def test_no_views_where_the_host_is_checked():
    device = Device(views=False)
    with pytest.raises(DeviceError, match="hands out no views"):
        device.alloc_pinned(8).view((2,))


def test_books_of_what_is_allocated():
    device = Device()
    program = Program(2, 2, 2)
    instance = program.instance(device)
    memory = device.alloc(16), device.alloc_pinned(8)
    assert device.live() == {"device": 16, "scratch": program.scratch_bytes, "pinned": 8, "graphs": 0}
    for one in memory:
        device.free(one)
    instance.free()
    assert not any(device.live().values())


# ---- order: the analysis of the trace against an exhaustive search ----------------------------------------------------

def random_program(seed):
    """A few copies between four pieces of device memory and pinned memory on three streams, with events and waits of the host."""
    draw = np.random.default_rng(seed)
    device = Device(views=False)
    streams, events = [device.stream() for _ in range(3)], [device.event() for _ in range(2)]
    pinned, memory = [device.alloc_pinned(4) for _ in range(2)], [device.alloc(4) for _ in range(2)]
    for _ in range(draw.integers(6, 11)):
        stream, event, p, m = streams[draw.integers(3)], events[draw.integers(2)], pinned[draw.integers(2)], memory[draw.integers(2)]
        what = draw.choice(["copy_in", "copy_out", "record", "wait", "stream", "event", "write", "read"], p=[0.2, 0.2, 0.15, 0.15, 0.05, 0.1, 0.1, 0.05])
        {"copy_in": lambda: stream.copy_in(m, p, 4), "copy_out": lambda: stream.copy_out(p, m, 4), "record": lambda: stream.record(event),
         "wait": lambda: stream.wait(event), "stream": stream.synchronize, "event": event.synchronize,
         "write": lambda: p.write(np.zeros(1, np.float32)), "read": lambda: p.read((1,))}[what]()
    return device.trace


def all_orders(trace):
    """Every order in which the lines can happen, as a set of pairs (a, b): a was before b in some order. By search, from the rules in words."""
    streams = {name: [r.number for r in trace if r.stream == name and not r.host] for name in {r.stream for r in trace if r.stream}}
    host = [r.number for r in trace if r.host]
    target = {}                                     # what a wait, of a stream or of the host, waits for: the line of the record, or the stream's last
    recorded, last = {}, {}
    for r in trace:
        words = r.label.split()
        if r.kind == "record":
            recorded[r.label.removeprefix("record ")] = r.number
        elif r.kind == "wait":
            target[r.number] = recorded.get(r.label.removeprefix("wait for "))
        elif r.kind == "synchronize":
            name = r.label.removeprefix("host waits for ")
            target[r.number] = recorded.get(name) if words[3] == "event" else last.get(name)
        if r.stream:
            last[r.stream] = r.number
    queues = [host, *streams.values()]
    issued = {r.number: max((h for h in host if h < r.number), default=None) for r in trace if not r.host}
    found, seen = set(), set()

    def go(state, done):
        if state in seen:
            return
        seen.add(state)
        for n, queue in enumerate(queues):
            if state[n] == len(queue):
                continue
            line = queue[state[n]]
            if target.get(line) is not None and target[line] not in done:
                continue
            if n and issued[line] is not None and issued[line] not in done:
                continue
            found.update((d, line) for d in done)
            go((*state[:n], state[n] + 1, *state[n + 1:]), done | {line})

    go((0,) * len(queues), frozenset())
    return found


def test_races_are_those_of_an_exhaustive_search():
    some = 0
    for seed in range(150):
        trace = random_program(seed)
        happens = all_orders(trace)
        before = ancestors(trace)
        for a, b in itertools.combinations(range(len(trace)), 2):
            both = (a, b) in happens and (b, a) in happens
            assert ordered(before, a, b) == (not both), f"seed {seed}: {trace[a]} and {trace[b]}"
        want = {(a.number, b.number) for a, b in itertools.combinations(trace, 2) for m in {*a.reads, *a.writes} & {*b.reads, *b.writes}
                if (m in a.writes or m in b.writes) and (b.number, a.number) in happens}
        got = {(r.first.number, r.second.number) for r in races(trace, limit=1000)}
        assert got == want, f"seed {seed}"
        some += bool(want)
    assert 20 < some < 150


def test_the_order_that_a_race_names_is_allowed():
    for seed in range(150):
        trace = random_program(seed)
        before = ancestors(trace)
        for race in races(trace):
            place = {r.number: n for n, r in enumerate(race.order)}
            assert place[race.second.number] < place[race.first.number]
            assert all(not before[a] >> b & 1 or place[b] < place[a] for a in place for b in place), f"seed {seed}"


def test_moods_differ_only_where_there_is_a_race():
    """A program whose outcome depends on the mood has a race; one without a race has one outcome."""
    differ = 0
    for seed in range(60):
        outcomes, found = set(), None
        for mood in (None, *range(12)):
            draw = np.random.default_rng(seed)
            device = Device(mood, views=False)
            streams, events = [device.stream() for _ in range(2)], [device.event() for _ in range(2)]
            pinned = [device.alloc_pinned(4) for _ in range(3)]
            memory = [device.alloc(4) for _ in range(2)]
            for n, p in enumerate(pinned):
                p.write(np.full(1, n, np.float32))
            for _ in range(8):
                stream, event, p, m = streams[draw.integers(2)], events[draw.integers(2)], pinned[draw.integers(3)], memory[draw.integers(2)]
                [lambda: stream.copy_in(m, p, 4), lambda: stream.copy_out(p, m, 4), lambda: stream.record(event), lambda: stream.wait(event)][draw.integers(4)]()
            device.synchronize()
            outcomes.add(tuple(float(p.read((1,))[0]) for p in pinned).__repr__())
            found = found if mood is not None else races(device.trace)
        assert found or len(outcomes) == 1, f"seed {seed}: {outcomes}"
        differ += len(outcomes) > 1
    assert differ > 3
