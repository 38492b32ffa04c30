"""A closure in place of attributes; the warm-up run is a whole run with the batch's own copies, whose result is thrown away."""
import ctypes
import sys

import numpy as np


class Loop:
    def __init__(self, device, program):
        stream, instance = device.stream(), program.instance(device)
        there, back = (device.alloc(4 * program.max_rows * n) for n in (program.features, program.classes))
        host_in, host_out = (device.alloc_pinned(4 * program.max_rows * n) for n in (program.features, program.classes))
        for name, memory in {"input": there, "output": back}.items():
            instance.bind(name, memory)
        state = {"rows": None, "graph": None}

        def enqueue(rows):
            stream.copy_in(there, host_in, 4 * rows * program.features)
            instance.enqueue(stream)
            stream.copy_out(host_out, back, 4 * rows * program.classes)

        def serve(batch):
            if batch.dtype != "f4" or batch.shape[1:] != (program.features,) or not 1 <= batch.shape[0] <= program.max_rows:
                raise ValueError("wrong batch")
            rows = batch.shape[0]
            host_in.view(batch.shape)[...] = batch
            if state["rows"] != rows:
                old, state["graph"], state["rows"] = state["graph"], None, None
                instance.set_rows(rows)
                enqueue(rows)
                stream.synchronize()
                stream.begin_capture()
                enqueue(rows)
                state["graph"], state["rows"] = stream.end_capture(), rows
                if old is not None:
                    old.free()
            stream.launch(state["graph"])
            device.synchronize()
            return np.array(host_out.view((rows, program.classes)))

        def close():
            if state["graph"] is not None:
                state["graph"].free()
            instance.free()
            for memory in (there, back, host_in, host_out):
                device.free(memory)

        self.serve, self.close = serve, close

    def __call__(self, batch):
        return self.serve(batch)


class EngineLoop:
    """The same with TensorRT: everything of a call in local variables of a closure, made anew for each shape."""

    def __init__(self, path):
        import pycuda.autoprimaryctx  # noqa: F401
        import pycuda.driver as cuda
        import tensorrt as trt
        runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        engine = runtime.deserialize_cuda_engine(open(path, "rb").read())
        if engine is None:
            raise ValueError("not an engine")
        source, target = sorted((engine.get_tensor_name(i) for i in range(2)), key=lambda n: engine.get_tensor_mode(n) == trt.TensorIOMode.OUTPUT)
        low, _, high = (np.array(tuple(s)) for s in engine.get_tensor_profile_shape(source, 0))
        self.context, stream = engine.create_execution_context(), cuda.Stream()
        self.context.set_input_shape(source, tuple(high))
        out = tuple(self.context.get_tensor_shape(target))
        self.hosts = cuda.pagelocked_empty(tuple(int(n) for n in high), np.float32), cuda.pagelocked_empty(out, np.float32)
        self.devices = [cuda.mem_alloc(h.nbytes) for h in self.hosts]
        for name, memory in zip((source, target), self.devices):
            self.context.set_tensor_address(name, int(memory))
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        launch, handle = driver.cuGraphLaunch, ctypes.c_void_p(stream.handle)
        launch.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        self.keep = runtime, engine, stream, driver
        self.shape, self.graph = None, ctypes.c_void_p()

        def make(shape):
            if len(shape) != len(low) or (np.array(shape) < low).any() or (np.array(shape) > high).any():
                raise ValueError(f"{shape}")
            rows = shape[0]
            host_in, host_out = (h[:rows] for h in self.hosts)
            self.context.set_input_shape(source, shape)

            def enqueue():
                cuda.memcpy_htod_async(self.devices[0], host_in, stream)
                if not self.context.execute_async_v3(stream.handle):
                    raise RuntimeError("refused")
                cuda.memcpy_dtoh_async(host_out, self.devices[1], stream)

            self.shape = None
            enqueue()
            stream.synchronize()
            driver.cuStreamBeginCapture_v2(handle, 0)
            enqueue()
            captured = ctypes.c_void_p()
            assert driver.cuStreamEndCapture(handle, ctypes.byref(captured)) == 0
            if self.graph:
                driver.cuGraphExecDestroy(self.graph)
            self.graph = ctypes.c_void_p()
            assert driver.cuGraphInstantiateWithFlags(ctypes.byref(self.graph), captured, ctypes.c_ulonglong(0)) == 0
            driver.cuGraphDestroy(captured)
            graph, wait = self.graph, stream.synchronize

            def go(batch):
                host_in[...] = batch
                launch(graph, handle)
                wait()
                return host_out.copy()

            self.go, self.shape = go, shape

        self.make = make

    def __call__(self, batch):
        if batch.dtype != np.float32:
            raise ValueError("float32 only")
        if batch.shape != self.shape:
            self.make(batch.shape)
        return self.go(batch)

    def close(self):
        self.keep[2].synchronize()
        if self.graph:
            self.keep[3].cuGraphExecDestroy(self.graph)
        self.go = self.make = None
        self.context = None
        for memory in self.devices:
            memory.free()
        self.hosts = None
