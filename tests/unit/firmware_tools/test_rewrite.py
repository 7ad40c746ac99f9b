"""Rewrites keep what a model computes."""

import numpy as np
import onnxruntime as ort
import pytest
from onnx import helper

from edge_client.bundle import INFER, TRAIN
from edge_client.training import TrainingSession
from firmware_tools import compile_training, rewrite
from firmware_tools.autodiff.graph import needed


def relu_pool(*more):
    return [
        helper.make_node("Neg", ["x"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        *more,
        helper.make_node("MaxPool", ["b"], ["c"], kernel_shape=[2], strides=[2]),
        helper.make_node("Abs", ["c"], ["out"]),
    ]


def order(nodes):
    return [(n.op_type, n.input[0], n.output[0]) for n in nodes]


def test_relu_moves_behind_the_pool():
    """The pool reads what the ReLU read, and the ReLU works on the pooled tensor."""
    nodes = rewrite.pool_before_relu(relu_pool(), "out")

    assert order(nodes) == [
        ("Neg", "x", "a"),
        ("MaxPool", "a", "b"),
        ("Relu", "b", "c"),
        ("Abs", "c", "out"),
    ]
    assert needed(nodes, ["out"]) == nodes


@pytest.mark.parametrize("output", ["out", "b"])
def test_relu_with_another_use_stays(output):
    """A ReLU that something else reads, or that is the output, is not moved."""
    more = [helper.make_node("Abs", ["b"], ["other"])] if output == "out" else []

    assert order(rewrite.pool_before_relu(relu_pool(*more), output)) == order(relu_pool(*more))


def test_training_is_the_same_with_and_without(models, tmp_path, monkeypatch):
    """Logits and trained parameters of a LeNet do not depend on the rewrite."""
    x, y = models.blobs((1, 14, 14), 5, 32)
    fast = compile_training(models.lenet(), quantize="none")
    monkeypatch.setattr("firmware_tools.prepare.pool_before_relu", lambda nodes, _output: nodes)
    plain = compile_training(models.lenet(), quantize="none")
    assert fast.members[TRAIN] != plain.members[TRAIN]
    sessions = [TrainingSession(c.save(tmp_path / n)) for c, n in ((fast, "f"), (plain, "p"))]
    for session in sessions:
        for _ in range(5):
            session.step(x, y, 0.01)
    logits = [
        ort.InferenceSession(c.members[INFER]).run(None, {"x": x, **s.params})[0]
        for c, s in zip((fast, plain), sessions, strict=True)
    ]

    np.testing.assert_allclose(logits[0], logits[1], rtol=1e-3, atol=1e-4)


UNREDUCED = {
    "ReduceL1": np.abs,
    "ReduceL2": np.abs,
    "ReduceLogSum": np.log,
    "ReduceSumSquare": np.square,
    **dict.fromkeys(
        ("ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum"), lambda x: x
    ),
}


@pytest.mark.parametrize("op", UNREDUCED)
@pytest.mark.parametrize("axes", [[], ["none"]])
def test_a_reduction_over_no_axis_is_written_as_what_it_means(models, op, axes):
    """Without axes or with none of them, on every ONNX Runtime: the function of each value, which also trains."""
    weights = {"w": models.he(np.random.default_rng(0), 6, 4).T.copy(), "none": np.zeros(0, np.int64)}
    nodes = [
        helper.make_node("MatMul", ["in", "w"], ["a"]),
        helper.make_node("Exp", ["a"], ["b"]),
        helper.make_node(op, ["b", *axes], ["out"], noop_with_empty_axes=1),
    ]
    compiled = compile_training(models.model_of(nodes, weights, (4,), 6), quantize="none", loss="mse")
    x = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)
    (got,) = ort.InferenceSession(compiled.members[INFER]).run(None, {"x": x, "w": weights["w"]})

    np.testing.assert_allclose(got, UNREDUCED[op](np.exp(x @ weights["w"])), rtol=1e-4, atol=1e-5)
