"""A device that counts: streams, events, graphs and memory with CUDA's rules of order, played by NumPy in this process.

It is no GPU and no TensorRT, and it has no times. It does three things that a GPU does and a simple stand-in does not:

- **It is late.** Work that is put on a stream runs when somebody waits for it, not before. A result that is read without waiting is
  really the old one. With `seed` the device is moody instead: at each call it runs a random amount of what it may run,
  in a random order that the streams and events allow.
- **It refuses.** Freed memory, an allocation or a wait inside a capture, a graph of a shape that the instance has left: `DeviceError`.
- **It keeps books.** `trace` holds every call; `counts` sums them up; `races` finds two uses of one buffer that nothing orders.

    device = Device()
    program = Program(features=12, classes=4, max_rows=8)
    instance, stream = program.instance(device), device.stream()
    host_in, host_out = device.alloc_pinned(8 * 12 * 4), device.alloc_pinned(8 * 4 * 4)
    there, back = device.alloc(8 * 12 * 4), device.alloc(8 * 4 * 4)
    instance.bind("input", there); instance.bind("output", back); instance.set_rows(2)
    host_in.view((2, 12))[...] = 1.0
    stream.copy_in(there, host_in, 2 * 12 * 4); instance.enqueue(stream); stream.copy_out(host_out, back, 2 * 4 * 4)
    stream.synchronize()
    print(host_out.view((2, 4)))

What stands for what: `Memory` for what cudaMalloc returns, `Pinned` for cudaHostAlloc, `Program` for an engine, `Instance` for an execution
context, `Graph` for an instantiated CUDA graph. All numbers are float32. One rule is stricter than CUDA's: memory must not be freed while queued
work uses it (cudaFree would wait for the work), and a capture takes place in one stream.
"""
from __future__ import annotations

import dataclasses
import threading

import numpy as np


class DeviceError(RuntimeError):
    """A call that the device refuses; the message says what was done and which rule it breaks."""


@dataclasses.dataclass
class Record:
    """One line of the trace. `kind`: see `Device.counts`. `reads`, `writes`: names of memory. `after`: lines that come before it by
    stream, event or wait, not counting the host's own order. `host`: the line is the host's own act, not work on a stream."""

    number: int
    kind: str
    label: str
    stream: str = ""
    nbytes: int = 0
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    after: tuple[int, ...] = ()
    host: bool = False
    graph: bool = False
    thread: str = ""

    def __str__(self):
        return f"#{self.number} {self.label}" + (f" on {self.stream}" if self.stream else "")


