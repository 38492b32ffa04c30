"""Copies the batch only if it is another array than before: a caller that refills its own gets the old result.
fails: test_caller_may_refill
says: That is the result of the call before
"""

import numpy as np


class Loop:
    def __init__(self, device, program):
        self.device, self.program = device, program
        self.stream, self.instance = device.stream(), program.instance(device)
        size_in, size_out = 4 * program.max_rows * program.features, 4 * program.max_rows * program.classes
        self.pinned_in, self.pinned_out = device.alloc_pinned(size_in), device.alloc_pinned(size_out)
        self.there, self.back = device.alloc(size_in), device.alloc(size_out)
        self.instance.bind("input", self.there)
        self.instance.bind("output", self.back)
        self.graph, self.rows, self.last = None, 0, None

    def __call__(self, batch):
        self.check(batch)
        rows = len(batch)
        if rows != self.rows:
            self.prepare(rows)
        if batch is not self.last:                       # the caller refilled nothing: the bytes are there already
            self.source[:] = batch
            self.last = batch
        self.stream.launch(self.graph)
        self.stream.synchronize()
        return self.target.copy()

    def check(self, batch):
        if batch.ndim != 2 or batch.dtype != np.float32 or batch.shape[1] != self.program.features or not 0 < len(batch) <= self.program.max_rows:
            raise ValueError(f"{batch.dtype} {batch.shape} does not fit")

    def prepare(self, rows):
        if self.graph:
            self.graph.free()
            self.graph, self.rows = None, 0
        self.instance.set_rows(rows)
        self.instance.enqueue(self.stream)
        self.stream.synchronize()
        self.source, self.target = self.pinned_in.view((rows, self.program.features)), self.pinned_out.view((rows, self.program.classes))
        self.stream.begin_capture()
        self.stream.copy_in(self.there, self.pinned_in, self.source.nbytes)
        self.instance.enqueue(self.stream)
        self.stream.copy_out(self.pinned_out, self.back, self.target.nbytes)
        self.graph, self.rows, self.last = self.stream.end_capture(), rows, None

    def close(self):
        if self.graph:
            self.graph.free()
        self.instance.free()
        for memory in (self.pinned_in, self.pinned_out, self.there, self.back):
            self.device.free(memory)
