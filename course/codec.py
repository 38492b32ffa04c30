"""Values that cross between a grader and the process that runs a submission.

Only plain data crosses: None, bool, int, float, str, bytes, NumPy arrays (column order included) and scalars without
object dtype, and lists, tuples and dicts of these (a dict of `collections` arrives as a plain one). Nothing is pickled, so nothing that a submission sends can run code in the grader.
Whatever else a submission returns stays in its process, under a number: an `Opaque` stands for it on this side.
"""
import collections
import json
import os
import struct

import numpy as np


class Opaque:
    """Stands for an object that stayed in the submission's process. Pass it back as an argument to reach it."""

    def __init__(self, handle: int, type_name: str, text: str):
        self.handle, self.type_name, self.text = handle, type_name, text

    def __repr__(self):
        return f"{self.type_name} object" if self.type_name != "function" else self.text


def encode(value, keep=None) -> bytes:
    """Bytes of `value`. `keep(object) -> int` takes what is no plain data and gives its number (None: TypeError)."""
    blobs: list[bytes] = []

    def blob(data: bytes) -> int:
        blobs.append(data)
        return len(blobs) - 1

    def pack(v):
        if v is None or type(v) in (bool, str):
            return v
        if type(v) is int:
            return v if abs(v) < 2**53 else {"int": str(v)}
        if type(v) is float:
            return {"float": v.hex()}
        if type(v) is bytes:
            return {"bytes": blob(v)}
        if isinstance(v, Opaque):
            return {"handle": v.handle}
        if isinstance(v, (np.ndarray, np.generic)) and v.dtype.kind in "biufcSU":
            kind = "array" if isinstance(v, np.ndarray) else "scalar"
            columns = np.ndim(v) > 1 and v.flags.f_contiguous and not v.flags.c_contiguous
            return {kind: blob(np.asarray(v).tobytes("F" if columns else "C")), "dtype": v.dtype.str,
                    "shape": list(v.shape), "order": "F" if columns else "C"}
        if type(v) in (list, tuple):
            return {type(v).__name__: [pack(item) for item in v]}
        if type(v) in (dict, collections.OrderedDict, collections.defaultdict, collections.Counter):
            return {"dict": [[pack(key), pack(item)] for key, item in v.items()]}
        if isinstance(v, os.PathLike):
            return os.fspath(v)
        if keep is None:
            raise TypeError(f"cannot send {type(v).__name__}")
        try:
            text = repr(v)[:500]
        except Exception as error:  # a submission's __repr__ may do anything
            text = f"<repr failed: {type(error).__name__}>"
        return {"opaque": keep(v), "type": type(v).__name__, "text": text}

    head = json.dumps({"value": pack(value), "sizes": [len(b) for b in blobs]}).encode()
    return struct.pack("<Q", len(head)) + head + b"".join(blobs)


def decode(data: bytes, handles=None):
    """The value that `encode` was given. `handles` maps a number to its object, on the side that kept it."""
    size, = struct.unpack_from("<Q", data)
    head = json.loads(data[8:8 + size])
    blobs, at = [], 8 + size
    for length in head["sizes"]:
        blobs.append(data[at:at + length])
        at += length

    def unpack(v):
        if not isinstance(v, dict):
            return v
        if "int" in v:
            return int(v["int"])
        if "float" in v:
            return float.fromhex(v["float"])
        if "bytes" in v:
            return blobs[v["bytes"]]
        if "handle" in v:
            return handles[v["handle"]]
        if "array" in v:
            return np.frombuffer(blobs[v["array"]], np.dtype(v["dtype"])).reshape(v["shape"], order=v["order"]).copy("K")
        if "scalar" in v:
            return np.frombuffer(blobs[v["scalar"]], np.dtype(v["dtype"]))[0]
        if "list" in v:
            return [unpack(item) for item in v["list"]]
        if "tuple" in v:
            return tuple(unpack(item) for item in v["tuple"])
        if "dict" in v:
            return {unpack(key): unpack(item) for key, item in v["dict"]}
        return Opaque(v["opaque"], v["type"], v["text"])

    return unpack(head["value"])
