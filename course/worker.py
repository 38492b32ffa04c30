"""The process that runs a submission: started by `course.grading`, never by hand.

Reads from standard input one JSON line (address, key, submission, probe), connects, then answers requests:
{"op": "call", "name", "args", "kwargs"} calls a function of the submission, {"op": "probe", ...} one of the grader's
probe, a file that runs in this process before the submission and may watch what it does to a library.
"""
import json
import os
import sys
import traceback
from multiprocessing.connection import Client

from course.codec import decode, encode


def where(error, path):
    """The submission's own line that an exception passed through last: 'line 12: x = y', or ''."""
    if isinstance(error, SyntaxError) and error.filename == path:
        return f"line {error.lineno}: {(error.text or '').strip()}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
    return f"line {frames[-1].lineno}: {frames[-1].line or ''}" if frames else ""


def load(path, name):
    """Runs a Python file as module `name` and returns its namespace."""
    import linecache
    import types
    source = open(path, encoding="utf-8").read()
    linecache.cache[path] = (len(source), None, source.splitlines(True), path)
    module = types.ModuleType(name)
    module.__file__ = path
    sys.modules[name] = module
    exec(compile(source, path, "exec"), module.__dict__)
    return module.__dict__


class NoCourse:
    """Refuses imports of the course's own code: an answer is the learner's."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("course", "solutions", "tests"):
            raise ImportError(f"an answer cannot import {name}: the course's own code is not there when an answer is used")
        return None


def main():
    start = json.loads(sys.stdin.readline())
    connection = Client(start["address"], authkey=bytes.fromhex(start["key"]))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    handles, spaces = {}, {}
    sys.meta_path.insert(0, NoCourse())
    for name in [m for m in sys.modules if m.split(".")[0] == "course"]:
        del sys.modules[name]

    def keep(thing):
        handles[len(handles)] = thing
        return len(handles) - 1

    while True:
        try:
            request = decode(connection.recv_bytes(), handles)
        except EOFError:
            return
        except KeyError:      # an object that an earlier process kept, before it was ended
            connection.send_bytes(encode({"lost": True}))
            continue
        try:
            space = request["space"]
            path = start[space]
            if space not in spaces:
                spaces[space] = load(path, "submission" if space == "submission" else "probe")
            if request["name"] is None:
                answer = {"ok": None}
            elif request["name"] not in spaces[space]:
                answer = {"missing": request["name"]}
            else:
                answer = {"ok": spaces[space][request["name"]](*request["args"], **request["kwargs"])}
        except BaseException as error:
            answer = {"error": type(error).__name__, "text": str(error)[:2000], "where": where(error, path),
                      "bases": [c.__name__ for c in type(error).__mro__],
                      "imports": isinstance(error, ImportError)}
        try:
            sys.stdout.flush()
            data = encode(answer, keep)
        except BaseException as error:      # an object that only pretends to be an array, say
            data = encode({"error": "TypeError", "bases": ["TypeError"], "where": "", "imports": False,
                           "text": f"what was returned cannot be handed on ({type(error).__name__})"})
        connection.send_bytes(data)


if __name__ == "__main__":
    main()
