"""The suite loops, as far as a CPU can see: its oracles, its models, its list of cases."""
import numpy as np
import onnx
import onnx.reference

from course.bench import loops


def test_the_tower_is_what_its_oracle_computes():
    model, given, exact = loops.tower()
    onnx.checker.check_model(model)
    got, = onnx.reference.ReferenceEvaluator(model).run(None, {"given": given[:4]})
    assert np.abs(got - exact[:4]).max() < 1e-4 and exact.std() > 0.1


def test_the_digits_oracle_reads_digits():
    given, exact, labels = loops.digits()
    assert given.shape == (128, 784) and (exact.argmax(1) == labels).mean() > 0.95
    got, = onnx.reference.ReferenceEvaluator(onnx.load(loops.MLP)).run(None, {"pixels": given[:4]})
    assert np.abs(got - exact[:4]).max() < 1e-5


def test_every_way_is_measured_at_both_batches_and_every_pair_of_contexts():
    names = [case.name for case in loops.cases()]
    assert len(set(names)) == len(names)
    assert {f"floor-{way}-b{rows}" for way in loops.WHAT for rows in (1, 32)} <= set(names)
    ones, twos = ({n.partition("-mlp")[2] or n.partition("-tower")[2] for n in names if n.startswith(start)} for start in ("two-one-context-", "two-contexts-"))
    assert ones == twos != set()
    assert all(set(case.needs) == {"tensorrt", "pycuda"} and case.gpu for case in loops.cases())
