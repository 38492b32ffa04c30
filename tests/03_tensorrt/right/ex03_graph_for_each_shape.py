"""Keeps a graph and an instance for each number of rows, over one set of buffers; waits by an event."""
import numpy as np


class Loop:
    def __init__(self, device, program):
        self.device, self.program, self.stream, self.over, self.known = device, program, device.stream("serving"), device.event(), {}
        self.sizes = [4 * program.max_rows * n for n in (program.features, program.classes)]
        self.memory = [make(size) for size in self.sizes for make in (device.alloc_pinned, device.alloc)]

    def record(self, rows):
        host_in, device_in, host_out, device_out = self.memory
        instance = self.program.instance(self.device)
        instance.bind("output", device_out)
        instance.bind("input", device_in)
        instance.set_rows(rows)
        instance.enqueue(self.stream)
        self.device.synchronize()
        self.stream.begin_capture()
        self.stream.copy_in(device_in, host_in, 4 * rows * self.program.features)
        instance.enqueue(self.stream)
        self.stream.copy_out(host_out, device_out, 4 * rows * self.program.classes)
        graph = self.stream.end_capture()
        return instance, graph

    def __call__(self, batch):
        rows, *rest = batch.shape
        if str(batch.dtype) != "float32" or rest != [self.program.features] or rows not in range(1, self.program.max_rows + 1):
            raise ValueError("no such batch")
        if rows not in self.known:
            self.known[rows] = self.record(rows)
        self.memory[0].write(np.ascontiguousarray(batch))
        self.stream.launch(self.known[rows][1])
        self.stream.record(self.over)
        self.over.synchronize()
        return self.memory[2].read((rows, self.program.classes))

    def close(self):
        for instance, graph in self.known.values():
            graph.free()
            instance.free()
        while self.memory:
            self.device.free(self.memory.pop())


class EngineLoop:
    """A context of its own for each capture, the wait by an event."""

    def __init__(self, path):
        import pycuda.autoprimaryctx  # noqa: F401
        import pycuda.driver as cuda
        import tensorrt as trt
        self.cuda, self.known = cuda, {}
        self.runtime = trt.Runtime(trt.Logger(trt.Logger.INTERNAL_ERROR))
        with open(path, "rb") as file:
            self.engine = self.runtime.deserialize_cuda_engine(file.read())
        if not self.engine:
            raise ValueError(path)
        modes = {self.engine.get_tensor_mode(n): n for n in map(self.engine.get_tensor_name, range(self.engine.num_io_tensors))}
        self.source, self.target = modes[trt.TensorIOMode.INPUT], modes[trt.TensorIOMode.OUTPUT]
        self.low, _, self.high = (tuple(s) for s in self.engine.get_tensor_profile_shape(self.source, 0))
        self.stream, self.over = cuda.Stream(), cuda.Event()
        self.make()

    def make(self):
        """A context; the first one also tells how large the buffers have to be."""
        context = self.engine.create_execution_context()
        if not hasattr(self, "host_in"):
            context.set_input_shape(self.source, self.high)
            self.host_in = self.cuda.pagelocked_empty(self.high, np.float32)
            self.host_out = self.cuda.pagelocked_empty(tuple(context.get_tensor_shape(self.target)), np.float32)
            self.device_in, self.device_out = self.cuda.mem_alloc(self.host_in.nbytes), self.cuda.mem_alloc(self.host_out.nbytes)
        return context

    def record(self, shape):
        import ctypes
        if len(shape) != len(self.low) or not all(a <= n <= b for a, n, b in zip(self.low, shape, self.high)):
            raise ValueError(f"{shape} is outside {self.low} to {self.high}")
        for before in list(self.known):             # one shape at a time: no name may keep the old context, or the new one finds profile 0 taken
            self.driver.cuGraphExecDestroy(self.known.pop(before)[0])
        context = self.make()
        context.set_input_shape(self.source, shape)
        context.set_tensor_address(self.source, int(self.device_in))
        context.set_tensor_address(self.target, int(self.device_out))
        rows = shape[0]

        def enqueue():
            self.cuda.memcpy_htod_async(self.device_in, self.host_in[:rows], self.stream)
            assert context.execute_async_v3(self.stream.handle)
            self.cuda.memcpy_dtoh_async(self.host_out[:rows], self.device_out, self.stream)

        enqueue()
        self.stream.synchronize()
        self.driver = ctypes.CDLL("libcuda.so.1")
        handle, graph, ready = ctypes.c_void_p(self.stream.handle), ctypes.c_void_p(), ctypes.c_void_p()
        for status in (self.driver.cuStreamBeginCapture_v2(handle, 1), enqueue(), self.driver.cuStreamEndCapture(handle, ctypes.byref(graph)),
                       self.driver.cuGraphInstantiateWithFlags(ctypes.byref(ready), graph, ctypes.c_ulonglong(0)), self.driver.cuGraphDestroy(graph)):
            if status:
                raise RuntimeError(f"CUDA error {status}")
        self.handle = handle
        self.known[shape] = ready, context

    def __call__(self, batch):
        if batch.dtype.char != "f":
            raise ValueError("float32")
        shape = batch.shape
        if shape not in self.known:
            self.record(shape)
        np.copyto(self.host_in[:shape[0]], batch)
        self.driver.cuGraphLaunch(self.known[shape][0], self.handle)
        self.over.record(self.stream)
        self.over.synchronize()
        return self.host_out[:shape[0]].copy()

    def close(self):
        for graph, _ in self.known.values():
            self.driver.cuGraphExecDestroy(graph)
        self.known.clear()
        self.device_in.free()
        self.device_out.free()
        del self.host_in, self.host_out
