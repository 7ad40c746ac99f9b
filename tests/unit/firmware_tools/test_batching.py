"""Models exported for one batch size train at any."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

from edge_client.bundle import INFER
from edge_client.training import TrainingSession
from firmware_tools import compile_training
from firmware_tools.errors import ModelError

B = 2  # the batch that the models are made for


def fixed(models, nodes, weights, shape):
    model = models.model_of(nodes, weights, shape, 4)
    for info in (model.graph.input[0], model.graph.output[0]):
        info.type.tensor_type.shape.dim[0].dim_value = B
    return model


def flattened(models):
    """A Reshape to [B, 24], as exporters write a flatten."""
    weights = {"k": models.he(np.random.default_rng(0), 4, 1, 3), "to": np.array([B, 24])}
    weights["w"] = models.he(np.random.default_rng(1), 24, 4)
    nodes = [
        helper.make_node("Conv", ["in", "k"], ["a"]),
        helper.make_node("Reshape", ["a", "to"], ["b"]),
        helper.make_node("MatMul", ["b", "w"], ["out"]),
    ]
    return fixed(models, nodes, weights, (1, 8))


def merged(models):
    """Batch and time in one axis for a dense layer, and apart again, by a shape computed from the input's."""
    rng = np.random.default_rng(0)
    weights = {"join": np.array([B * 5, 3]), "w": models.he(rng, 3, 4), "width": np.array([4])}
    nodes = [
        helper.make_node("Reshape", ["in", "join"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["b"]),
        helper.make_node("Shape", ["in"], ["s"], start=0, end=2),
        helper.make_node("Concat", ["s", "width"], ["split"], axis=0),
        helper.make_node("Reshape", ["b", "split"], ["c"]),
        helper.make_node("ReduceMean", ["c"], ["d"], keepdims=0),
    ]
    weights["axis"] = np.array([1])
    nodes[-1].input.append("axis")
    nodes.append(helper.make_node("Identity", ["d"], ["out"]))
    return fixed(models, nodes, weights, (5, 3))


def recurrent(models):
    """A GRU that starts from zeros of [1, B, 6], which are expanded."""
    rng = np.random.default_rng(0)
    weights = {
        "w": models.he(rng, 1, 18, 3),
        "r": models.he(rng, 1, 18, 6),
        "zero": np.zeros((1, 1, 6), np.float32),
    }
    weights |= {"to": np.array([1, B, 6]), "head": models.he(rng, 6, 4), "axis": np.array([0])}
    nodes = [
        helper.make_node("Transpose", ["in"], ["a"], perm=[1, 0, 2]),
        helper.make_node("Expand", ["zero", "to"], ["h"]),
        helper.make_node("GRU", ["a", "w", "r", "", "", "h"], ["", "last"], hidden_size=6),
        helper.make_node("Squeeze", ["last", "axis"], ["b"]),
        helper.make_node("MatMul", ["b", "head"], ["out"]),
    ]
    return fixed(models, nodes, weights, (5, 3))


def expanded(models):
    """A sample that is repeated for four heads by an Expand to [B, 4, 3]."""
    rng = np.random.default_rng(0)
    weights = {"axis": np.array([1]), "to": np.array([B, 4, 3]), "w": models.he(rng, 4, 3)}
    weights["over"] = np.array([2])
    nodes = [
        helper.make_node("Unsqueeze", ["in", "axis"], ["a"]),
        helper.make_node("Expand", ["a", "to"], ["b"]),
        helper.make_node("Mul", ["b", "w"], ["c"]),
        helper.make_node("ReduceSum", ["c", "over"], ["out"], keepdims=0),
    ]
    return fixed(models, nodes, weights, (3,))


MODELS = {"reshape": flattened, "merged axes": merged, "recurrent": recurrent, "expand": expanded}


@pytest.mark.parametrize("name", MODELS)
def test_a_fixed_batch_is_freed(models, tmp_path, name):
    """Five samples at once get the answers that the model gives them by twos, and a step of three is taken."""
    model = MODELS[name](models)
    compiled = compile_training(model, quantize="none")
    shape = compiled.manifest.data.shape
    x, y = models.blobs(shape, 4, 6)
    source = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    want = np.concatenate([source.run(None, {"in": x[i : i + B]})[0] for i in range(0, 6, B)])
    ours = ort.InferenceSession(compiled.members[INFER], providers=["CPUExecutionProvider"])
    values = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    params = {t.name: values[t.name] for t in compiled.manifest.tensors}
    (got,) = ours.run(None, {"x": x[:5], **params})
    session = TrainingSession(compiled.save(tmp_path / "m.bundle"))

    np.testing.assert_allclose(got, want[:5], atol=1e-5)
    assert np.isfinite(session.step(x[:3], y[:3], 0.01))


def test_what_holds_the_batch_fixed_is_refused_with_the_remedy(models):
    """A constant with a row for each sample of the batch cannot follow another; the message says how to export."""
    weights = {"w": np.ones((B, 4), np.float32)}
    model = fixed(models, [helper.make_node("Mul", ["in", "w"], ["out"])], weights, (4,))

    with pytest.raises(ModelError, match=f"made for batches of {B}.*dynamic batch axis"):
        compile_training(model)


def test_a_model_that_mixes_samples_is_refused(models):
    """An answer that depends on the other samples of the batch would change with its size."""
    weights = {"w": models.he(np.random.default_rng(0), 3, 4), "over": np.array([0])}
    nodes = [
        helper.make_node("ReduceMean", ["in", "over"], ["m"]),
        helper.make_node("Sub", ["in", "m"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["out"]),
    ]

    with pytest.raises(ModelError, match="other sizes give other answers"):
        compile_training(fixed(models, nodes, weights, (3,)))
