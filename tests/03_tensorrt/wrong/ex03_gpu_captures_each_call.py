"""Captures again for every call.

fails: test_gpu_steady_state
says: calls execute_async_v3
"""
import ctypes
import sys

import numpy as np


class EngineLoop:
    def __init__(self, path):
        import pycuda.autoprimaryctx  # noqa: F401
        import pycuda.driver as cuda
        import tensorrt as trt

        self.cuda, self.runtime = cuda, trt.Runtime(trt.Logger(trt.Logger.ERROR))
        with open(path, "rb") as file:
            self.engine = self.runtime.deserialize_cuda_engine(file.read())
        if self.engine is None:
            raise ValueError("no engine")
        self.source, self.target = sorted((self.engine.get_tensor_name(i) for i in range(2)),
                                          key=lambda n: self.engine.get_tensor_mode(n) != trt.TensorIOMode.INPUT)
        self.low, _, self.high = (tuple(s) for s in self.engine.get_tensor_profile_shape(self.source, 0))
        self.context, self.stream = self.engine.create_execution_context(), cuda.Stream()
        self.context.set_input_shape(self.source, self.high)
        self.host_in = cuda.pagelocked_empty(self.high, np.float32)
        self.host_out = cuda.pagelocked_empty(tuple(self.context.get_tensor_shape(self.target)), np.float32)
        self.device_in, self.device_out = cuda.mem_alloc(self.host_in.nbytes), cuda.mem_alloc(self.host_out.nbytes)
        self.context.set_tensor_address(self.source, int(self.device_in))
        self.context.set_tensor_address(self.target, int(self.device_out))
        self.driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        self.handle, self.graph, self.shape = ctypes.c_void_p(self.stream.handle), None, None

    def __call__(self, batch):
        if batch.dtype != np.float32:
            raise ValueError("float32 is needed")
        self.prepare(batch.shape)
        self.host_in[:len(batch)] = batch
        self.driver.cuGraphLaunch(self.graph, self.handle)
        self.stream.synchronize()
        return self.host_out[:len(batch)].copy()

    def prepare(self, shape):
        if len(shape) != len(self.low) or any(not a <= n <= b for a, n, b in zip(self.low, shape, self.high)):
            raise ValueError(f"{shape} does not fit")
        self.forget()
        self.context.set_input_shape(self.source, shape)
        self.enqueue(shape[0])
        self.stream.synchronize()
        captured, ready = ctypes.c_void_p(), ctypes.c_void_p()
        self.driver.cuStreamBeginCapture_v2(self.handle, 1)
        self.enqueue(shape[0])
        self.driver.cuStreamEndCapture(self.handle, ctypes.byref(captured))
        if self.driver.cuGraphInstantiateWithFlags(ctypes.byref(ready), captured, ctypes.c_ulonglong(0)):
            raise RuntimeError("no graph")
        self.driver.cuGraphDestroy(captured)
        self.graph, self.shape = ready, shape

    def enqueue(self, rows):
        self.cuda.memcpy_htod_async(self.device_in, self.host_in[:rows], self.stream)
        if not self.context.execute_async_v3(self.stream.handle):
            raise RuntimeError("refused")
        self.cuda.memcpy_dtoh_async(self.host_out[:rows], self.device_out, self.stream)

    def forget(self):
        if self.graph is not None:
            self.driver.cuGraphExecDestroy(self.graph)
        self.graph = self.shape = None

    def close(self):
        self.stream.synchronize()
        self.forget()
        del self.context
        self.device_in.free()
        self.device_out.free()
        del self.host_in, self.host_out
