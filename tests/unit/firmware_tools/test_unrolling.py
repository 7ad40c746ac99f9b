"""Loops of a fixed number of steps are written out; others are refused."""

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_client.bundle import INFER
from firmware_tools import compile_training, unrolling
from firmware_tools.errors import ModelError

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def looped(models, *, limit=5, stop=99, condition=()):
    """A step is tanh(x_t w + h r), taken while t < `stop`; logits come from the last h and the sum of all."""
    rng = np.random.default_rng(0)
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Gather", ["steps", "t"], ["now"]),
            helper.make_node("MatMul", ["now", "w"], ["a"]),
            helper.make_node("MatMul", ["h", "r_in"], ["b"]),
            helper.make_node("Add", ["a", "b"], ["c"]),
            helper.make_node("Tanh", ["c"], ["h_out"]),
            helper.make_node("Identity", ["h_out"], ["each"]),
            helper.make_node("Add", ["t", "one"], ["next"]),
            *(condition or [helper.make_node("Less", ["next", "stop"], ["go"])]),
        ],
        "body",
        [info("t", INT64, []), info("going", BOOL, []), info("h", FLOAT, None), info("r_in", FLOAT, None)],
        [
            info("go", BOOL, []),
            info("h_out", FLOAT, None),
            info("r_in", FLOAT, None),
            info("each", FLOAT, None),
        ],
        [numpy_helper.from_array(np.array(1), "one")],
    )
    weights = {
        "w": models.he(rng, 6, 3).T.copy(),
        "r": models.he(rng, 6, 6),
        "head": models.he(rng, 4, 6).T.copy(),
    }
    weights |= {"limit": np.array(limit), "yes": np.array(True), "zero": np.zeros((1, 6), np.float32)}
    weights |= {"stop": np.array(stop), "axis": np.array([0])}
    nodes = [
        helper.make_node("Transpose", ["in"], ["steps"], perm=[1, 0, 2]),
        helper.make_node(
            "Loop", ["limit", "yes", "zero", "r"], ["last", "kept", "all"], name="walk", body=body
        ),
        helper.make_node("ReduceSum", ["all", "axis"], ["total"], keepdims=0),
        helper.make_node("Add", ["last", "total"], ["state"]),
        helper.make_node("MatMul", ["state", "head"], ["out"]),
    ]
    return models.model_of(nodes, weights, (5, 3), 4)


@pytest.mark.parametrize("stop", [99, 3])
def test_a_loop_answers_as_its_steps(models, stop):
    """Written out, for all steps or until its condition fails, the loop gives ONNX Runtime's answers to the loop."""
    model = looped(models, stop=stop)
    compiled = compile_training(model, quantize="none", trainable=("w", "r", "head"))
    x, _ = models.blobs((5, 3), 4, 7)
    (want,) = ort.InferenceSession(model.SerializeToString()).run(None, {"in": x})
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    params = {name: values[name] for name in ("w", "r", "head")}
    (got,) = ort.InferenceSession(compiled.members[INFER]).run(None, {"x": x, **params})

    np.testing.assert_allclose(got, want, atol=1e-5)


def test_all_steps_share_their_weights(models):
    """A weight that the loop carries unchanged, or sees from outside, is one tensor."""
    names = [t.name for t in compile_training(looped(models)).manifest.tensors]

    assert sorted(names) == ["head", "r", "w", "zero"]


def test_a_loop_whose_end_depends_on_the_data_is_refused(models):
    """How often a sample passes cannot be known when the graph is made; the node is named."""
    condition = [
        helper.make_node("ReduceMax", ["h_out"], ["top"], keepdims=0),
        helper.make_node("Cast", ["top"], ["go"], to=BOOL),
    ]

    with pytest.raises(ModelError, match=r"'walk' of type Loop .* depends on the data"):
        compile_training(looped(models, condition=condition))


def test_a_loop_that_is_too_long_is_refused(models, monkeypatch):
    """Steps and nodes are named with the limit."""
    monkeypatch.setattr(unrolling, "NODES_MAX", 39)

    with pytest.raises(ModelError, match=r"'walk' .* 5 steps of 8 nodes are more than 39"):
        compile_training(looped(models))


def test_a_loop_without_a_step_is_refused(models):
    """What never runs has nothing to train."""
    with pytest.raises(ModelError, match="takes no step"):
        compile_training(looped(models, limit=0))
