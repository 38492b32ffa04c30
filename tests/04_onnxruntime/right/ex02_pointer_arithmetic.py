"""Addresses by arithmetic from tables made once; the arrays are kept in one list; the two directions of a state have a binding each."""
import numpy as np
from onnxruntime import OrtValue

TYPES = {"tensor(float)": "<f4", "tensor(double)": "<f8", "tensor(int64)": "<i8", "tensor(int32)": "<i4"}


class Window:
    def __init__(self, session, inputs, outputs):
        self.session, self.io, self.kept = session, session.io_binding(), [*inputs.values(), *outputs.values()]
        self.table, self.fixed = [], None
        spans = []
        for part, tensors, bind, result in ((inputs, session.get_inputs(), self.io.bind_input, False), (outputs, session.get_outputs(), self.io.bind_output, True)):
            by_name = {t.name: t for t in tensors}
            if strange := [n for n in part if n not in by_name]:
                raise ValueError(f"the model does not know {strange}")
            if not result and (absent := [n for n in by_name if n not in part]) or result and not part:
                raise ValueError(f"missing: {absent if not result else 'an output'}")
            for name, array in part.items():
                if type(array) is list or not isinstance(array, np.ndarray) or array.dtype.str != TYPES[by_name[name].type]:
                    raise TypeError(f"{name} is no array of {TYPES[by_name[name].type]}")
                batch, *rest = by_name[name].shape
                if array.ndim < 1 or list(array.shape[1:]) != rest:
                    raise ValueError(f"{name}: rows of {array.shape[1:]}, expected {rest}")
                packed = array.itemsize * int(np.prod(rest, dtype=int))
                if not array.flags.c_contiguous or array.ctypes.data % array.dtype.alignment or result and not array.flags.writeable:
                    raise ValueError(f"{name} cannot be bound: {array.flags}")
                if self.table and len(array) != self.rows:
                    raise ValueError(f"{name} has {len(array)} rows, not {self.rows}")
                self.rows = len(array)
                first, last = array.ctypes.data, array.ctypes.data + len(array) * packed
                for other, (low, high, _) in spans:
                    if result and first < high and low < last:
                        raise ValueError(f"{name} and {other} overlap")
                spans.append((name, (first, last, result)))
                self.table.append((bind, name, array.dtype.type, tuple(rest), first, packed))
                self.fixed = batch if isinstance(batch, int) else self.fixed

    def run(self, start, stop):
        count = stop - start
        if min(start, count, self.rows - stop) < 0:
            raise IndexError(f"[{start}, {stop}) is not inside [0, {self.rows})")
        if not count:
            return
        if count != (self.fixed or count):
            raise ValueError(f"{count} rows are not the batch, {self.fixed}")
        for bind, name, dtype, rest, first, packed in self.table:
            bind(name, "cpu", 0, dtype, [count, *rest], first + start * packed)
        self.session.run_with_iobinding(self.io)


class Stepper:
    def __init__(self, session, carry):
        self.session, self.carry = session, carry

    def reset(self, initial):
        def room(array):
            return OrtValue.ortvalue_from_numpy(np.array(array, order="C", copy=True))

        here, there = ({source: room(initial[source]) for source in self.carry.values()} for _ in range(2))
        self.sides = [here, there]

    def step(self, feeds, outputs):
        if not hasattr(self, "sides"):
            raise RuntimeError("nothing was reset")
        old, new = self.sides
        io = self.session.io_binding()
        for target, source in self.carry.items():
            io.bind_ortvalue_input(source, old[source])
            io.bind_output(target, "cpu", 0, new[source].numpy().dtype.type, new[source].shape(), new[source].data_ptr())
        for name in feeds:
            io.bind_ortvalue_input(name, OrtValue.ortvalue_from_numpy(feeds[name]))
        for name, array in outputs.items():
            io.bind_output(name, element_type=array.dtype.type, shape=array.shape, buffer_ptr=array.ctypes.data)
        self.session.run_with_iobinding(io)
        self.sides = [new, old]

    def state(self):
        if not hasattr(self, "sides"):
            raise RuntimeError("nothing was reset")
        return {source: np.copy(value.numpy()) for source, value in self.sides[0].items()}
