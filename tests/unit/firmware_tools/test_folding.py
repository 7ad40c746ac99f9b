"""Shape arithmetic of exporters, folded."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

from edge_client.bundle import INFER
from firmware_tools import compile_training
from firmware_tools.errors import ModelError, NotDifferentiable
from firmware_tools.prepare import prepare


def node(op, inputs, *outputs, **attributes):
    return helper.make_node(op, inputs, list(outputs), **attributes)


def flattened(models, batch_name="batch"):
    """A dense layer on [batch, 2, 3] samples that are flattened through Shape, Gather and Concat."""
    rng = np.random.default_rng(0)
    weights = {"w": models.he(rng, 4, 6), "zero": np.array(0), "first": np.array([0]), "rest": np.array([6])}
    nodes = [
        node("Shape", ["in"], "shape"),
        node("Gather", ["shape", "zero"], "count"),
        node("Unsqueeze", ["count", "first"], batch_name),
        node("Concat", [batch_name, "rest"], "target", axis=0),
        node("Reshape", ["in", "target"], "flat"),
        node("Gemm", ["flat", "w"], "out", transB=1),
    ]
    return models.model_of(nodes, weights, (2, 3), 4)


def test_a_computed_reshape_gets_a_constant_target(models):
    """Shape, Gather, Unsqueeze and Concat vanish; the batch becomes -1."""
    network = prepare(flattened(models))

    assert [n.op_type for n in network.nodes] == ["Reshape", "Gemm"]
    assert network.constants[network.nodes[0].input[1]].tolist() == [-1, 6]


def test_what_follows_the_batch_is_computed_from_it(models):
    """Zeros expanded to [batch, 4] keep their shape at every batch size, and the model its answers."""
    rng = np.random.default_rng(0)
    weights = {"w": models.he(rng, 4, 6), "width": np.array([4]), "zero": np.zeros(1, np.float32)}
    nodes = [
        node("Shape", ["in"], "batch", start=0, end=1),
        node("Concat", ["batch", "width"], "target", axis=0),
        node("Expand", ["zero", "target"], "start"),
        node("Gemm", ["in", "w", "start"], "out", transB=1),
    ]
    source = models.model_of(nodes, weights, (6,), 4)
    compiled = compile_training(source, quantize="none", trainable=("w",))
    x = rng.standard_normal((7, 6)).astype(np.float32)
    session = ort.InferenceSession(compiled.members[INFER], providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"x": x, "w": weights["w"]})

    np.testing.assert_allclose(got, x @ weights["w"].T, atol=1e-6)


def test_values_of_constant_nodes_are_not_trained(models):
    """A literal that a model holds in a Constant node is frozen; only initializers are parameters."""
    literal = onnx.numpy_helper.from_array(np.ones(4, np.float32), "literal")
    nodes = [
        node("Constant", [], "factor", value=literal),
        node("Gemm", ["in", "w"], "a", transB=1),
        node("Mul", ["a", "factor"], "out"),
    ]
    model = models.model_of(nodes, {"w": models.he(np.random.default_rng(0), 4, 6)}, (6,), 4)

    assert [t.name for t in compile_training(model).manifest.tensors] == ["w"]


def test_a_model_of_one_batch_size_is_refused(models):
    """Shape arithmetic that only works for one batch size is an error that says so."""
    model = flattened(models)
    model.graph.initializer[3].CopyFrom(onnx.numpy_helper.from_array(np.array([-1, 12]), "rest"))
    shaped = node("Shape", ["flat"], "flat_shape")
    model.graph.node.insert(5, shaped)
    model.graph.node.insert(6, node("Reshape", ["flat", "flat_shape"], "again"))
    model.graph.node[7].input[0] = "again"

    with pytest.raises(ModelError, match="shapes do not fit at a batch of"):
        prepare(model)


def backwards(models, length):
    """Sequences of 5 that are reversed, each over the `length` that a vector of the batch's size gives."""
    weights = {"length": np.array([length]), "w": models.he(np.random.default_rng(0), 15, 4)}
    weights["scale"] = np.arange(15, dtype=np.float32).reshape(5, 3)
    nodes = [
        node("Mul", ["in", "scale"], "a"),
        node("Shape", ["in"], "batch", start=0, end=1),
        node("Expand", ["length", "batch"], "lengths"),
        node("ReverseSequence", ["a", "lengths"], "b", time_axis=1, batch_axis=0),
        node("Flatten", ["b"], "c"),
        node("MatMul", ["c", "w"], "out"),
    ]
    return models.model_of(nodes, weights, (5, 3), 4)


def test_whole_sequences_are_reversed_by_a_slice(models):
    """The backward half of Keras's bidirectional layers gets a gradient and keeps its answers."""
    source = backwards(models, 5)
    compiled = compile_training(source, quantize="none", trainable=("scale",))
    x = np.random.default_rng(1).standard_normal((4, 5, 3)).astype(np.float32)
    (want,) = ort.InferenceSession(source.SerializeToString()).run(None, {"in": x})
    scale = np.arange(15, dtype=np.float32).reshape(5, 3)
    (got,) = ort.InferenceSession(compiled.members[INFER]).run(None, {"x": x, "scale": scale})

    np.testing.assert_allclose(got, want, atol=1e-5)


def test_parts_of_sequences_are_not(models):
    """Where a part of each sequence is reversed the operator stays, which has no gradient."""
    with pytest.raises(NotDifferentiable, match="of type ReverseSequence"):
        compile_training(backwards(models, 3))
    assert compile_training(backwards(models, 3), trainable=("w",)).manifest.parameters == 60
