"""Runs in the submission's process: a simulated device with a queue and a clock, for `measure`."""
import sys


class Device:
    """A simulated queue: `start` takes `host` seconds of the host and enqueues work, `finish` waits, `clock` tells."""

    def __init__(self, host, costs):
        self.host, self.costs = host, list(costs)
        self.now, self.free_at, self.started = 1000.0, 1000.0, 0

    def start(self):
        self.now += self.host
        cost = self.costs[min(self.started, len(self.costs) - 1)]
        self.free_at = max(self.free_at, self.now) + cost
        self.started += 1

    def finish(self):
        self.now = max(self.now, self.free_at)

    def clock(self):
        return self.now


def timed(host, costs, prediction, options):
    """measure on a simulated device: what it returned or raised, calls of start, whether the prediction is as it was."""
    device, given = Device(host, costs), dict(prediction)
    measure = sys.modules["submission"].measure
    try:
        result = {"ok": measure(device.start, device.finish, device.clock, given, **options)}
    except NotImplementedError as error:
        result = {"unwritten": str(error)}
    except Exception as error:
        result = {"raised": [kind.__name__ for kind in type(error).__mro__], "text": str(error)}
    return result | {"started": device.started, "unchanged": given == prediction}


def unchanged(path, batch, machine):
    """predict with a machine of plain dicts: whether the machine is as it was, and the answer."""
    kept = {key: dict(value) if isinstance(value, dict) else value for key, value in machine.items()}
    sys.modules["submission"].predict(path, batch, machine)
    return machine == kept


def rows_are_new(path, batch, machine):
    """Whether an answer stays as it was given after its rows are changed and both functions are called again."""
    answer = sys.modules["submission"]
    first = [dict(row) for row in answer.layers(path, batch)]
    for row in answer.layers(path, batch):
        row.update(name="mine", flops=1)
    predicted = [dict(row) for row in answer.predict(path, batch, machine)["layers"]]
    for row in answer.predict(path, batch, machine)["layers"]:
        row.update(name="mine", flops=1)
    return [dict(row) for row in answer.layers(path, batch)] == first and answer.predict(path, batch, machine)["layers"] == predicted
