"""A binding for each window, made once, of OrtValues over the rows; states in NumPy arrays that take turns."""
import itertools

import numpy as np
import onnxruntime as ort

NAMES = {"float": "float32", "double": "float64"}


def numpy_type(tensor):
    inside = tensor.type[7:-1]
    return np.dtype(NAMES.get(inside, inside))


def over(array):
    return ort.OrtValue.ortvalue_from_numpy(array)


class Window:
    def __init__(self, session, inputs, outputs):
        given = [(t, inputs.get(t.name)) for t in session.get_inputs()] + [(t, outputs[t.name]) for t in session.get_outputs() if t.name in outputs]
        if len(inputs) != len(session.get_inputs()) or len(given) != len(inputs) + len(outputs) or not outputs:
            known = {t.name for t in session.get_inputs()}, {t.name for t in session.get_outputs()}
            raise ValueError(f"names: {known[0] ^ set(inputs)} of the inputs, {set(outputs) - known[1]} of the outputs")
        rows = set()
        for place, (tensor, array) in enumerate(given):
            if array is None:
                raise ValueError(f"{tensor.name} is missing")
            if not (isinstance(array, np.ndarray) and array.dtype == numpy_type(tensor) and array.dtype.isnative):
                raise TypeError(f"{tensor.name}: an array of {numpy_type(tensor)} is needed, not {getattr(array, 'dtype', type(array))}")
            good = array.ndim == len(tensor.shape) and all(a == b for a, b in zip(array.shape[1:], tensor.shape[1:]) if not isinstance(b, str))
            if not (good and array.flags.carray or good and place < len(inputs) and array.flags["C"] and array.flags["A"]):
                raise ValueError(f"{tensor.name}: {array.shape} {array.strides} cannot be used in place")
            rows.add(array.shape[0])
            if len(rows) > 1:
                raise ValueError(f"different numbers of rows: {rows}, the last one {tensor.name}")
        for (a, one), (b, two) in itertools.combinations(given, 2):
            if b.name in outputs and np.shares_memory(one, two):
                raise ValueError(f"{b.name} lies in the memory of {a.name}")
        self.given, self.session, self.known = [(t.name, t.name in inputs, a) for t, a in given], session, {}
        self.rows, self.fixed = rows.pop(), [t.shape[0] for t, _ in given if isinstance(t.shape[0], int)]

    def run(self, start, stop):
        if start < 0 or stop < start or stop > self.rows:
            raise IndexError(f"no rows {start}..{stop} in {self.rows}")
        if stop > start:
            if any(stop - start != size for size in self.fixed):
                raise ValueError(f"{stop - start} rows for a batch of {self.fixed[0]}")
            if (start, stop) not in self.known:
                self.known[start, stop] = binding = self.session.io_binding()
                for name, is_input, array in self.given:
                    (binding.bind_ortvalue_input if is_input else binding.bind_ortvalue_output)(name, over(array[start:stop]))
            self.session.run_with_iobinding(self.known[start, stop])


class Stepper:
    def __init__(self, session, carry):
        self.session, self.carry, self.turn = session, carry, None

    def reset(self, initial):
        self.arrays = {source: [np.array(initial[source], order="C"), np.empty_like(initial[source], order="C")] for source in self.carry.values()}
        self.turn = 0

    def step(self, feeds, outputs):
        if self.turn is None:
            raise RuntimeError("reset is missing")
        binding = self.session.io_binding()
        for target, source in self.carry.items():
            old, new = self.arrays[source][self.turn], self.arrays[source][1 - self.turn]
            binding.bind_cpu_input(source, old)
            binding.bind_ortvalue_output(target, over(new))
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        for name, array in outputs.items():
            binding.bind_ortvalue_output(name, over(array))
        self.session.run_with_iobinding(binding)
        self.turn = 1 - self.turn

    def state(self):
        if self.turn is None:
            raise RuntimeError("reset is missing")
        return {source: np.array(pair[self.turn]) for source, pair in self.arrays.items()}