class Memory:
    """Device memory. The host cannot look into it."""

    where = "device"

    def __init__(self, device, nbytes, name):
        self.device, self.nbytes, self.name, self.freed = device, nbytes, name, False
        self._data = np.full(nbytes // 4, np.nan, np.float32)

    def __repr__(self):
        return f"<{self.name}: {self.nbytes} bytes of {self.where} memory{', freed' if self.freed else ''}>"


class Pinned(Memory):
    """Host memory that copies can use directly."""

    where = "pinned host"

    def view(self, shape):
        """The first bytes as a float32 array of this shape: the memory itself, no copy. What it shows changes when a copy runs."""
        if not self.device.views:
            raise DeviceError(f"{self.name}: this device hands out no views, since nobody can check what is done with them. Use write and read.")
        self.device._usable(self)
        return self._data[:_size(shape, self)].reshape(shape)

    def write(self, array):
        """Copies a float32 array to the start of this memory, now."""
        array = np.asarray(array)
        self.device._switch()
        if array.dtype != np.float32:
            raise DeviceError(f"{self.name}: write takes float32, not {array.dtype}")
        with self.device.lock:
            self.device._usable(self)
            size = _size(array.shape, self)
            self.device._note("host_write", f"host writes {self.name}", writes=(self.name,), host=True)
            self._data[:size] = array.reshape(-1)
        self.device._switch()

    def read(self, shape):
        """A copy of what the first bytes hold now, as a float32 array of this shape."""
        self.device._switch("read")
        with self.device.lock:
            self.device._usable(self)
            size = _size(shape, self)
            self.device._note("host_read", f"host reads {self.name}", reads=(self.name,), host=True)
            found = self._data[:size].reshape(shape).copy()
        self.device._switch()
        return found


def _size(shape, memory):
    size = int(np.prod(shape, dtype=np.int64))
    if size * 4 > memory.nbytes:
        raise DeviceError(f"{memory.name} has {memory.nbytes} bytes; float32 of shape {tuple(shape)} needs {size * 4}")
    return size


class Event:
    """A marker in a stream. Before it is recorded it stands for no work, and waiting for it is no wait."""

    def __init__(self, device, name):
        self.device, self.name, self._at = device, name, None      # (stream, position in its queue, line of the trace)

    def synchronize(self):
        """The host waits until the work before the marker is done."""
        with self.device.lock:
            self.device._not_capturing(f"waiting for {self.name}")
            self.device._note("synchronize", f"host waits for {self.name}", after=(self._at[2],) if self._at else (), host=True)
            if self._at:
                self.device._run_until(*self._at[:2])
        self.device._switch()

    def done(self):
        """Whether the work before the marker is done; waits for nothing. While it is not, each question lets the device do one piece of work."""
        with self.device.lock:
            self.device._not_capturing(f"asking {self.name}")
            done = self._at is None or self._at[0]._position > self._at[1]
            if done and self._at:        # what the host does from here on comes after that work, as if it had waited
                self.device._note("asked", f"host sees that {self.name} is done", after=(self._at[2],), host=True)
            if not done:
                heads = self.device._heads()
                self.device._step(self._at[0] if self._at[0] in heads else heads[0])
            return done


class Graph:
    """What a capture recorded: launched with `stream.launch(graph)`. It holds addresses, sizes and rows as they were."""

    def __init__(self, device, steps, name):
        self.device, self._steps, self.name, self.freed = device, steps, name, False

    def free(self):
        with self.device.lock:
            if self.freed:
                raise DeviceError(f"{self.name} was freed before")
            self.device._not_capturing(f"freeing {self.name}")
            self.freed = True
            self.device._note("graph_free", f"frees {self.name}", host=True)


@dataclasses.dataclass
class _Step:
    """Work that a stream does. `instance`, `rows`: for a kernel, what it was set up for."""

    kind: str
    label: str
    do: object
    reads: tuple[Memory, ...] = ()
    writes: tuple[Memory, ...] = ()
    nbytes: int = 0
    instance: object = None
    rows: int = 0


class Stream:
    """A queue of work. In one stream work runs in order; between streams only events make order."""

    def __init__(self, device, name):
        self.device, self.name = device, name
        self._queue, self._position, self._last, self._capture = [], 0, None, None

    # ---- work --------------------------------------------------------------------------------------------------------

    def copy_in(self, to, host, nbytes):
        """Copies the first nbytes from host memory to device memory. host: `Pinned`, or a contiguous float32 array (pageable)."""
        self._copy("copy_in", to, host, nbytes)

    def copy_out(self, host, source, nbytes):
        """Copies the first nbytes from device memory to host memory. host: `Pinned`, or a contiguous float32 array (pageable)."""
        self._copy("copy_out", source, host, nbytes)

    def _copy(self, kind, memory, host, nbytes):
        into = kind == "copy_in"
        if type(memory) is not Memory:
            raise DeviceError(f"{kind}: {type(memory).__name__} where device memory is wanted")
        if isinstance(host, np.ndarray):
            if host.dtype != np.float32 or not host.flags.c_contiguous:
                raise DeviceError(f"{kind}: a host array has to be contiguous float32, this one is {host.dtype}"
                                  f"{'' if host.flags.c_contiguous else ' and not contiguous'}")
            host_bytes, host_data, host_name = host.nbytes, host.reshape(-1), "pageable memory"
        elif type(host) is Pinned:
            host_bytes, host_data, host_name = host.nbytes, host._data, host.name
        else:
            raise DeviceError(f"{kind}: {type(host).__name__} where host memory is wanted")
        if nbytes % 4 or not 0 < nbytes <= min(memory.nbytes, host_bytes):
            raise DeviceError(f"{kind}: {nbytes} bytes do not fit {memory.name} ({memory.nbytes} bytes) and {host_name} ({host_bytes} bytes)")
        source, target = (host_data, memory._data) if into else (memory._data, host_data)
        pinned = () if isinstance(host, np.ndarray) else (host,)

        def do(n=nbytes // 4):
            target[:n] = source[:n]

        step = _Step(kind, f"{kind} {host_name} {'to' if into else 'from'} {memory.name}", do, pinned if into else (memory,),
                     (memory,) if into else pinned, nbytes)
        with self.device.lock:
            if not pinned and self._capture is not None:
                raise DeviceError(f"{kind} from or to pageable memory waits for the copy, which is not permitted while a stream is capturing")
            self._enqueue(step)
            if not pinned:        # staged: the call returns when the copy is over
                self.device._note("pageable", f"{kind} of pageable memory: the host waits", after=(self._last,), host=True)
                self.device._run_until(self, len(self._queue) - 1)
        self.device._switch()

    def record(self, event):
        """Puts the event's marker behind the work that is in this stream now."""
        with self.device.lock:
            self.device._not_capturing("recording an event (this device captures one stream)")
            self._enqueue(_Step("record", f"record {event.name}", lambda: None))
            event._at = (self, len(self._queue) - 1, self._last)
        self.device._switch()

    def wait(self, event):
        """Later work of this stream starts after the work before the event's marker. The host does not wait."""
        with self.device.lock:
            self.device._not_capturing("waiting for an event (this device captures one stream)")
            at = event._at
            self._enqueue(_Step("wait", f"wait for {event.name}", lambda: None), extra=(at[2],) if at else (), gate=at and at[:2])
        self.device._switch()

    def launch(self, graph):
        """Launches a graph: one call for all its work."""
        with self.device.lock:
            if graph.freed:
                raise DeviceError(f"{graph.name} was freed before")
            self.device._not_capturing("launching a graph (this device nests none)")
            for step in graph._steps:
                if step.instance is not None and step.instance._ready_for != step.rows:
                    raise DeviceError(f"{graph.name} was captured for {step.rows} rows, and {step.instance.name} has since been set up for "
                                      f"{step.instance._ready_for}: what it would compute is undefined. Capture again, or keep an instance for each graph.")
                for memory in (*step.reads, *step.writes):
                    self.device._usable(memory, f"{graph.name} uses ")
            self.device._note("graph_launch", f"launch {graph.name}", host=True)
            for step in graph._steps:
                self._enqueue(step, graph=True)
        self.device._switch()

    def synchronize(self):
        """The host waits until all work of this stream is done."""
        with self.device.lock:
            self.device._not_capturing(f"waiting for {self.name}")
            self.device._note("synchronize", f"host waits for {self.name}", after=() if self._last is None else (self._last,), host=True)
            self.device._run_until(self, len(self._queue) - 1)
        self.device._switch()

    def begin_capture(self):
        """From here to `end_capture` work put on this stream is recorded, and does not run."""
        with self.device.lock:
            self.device._not_capturing("a capture in a capture")
            self._capture = []
            self.device._note("capture", f"capture on {self.name}", host=True)

    def end_capture(self):
        """The `Graph` of what was recorded, ready to launch."""
        with self.device.lock:
            if self._capture is None:
                raise DeviceError(f"{self.name} is not capturing")
            steps, self._capture = self._capture, None
            graph = Graph(self.device, steps, self.device._name("graph"))
            self.device._graphs.append(graph)
            return graph

    # ---- how it is done ----------------------------------------------------------------------------------------------

    def _enqueue(self, step, extra=(), gate=None, graph=False):
        for memory in (*step.reads, *step.writes):
            self.device._usable(memory, f"{step.label}: ")
        if self._capture is not None:
            self._capture.append(step)
            self.device._note(f"captured_{step.kind}", f"{step.label} (captured)", stream=self.name, host=True)
            return
        if self._last is not None:
            extra = (self._last, *extra)
        self._last = self.device._note(step.kind, step.label, stream=self.name, nbytes=step.nbytes, reads=tuple(m.name for m in step.reads),
                                       writes=tuple(m.name for m in step.writes), after=extra, graph=graph)
        self._queue.append((step, gate))
        self.device._drift()


class Program:
    """A network, `relu(input - offset) @ W1` then `@ W2`: what an engine is to a device. Shapes: input (rows, features), output (rows, classes).

    max_rows: the most rows that an instance can be set to. offset: the network has a second input "offset" (features,).
    """

    hidden = 16

    def __init__(self, features, classes, max_rows, seed=0, offset=False):
        draw = np.random.default_rng(seed)
        self.features, self.classes, self.max_rows, self.has_offset = features, classes, max_rows, offset
        self._w1 = draw.normal(0, features**-0.5, (features, self.hidden)).astype(np.float32)
        self._w2 = draw.normal(0, self.hidden**-0.5, (self.hidden, classes)).astype(np.float32)
        self.scratch_bytes = 4 * max_rows * self.hidden

    def instance(self, device, scratch=None, name=""):
        """What runs the program. scratch: device memory of `scratch_bytes` or more, yours; without it the instance allocates its own."""
        return Instance(self, device, scratch, name or device._name("instance"))

    def expected(self, rows, offset=None):
        """What the program computes, in float64: for tests."""
        hidden = np.maximum(rows.astype(np.float64) - (0 if offset is None else offset), 0) @ self._w1.astype(np.float64)
        return hidden @ self._w2.astype(np.float64)


class Instance:
    """Runs a program, one run at a time: its state is one shape, one set of addresses, one piece of scratch memory."""

    def __init__(self, program, device, scratch, name):
        self.program, self.device, self.name = program, device, name
        if scratch is not None and (type(scratch) is not Memory or scratch.nbytes < program.scratch_bytes):
            raise DeviceError(f"{name}: scratch has to be device memory of {program.scratch_bytes} bytes or more, not {scratch!r}")
        self._own = scratch is None
        self._scratch = device.alloc(program.scratch_bytes, f"scratch of {name}") if self._own else scratch
        self._bound, self._rows, self._ready_for, self._open, self._runs, self.freed = {}, None, None, None, 0, False

    def bind(self, name, memory):
        """Says where the tensor "input", "output" or, if the program has one, "offset" lies in device memory."""
        if name not in ("input", "output", *(["offset"] if self.program.has_offset else [])):
            raise DeviceError(f"{self.name} has no tensor {name!r}")
        if type(memory) is not Memory:
            raise DeviceError(f"{self.name}: {name!r} has to be device memory, not {type(memory).__name__}")
        with self.device.lock:
            self._alone()
            self.device._usable(memory)
            self._bound[name] = memory
        self.device._switch()

    def set_rows(self, rows):
        """Says how many rows the next runs have. ValueError outside 1 to max_rows."""
        if not 1 <= rows <= self.program.max_rows:
            raise ValueError(f"{self.name} takes 1 to {self.program.max_rows} rows, not {rows}")
        with self.device.lock:
            self._alone()
            self._rows = int(rows)
            self._open = threading.get_ident()
        self.device._switch()

    def enqueue(self, stream):
        """Puts one run on a stream: two kernels. The first run after a change of rows also sets the instance up, which allocates."""
        program = self.program
        with self.device.lock:
            self._alone()
            if self.freed:
                raise DeviceError(f"{self.name} was freed before")
            wanted = {"input": 4 * program.features * (self._rows or 0), "output": 4 * program.classes * (self._rows or 0)}
            if program.has_offset:
                wanted["offset"] = 4 * program.features
            if self._rows is None or wanted.keys() - self._bound.keys():
                raise DeviceError(f"{self.name} cannot run: set_rows and bind come first; missing: "
                                  f"{', '.join([*(['rows'] if self._rows is None else []), *sorted(wanted.keys() - self._bound.keys())])}")
            for name, nbytes in wanted.items():
                if self._bound[name].nbytes < nbytes:
                    raise DeviceError(f"{self.name}: {name!r} needs {nbytes} bytes for {self._rows} rows, {self._bound[name].name} has {self._bound[name].nbytes}")
            if self._ready_for != self._rows:
                if self.device._capturing():
                    raise DeviceError(f"the first run of {self.name} after a change of rows sets it up, and that allocates: not permitted while a "
                                      f"stream is capturing. Enqueue once before the capture.")
                self.device._note("setup", f"{self.name} sets itself up for {self._rows} rows", host=True)
                self._ready_for = self._rows
            self._open = None
            self._runs += 1
            rows, scratch = self._rows, self._scratch
            source, target, offset = self._bound["input"], self._bound["output"], self._bound.get("offset")

            def first():
                x = source._data[:rows * program.features].reshape(rows, -1)
                x = x - offset._data[:program.features] if program.has_offset else x
                scratch._data[:rows * program.hidden] = (np.maximum(x, 0) @ program._w1).reshape(-1)

            def second():
                hidden = scratch._data[:rows * program.hidden].reshape(rows, -1)
                target._data[:rows * program.classes] = (hidden @ program._w2).reshape(-1)

            run = f"run {self._runs} of {self.name}"
            stream._enqueue(_Step("kernel", f"{run}, first kernel", first, (source, *([offset] if program.has_offset else [])), (scratch,), 0, self, rows))
            stream._enqueue(_Step("kernel", f"{run}, second kernel", second, (scratch,), (target,), 0, self, rows))
        self.device._switch()

    def free(self):
        """Frees the scratch memory if it is the instance's own."""
        if self.freed:
            raise DeviceError(f"{self.name} was freed before")
        if self._own:
            self.device.free(self._scratch)
        self.freed = True

    def _alone(self):
        if self._open is not None and self._open != threading.get_ident():
            raise DeviceError(f"{self.name} is used by two threads at once: another one has called set_rows and not yet enqueue. "
                              f"An instance belongs to one thread at a time: keep a lock from set_rows to enqueue.")


class Device:
    """The device. seed: None is as late as possible; a number runs ahead now and then, in any order that is allowed. views: see `Pinned.view`."""

    def __init__(self, seed=None, views=True):
        self.views, self.trace, self.lock = views, [], threading.RLock()
        self._mood = None if seed is None else np.random.default_rng(seed)
        self._streams, self._live, self._graphs, self._numbers, self._yield = [], [], [], {}, None

    # ---- memory ------------------------------------------------------------------------------------------------------

    def alloc(self, nbytes, name=""):
        """Device memory of so many bytes, a multiple of 4."""
        return self._alloc(Memory, "alloc", nbytes, name or self._name("device memory"))

    def alloc_pinned(self, nbytes, name=""):
        """Pinned host memory of so many bytes, a multiple of 4."""
        return self._alloc(Pinned, "alloc_pinned", nbytes, name or self._name("pinned memory"))

    def _alloc(self, kind, record, nbytes, name):
        if nbytes <= 0 or nbytes % 4:
            raise DeviceError(f"{record}: {nbytes} bytes; give a positive multiple of 4")
        with self.lock:
            self._not_capturing("an allocation")
            while any(m.name == name for m in self._live):
                name = self._name(name)
            self._note(record, f"{record} {name}", nbytes=int(nbytes), host=True)
            self._live.append(kind(self, int(nbytes), name))
            return self._live[-1]

    def free(self, memory):
        """Frees memory. No queued work may use it."""
        with self.lock:
            self._not_capturing("freeing memory")
            self._usable(memory)
            for stream in self._streams:
                for step, _ in stream._queue[stream._position:]:
                    if memory in (*step.reads, *step.writes):
                        raise DeviceError(f"{memory.name} is freed while queued work uses it: {step.label} on {stream.name} has not run")
            self._note("free", f"free {memory.name}", nbytes=memory.nbytes, host=True)
            memory.freed = True
            self._live.remove(memory)

    def live(self):
        """What is allocated now, in bytes: {"device": …, "pinned": …, "scratch": …, "graphs": a number}. "scratch" is the instances' own."""
        with self.lock:
            scratch = sum(m.nbytes for m in self._live if m.name.startswith("scratch of "))
            return {"device": sum(m.nbytes for m in self._live if type(m) is Memory) - scratch, "scratch": scratch,
                    "pinned": sum(m.nbytes for m in self._live if type(m) is Pinned), "graphs": sum(not g.freed for g in self._graphs)}

    # ---- streams -----------------------------------------------------------------------------------------------------

    def stream(self, name=""):
        with self.lock:
            self._streams.append(Stream(self, name or self._name("stream")))
            return self._streams[-1]

    def event(self, name=""):
        return Event(self, name or self._name("event"))

    def synchronize(self):
        """The host waits for all work of all streams."""
        with self.lock:
            self._not_capturing("waiting for the device")
            self._note("synchronize", "host waits for the device", after=tuple(s._last for s in self._streams if s._last is not None), host=True)
            for stream in self._streams:
                self._run_until(stream, len(stream._queue) - 1)
        self._switch()

    def pending(self, kind=None):
        """How many pieces of work have not run yet: of one kind ("kernel", "copy_in", …), or of all."""
        with self.lock:
            return sum(kind in (None, step.kind) for s in self._streams for step, _ in s._queue[s._position:])

    # ---- books -------------------------------------------------------------------------------------------------------

    def counts(self, since=0):
        """Sums over the trace from line `since` on.

        Calls of the host: alloc, alloc_pinned, free, copy_in, copy_out, kernel, graph_launch, capture, synchronize, pageable (a copy that
        made the host wait), setup, record, wait. Work of the device, in graphs and outside: bytes_in, bytes_out, kernels.
        """
        kinds = ("alloc", "alloc_pinned", "free", "copy_in", "copy_out", "kernel", "graph_launch", "capture", "synchronize", "pageable", "setup", "record", "wait")
        found = dict.fromkeys([*kinds, "bytes_in", "bytes_out", "kernels"], 0)
        for line in self.trace[since:]:
            if line.kind in found and not line.graph:
                found[line.kind] += 1
            if line.kind == "kernel":
                found["kernels"] += 1
            elif line.kind in ("copy_in", "copy_out"):
                found["bytes_in" if line.kind == "copy_in" else "bytes_out"] += line.nbytes
        return found

    # ---- how it is done ----------------------------------------------------------------------------------------------

    def _name(self, kind):
        with self.lock:
            self._numbers[kind] = self._numbers.get(kind, 0) + 1
            return f"{kind} {self._numbers[kind]}"

    def _note(self, kind, label, **more):
        self.trace.append(Record(len(self.trace), kind, label, thread=threading.current_thread().name, **more))
        return len(self.trace) - 1

    def _usable(self, memory, what=""):
        if memory.freed:
            raise DeviceError(f"{what}{memory.name} was freed before")

    def _capturing(self):
        return any(s._capture is not None for s in self._streams)

    def _not_capturing(self, what):
        if self._capturing():
            raise DeviceError(f"{what} is not permitted while a stream is capturing")

    def _switch(self, before=""):
        """Between two calls another thread may run; a test can make sure that it does. before: the call that is about to be made, or ""."""
        if self._yield is not None:
            self._yield(before)

    def _heads(self):
        """Streams whose next piece of work may run now."""
        found = []
        for stream in self._streams:
            if stream._position < len(stream._queue):
                gate = stream._queue[stream._position][1]
                if gate is None or gate[0]._position > gate[1]:
                    found.append(stream)
        return found

    @staticmethod
    def _step(stream):
        step, _ = stream._queue[stream._position]
        stream._position += 1
        step.do()

    def _drift(self):
        """A moody device runs some of what it may."""
        while self._mood is not None and self._mood.random() < 0.4 and (heads := self._heads()):
            self._step(heads[self._mood.integers(len(heads))])

    def _run_until(self, stream, position):
        """Runs what has to run before the work at this position of the stream is done; a moody device also runs other things."""
        if self._mood is None:
            while stream._position <= position:
                gate = stream._queue[stream._position][1]
                if gate is not None:
                    self._run_until(*gate)
                self._step(stream)
        else:
            while stream._position <= position:
                heads = self._heads()
                self._step(heads[self._mood.integers(len(heads))])
            self._drift()


# ---- what the trace tells ---------------------------------------------------------------------------------------------

@dataclasses.dataclass
class Race:
    """Two lines of a trace that use one piece of memory, at least one to write, with nothing that orders them."""

    memory: str
    first: Record
    second: Record
    order: list[Record]      # an order that is allowed, and in which `second` comes before `first`

    def __str__(self):
        lines = [f"nothing orders these two uses of {self.memory}:", f"  {self.first}", f"  {self.second}", "an order that is allowed:"]
        shown = [r for r in self.order if self.memory in (*r.reads, *r.writes) or r in (self.first, self.second)][-6:]
        return "\n".join([*lines, *(f"  {r}" for r in shown)])


def ancestors(trace):
    """For each line the lines that are over before it starts, as a bit set (bit n: line n).

    Edges: a stream's work in order; a wait of a stream after the event's marker; the host's acts in the order that was seen; work after
    the host's act before it; a waiting host after the work that it waits for.
    """
    found, host = [], None
    for line in trace:
        before = list(line.after)
        if host is not None:
            before.append(host)
        bits = 0
        for other in before:
            bits |= found[other] | 1 << other
        found.append(bits)
        if line.host:
            host = line.number
    return found


def ordered(before, a, b):
    """Whether line a is over before line b starts, or b before a. before: what `ancestors` gave."""
    return bool(before[b] >> a & 1 or before[a] >> b & 1)


def races(trace, limit=10):
    """The first races of a trace, as `Race` objects, at most `limit`."""
    before, uses, found = ancestors(trace), {}, []
    for line in trace:
        for name in {*line.reads, *line.writes}:
            for other in uses.get(name, ()):
                if (name in line.writes or name in other.writes) and not ordered(before, other.number, line.number):
                    order = [r for r in trace if before[line.number] >> r.number & 1] + [line]
                    order += [r for r in trace if before[other.number] >> r.number & 1 and r not in order] + [other]
                    found.append(Race(name, other, line, order))
                    if len(found) == limit:
                        return found
            uses.setdefault(name, []).append(line)
    return found
