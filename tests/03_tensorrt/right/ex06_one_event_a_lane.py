"""Parallel lists in place of lanes; one event for each lane, behind the copy out, serves the offset and the result; result waits for the lane's stream."""
import threading

import numpy as np


class Pair:
    def __init__(self, device, program):
        self.d, self.p, self.guard = device, program, threading.Condition()
        self.streams = [device.stream("a"), device.stream("b"), device.stream("offsets")]
        self.events = [device.event() for _ in range(3)]
        self.tall, self.small = (4 * program.max_rows * n for n in (program.features, program.classes))
        self.inputs, self.outputs = [device.alloc(self.tall) for _ in "ab"], [device.alloc(self.small) for _ in "ab"]
        self.pinned_inputs, self.pinned_outputs = [device.alloc_pinned(self.tall) for _ in "ab"], [device.alloc_pinned(self.small) for _ in "ab"]
        self.scratch = [device.alloc(program.scratch_bytes) for _ in "ab"]
        self.shift, self.pinned_shift = device.alloc(4 * program.features), device.alloc_pinned(4 * program.features)
        self.instances = [program.instance(device, s) for s in self.scratch]
        for n, instance in enumerate(self.instances):
            instance.bind("offset", self.shift)
            instance.bind("input", self.inputs[n])
            instance.bind("output", self.outputs[n])
        self.rows = [0, 0]

    def set_offset(self, offset):
        self.guard.acquire()
        try:
            self.events[2].synchronize()
            self.pinned_shift.write(offset)
            for event in self.events[:2]:
                self.streams[2].wait(event)
            self.streams[2].copy_in(self.shift, self.pinned_shift, self.shift.nbytes)
            self.streams[2].record(self.events[2])
        finally:
            self.guard.release()

    def submit(self, batch):
        good = batch.dtype == np.float32 and batch.ndim == 2 and batch.shape[1] == self.p.features and 0 < batch.shape[0] <= self.p.max_rows
        if not good:
            raise ValueError(f"{batch.shape} {batch.dtype}")
        with self.guard:
            if 0 not in self.rows:
                raise RuntimeError("full")
            n = self.rows.index(0)
            self.rows[n] = rows = batch.shape[0]
            stream = self.streams[n]
            self.pinned_inputs[n].write(batch)
            stream.wait(self.events[2])
            stream.copy_in(self.inputs[n], self.pinned_inputs[n], 4 * batch.size)
            self.instances[n].set_rows(rows)
            self.instances[n].enqueue(stream)
            stream.copy_out(self.pinned_outputs[n], self.outputs[n], 4 * rows * self.p.classes)
            stream.record(self.events[n])
            return "ab"[n]

    def result(self, ticket):
        n = "ab".index(ticket)
        self.streams[n].synchronize()
        values = self.pinned_outputs[n].read((self.rows[n], self.p.classes))
        with self.guard:
            self.rows[n] = 0
        return values

    def close(self):
        for stream in self.streams:
            stream.synchronize()
        for instance in self.instances:
            instance.free()
        for memory in (*self.inputs, *self.outputs, *self.pinned_inputs, *self.pinned_outputs, *self.scratch, self.shift, self.pinned_shift):
            self.d.free(memory)


class EnginePair:
    """The same with TensorRT; scratch for both contexts in one allocation, a half for each."""

    def __init__(self, path):
        import pycuda.autoprimaryctx  # noqa: F401
        import pycuda.driver as cuda
        import tensorrt as trt
        self.cuda, self.runtime = cuda, trt.Runtime(trt.Logger(trt.Logger.ERROR))
        with open(path, "rb") as file:
            self.engine = self.runtime.deserialize_cuda_engine(file.read())
        names = dir(self.engine)
        size = self.engine.device_memory_size_v2 if "device_memory_size_v2" in names else self.engine.device_memory_size
        half = -(-max(size, 1) // 4096) * 4096
        self.low, _, self.high = (tuple(s) for s in self.engine.get_tensor_profile_shape("rows", 0))
        self.classes = tuple(self.engine.get_tensor_shape("scores"))[1]
        self.streams, self.events = [cuda.Stream() for _ in range(3)], [cuda.Event() for _ in range(3)]
        self.block, self.shift = cuda.mem_alloc(2 * half), cuda.mem_alloc(4 * self.high[1])
        self.pinned_shift = cuda.pagelocked_empty(self.high[1], np.float32)
        self.pinned_inputs = [cuda.pagelocked_empty(self.high, np.float32) for _ in "ab"]
        self.pinned_outputs = [cuda.pagelocked_empty((self.high[0], self.classes), np.float32) for _ in "ab"]
        self.inputs = [cuda.mem_alloc(h.nbytes) for h in self.pinned_inputs]
        self.outputs = [cuda.mem_alloc(h.nbytes) for h in self.pinned_outputs]
        self.contexts, self.rows = [], [0, 0]
        strategies = getattr(trt, "ExecutionContextAllocationStrategy", None)
        for n in range(2):
            if strategies:
                context = self.engine.create_execution_context(strategies.USER_MANAGED)
            else:
                context = self.engine.create_execution_context_without_device_memory()
            context.device_memory = int(self.block) + n * half
            context.set_tensor_address("rows", int(self.inputs[n]))
            context.set_tensor_address("offset", int(self.shift))
            context.set_tensor_address("scores", int(self.outputs[n]))
            self.contexts.append(context)

    def set_offset(self, offset):
        self.events[2].synchronize()
        np.copyto(self.pinned_shift, offset)
        for event in self.events[:2]:
            self.streams[2].wait_for_event(event)
        self.cuda.memcpy_htod_async(self.shift, self.pinned_shift, self.streams[2])
        self.events[2].record(self.streams[2])

    def submit(self, batch):
        if batch.dtype != np.float32 or batch.ndim != 2 or batch.shape[1] != self.high[1] or not self.low[0] <= len(batch) <= self.high[0]:
            raise ValueError(f"{batch.shape} {batch.dtype}")
        if 0 not in self.rows:
            raise RuntimeError("full")
        n = self.rows.index(0)
        rows, stream, context = len(batch), self.streams[n], self.contexts[n]
        self.pinned_inputs[n][:rows] = batch
        stream.wait_for_event(self.events[2])
        self.cuda.memcpy_htod_async(self.inputs[n], self.pinned_inputs[n][:rows], stream)
        if not (context.set_input_shape("rows", batch.shape) and context.execute_async_v3(stream_handle=stream.handle)):
            raise RuntimeError("TensorRT refused")
        self.cuda.memcpy_dtoh_async(self.pinned_outputs[n][:rows], self.outputs[n], stream)
        self.events[n].record(stream)
        self.rows[n] = rows
        return n

    def result(self, n):
        self.streams[n].synchronize()
        rows, self.rows[n] = self.rows[n], 0
        return self.pinned_outputs[n][:rows].copy()

    def close(self):
        for stream in self.streams:
            stream.synchronize()
        self.contexts.clear()
        for memory in (self.block, self.shift, *self.inputs, *self.outputs):
            memory.free()
        self.pinned_shift = self.pinned_inputs = self.pinned_outputs = None
