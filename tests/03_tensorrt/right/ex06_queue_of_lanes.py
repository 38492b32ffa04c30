"""Lanes in a queue, tickets as futures; the copy of the offset goes through two staging buffers in turns, on the stream of either lane."""
import itertools
import queue
import threading

import numpy as np


class Pair:
    def __init__(self, device, program):
        self.device, self.program = device, program
        self.table = device.alloc(4 * program.features, "table")
        self.stagings = itertools.cycle([[device.alloc_pinned(4 * program.features), device.event()] for _ in range(2)])
        self.fresh, self.turn = device.event("fresh"), threading.RLock()
        self.lanes, self.ready = [], queue.SimpleQueue()
        for _ in range(2):
            lane = type("Lane", (), {})()
            lane.stream, lane.used, lane.out = device.stream(), device.event(), device.event()
            lane.instance = program.instance(device)              # with scratch of its own
            lane.host = [device.alloc_pinned(4 * program.max_rows * n) for n in (program.features, program.classes)]
            lane.memory = [device.alloc(4 * program.max_rows * n) for n in (program.features, program.classes)]
            for name, memory in zip(("input", "output", "offset"), (*lane.memory, self.table)):
                lane.instance.bind(name, memory)
            self.lanes.append(lane)
            self.ready.put(lane)

    def set_offset(self, offset):
        with self.turn:
            staging, copied = next(self.stagings)
            self.fresh.synchronize()                              # the copy before; this staging is free since
            staging.write(np.array(offset, np.float32))
            stream = self.lanes[0].stream                         # in order with the runs of lane 0 by itself
            stream.wait(self.lanes[1].used)
            stream.copy_in(self.table, staging, 4 * self.program.features)
            stream.record(self.fresh)

    def submit(self, batch):
        rows = batch.shape[0] if batch.ndim == 2 else 0
        if batch.dtype != np.dtype("f4") or not 1 <= rows <= self.program.max_rows or batch.shape[1] != self.program.features:
            raise ValueError(batch.shape)
        try:
            lane = self.ready.get_nowait()
        except queue.Empty:
            raise RuntimeError("no lane is free") from None
        lane.host[0].write(batch)
        with self.turn:
            lane.stream.wait(self.fresh)
            lane.stream.copy_in(lane.memory[0], lane.host[0], batch.nbytes)
            lane.instance.set_rows(rows)
            lane.instance.enqueue(lane.stream)
            lane.stream.record(lane.used)
        lane.stream.copy_out(lane.host[1], lane.memory[1], 4 * rows * self.program.classes)
        lane.stream.record(lane.out)

        def fetch():
            lane.out.synchronize()
            answer = lane.host[1].read((rows, self.program.classes))
            self.ready.put(lane)
            return answer
        return fetch

    def result(self, ticket):
        return ticket()

    def close(self):
        for lane in self.lanes:
            lane.stream.synchronize()
        for lane in self.lanes:
            lane.instance.free()
            for memory in (*lane.host, *lane.memory):
                self.device.free(memory)
        for _ in range(2):
            self.device.free(next(self.stagings)[0])
        self.device.free(self.table)


class EnginePair:
    """The same with TensorRT, in one thread."""

    def __init__(self, path):
        import pycuda.autoprimaryctx  # noqa: F401
        import pycuda.driver as cuda
        import tensorrt as trt
        self.cuda, runtime = cuda, trt.Runtime(trt.Logger(trt.Logger.ERROR))
        with open(path, "rb") as file:
            engine = runtime.deserialize_cuda_engine(file.read())
        self.kept = runtime, engine
        self.low, _, self.high = (tuple(s) for s in engine.get_tensor_profile_shape("rows", 0))
        scratch = max(next(s for s in (getattr(engine, n, None) for n in ("device_memory_size_v2", "device_memory_size")) if s is not None), 256)
        old_way = getattr(engine, "create_execution_context_without_device_memory", None)
        self.table, self.copied = cuda.mem_alloc(4 * self.high[1]), cuda.Event()
        self.stagings = itertools.cycle([cuda.pagelocked_empty(self.high[1:], np.float32) for _ in range(2)])
        self.lanes = []
        for _ in range(2):
            lane = type("Lane", (), {})()
            lane.context = old_way() if old_way else engine.create_execution_context(getattr(trt, "ExecutionContextAllocationStrategy").USER_MANAGED)
            lane.stream, lane.used, lane.out = cuda.Stream(), cuda.Event(), cuda.Event()
            lane.host = cuda.pagelocked_empty(self.high, np.float32), cuda.pagelocked_empty((self.high[0], tuple(engine.get_tensor_shape("scores"))[1]), np.float32)
            lane.memory = [cuda.mem_alloc(lane.host[0].nbytes), cuda.mem_alloc(lane.host[1].nbytes), cuda.mem_alloc(scratch)]
            lane.context.device_memory = int(lane.memory[2])
            for name, memory in zip(("rows", "scores", "offset"), (*lane.memory[:2], self.table)):
                lane.context.set_tensor_address(name, int(memory))
            self.lanes.append(lane)
        self.ready = list(self.lanes)

    def set_offset(self, offset):
        self.copied.synchronize()
        staging, stream = next(self.stagings), self.lanes[0].stream
        staging[...] = offset
        stream.wait_for_event(self.lanes[1].used)
        self.cuda.memcpy_htod_async(self.table, staging, stream)
        self.copied.record(stream)

    def submit(self, batch):
        if batch.dtype != np.float32 or batch.ndim != 2 or not all(a <= n <= b for a, n, b in zip(self.low, batch.shape, self.high)):
            raise ValueError(batch.shape)
        if not self.ready:
            raise RuntimeError("no lane is free")
        lane, rows = self.ready.pop(), len(batch)
        lane.host[0][:rows] = batch
        lane.context.set_input_shape("rows", batch.shape)
        lane.stream.wait_for_event(self.copied)
        self.cuda.memcpy_htod_async(lane.memory[0], lane.host[0][:rows], lane.stream)
        assert lane.context.execute_async_v3(lane.stream.handle)
        lane.used.record(lane.stream)
        self.cuda.memcpy_dtoh_async(lane.host[1][:rows], lane.memory[1], lane.stream)
        lane.out.record(lane.stream)
        return rows, lane

    def result(self, ticket):
        rows, lane = ticket
        lane.out.synchronize()
        answer = np.array(lane.host[1][:rows])
        self.ready.append(lane)
        return answer

    def close(self):
        for lane in self.lanes:
            lane.stream.synchronize()
        for lane in self.lanes:
            lane.context = None
            for memory in lane.memory:
                memory.free()
        self.table.free()
        self.lanes = self.ready = self.stagings = self.kept = None
