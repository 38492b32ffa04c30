"""Refuses inputs that share memory as well, though they are only read.

fails: test_window_refuses_shared_memory
says: are only read: nothing is overwritten
"""
import numpy as np
import onnxruntime as ort

NUMPY_TYPES = {
    "tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(bool)": np.bool_,
    "tensor(int8)": np.int8, "tensor(int16)": np.int16, "tensor(int32)": np.int32, "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8, "tensor(uint16)": np.uint16, "tensor(uint32)": np.uint32, "tensor(uint64)": np.uint64,
}


class Window:
    """Runs a session on rows of the callers' arrays, in place."""

    def __init__(self, session, inputs, outputs):
        self.session, self.inputs, self.outputs = session, dict(inputs), dict(outputs)
        sources = {tensor.name: tensor for tensor in session.get_inputs()}
        targets = {tensor.name: tensor for tensor in session.get_outputs()}
        for name in sources.keys() ^ self.inputs.keys():
            raise ValueError(f"{name} is {'missing' if name in sources else 'unknown'}: the model's inputs are {list(sources)}")
        for name in self.outputs.keys() - targets.keys():
            raise ValueError(f"{name} is unknown: the model's outputs are {list(targets)}")
        if not self.outputs:
            raise ValueError(f"no output is named: the model has {list(targets)}")
        self.rows, self.batch = None, None
        for arrays, tensors in ((self.inputs, sources), (self.outputs, targets)):
            for name, array in arrays.items():
                self._check(name, array, tensors[name], arrays is self.outputs)
        memory = []
        for name, array in [*self.inputs.items(), *self.outputs.items()]:
            for other, taken in memory:
                if np.may_share_memory(array, taken):
                    raise ValueError(f"{name} shares memory with {other}: a result would overwrite what is still read")
            memory.append((name, array))
        self.binding = session.io_binding()

    def _check(self, name, array, tensor, written):
        dtype = np.dtype(NUMPY_TYPES[tensor.type])
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{name} is {type(array).__name__}: expected a NumPy array")
        if array.dtype != dtype:
            raise TypeError(f"{name} is {array.dtype} ({array.dtype.str}): expected {dtype} ({dtype.str})")
        wanted = tensor.shape[1:]
        if array.ndim != len(tensor.shape) or any(isinstance(size, int) and size != given for size, given in zip(wanted, array.shape[1:])):
            raise ValueError(f"{name} has the shape {array.shape}: expected (rows, {', '.join(map(str, wanted))})")
        if not array.flags.c_contiguous or not array.flags.aligned:
            raise ValueError(f"{name} is not contiguous in C order, or not aligned: its rows cannot be used where they are")
        if written and not array.flags.writeable:
            raise ValueError(f"{name} is read-only, and results have to be written there")
        if self.rows is None:
            self.rows = len(array)
        if len(array) != self.rows:
            raise ValueError(f"{name} has {len(array)} rows, and the arrays before it {self.rows}")
        if isinstance(tensor.shape[0], int):
            self.batch = tensor.shape[0]

    def run(self, start, stop):
        if not 0 <= start <= stop <= self.rows:
            raise IndexError(f"rows {start} to {stop} of {self.rows}")
        if start == stop:
            return
        if self.batch is not None and stop - start != self.batch:
            raise ValueError(f"rows {start} to {stop} are {stop - start}, and the model's batch is {self.batch}")
        for bind, arrays in ((self.binding.bind_input, self.inputs), (self.binding.bind_output, self.outputs)):
            for name, array in arrays.items():
                rows = array[start:stop]
                bind(name, "cpu", 0, array.dtype, rows.shape, rows.ctypes.data)
        self.session.run_with_iobinding(self.binding)

class Stepper:
    """Runs a recurrent session: what one step writes, the next one reads, in the same memory."""

    def __init__(self, session, carry):
        self.session, self.carry, self.values = session, dict(carry), None

    def reset(self, initial):
        self.values = [{}, {}]
        for source in self.carry.values():
            for side in self.values:
                side[source] = ort.OrtValue.ortvalue_from_shape_and_type(list(initial[source].shape), initial[source].dtype.type, "cpu", 0)
            self.values[0][source].update_inplace(initial[source])
        self.binding = self.session.io_binding()
        self.now = 0

    def step(self, feeds, outputs):
        if self.values is None:
            raise RuntimeError("there is no state yet: call reset first")
        read, write = self.values[self.now], self.values[1 - self.now]
        self.binding.clear_binding_outputs()        # an output of the step before, not wanted now, would still be written
        for target, source in self.carry.items():
            self.binding.bind_ortvalue_input(source, read[source])
            self.binding.bind_ortvalue_output(target, write[source])
        for bind, arrays in ((self.binding.bind_input, feeds), (self.binding.bind_output, outputs)):
            for name, array in arrays.items():
                bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        self.session.run_with_iobinding(self.binding)
        self.now = 1 - self.now

    def state(self):
        if self.values is None:
            raise RuntimeError("there is no state yet: call reset first")
        return {source: value.numpy().copy() for source, value in self.values[self.now].items()}
