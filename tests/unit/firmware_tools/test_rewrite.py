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
