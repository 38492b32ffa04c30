"""Runs in the submission's process: calls accuracy_gate with arrays that stay the same objects from call to call."""
import copy
import sys


def call_and_compare(reference, candidate, labels):
    """Names of the arrays that accuracy_gate changed."""
    arrays = {name: a.copy() for name, a in (("reference", reference), ("candidate", candidate), ("labels", labels))}
    before = {name: array.tobytes() for name, array in arrays.items()}
    sys.modules["submission"].accuracy_gate(*arrays.values(), "bfloat16")
    return [name for name, array in arrays.items() if array.tobytes() != before[name]]


def fill_again(reference, first, second, labels):
    """The reasons for two candidates that are handed over in one array, one after the other."""
    gate, candidate = sys.modules["submission"].accuracy_gate, first.copy()
    one = list(gate(reference, candidate, labels, "int8")["reasons"])
    candidate[:] = second
    return one, list(gate(reference, candidate, labels, "int8")["reasons"])


def answers_stay(reference, first, second, labels):
    """Whether the first answer is still the same after another call, for fewer rows and other reasons."""
    gate = sys.modules["submission"].accuracy_gate
    one = gate(reference, first, labels, "int8")
    kept = copy.deepcopy(one)
    gate(reference[:len(second)], second, labels[:len(second)], "int8", min_samples=30)
    return one == kept
