"""Paddings of some axes are written for all of them."""

import numpy as np
import onnx
import pytest
from onnx import helper

from edge_client.bundle import EVAL, INFER, TRAIN
from edge_client.training import TrainingSession
from firmware_tools import compile_training


@pytest.mark.parametrize("kind", ["crop", "pad"])
def test_channels_last_may_be_cropped_and_padded(models, tmp_path, kind):
    """Between transpositions, which ONNX Runtime moves, a crop's gradient and a model's own padding work."""
    rng = np.random.default_rng(0)
    extent = 4 if kind == "crop" else 8
    weights = {"k": models.he(rng, 4, 3, 3, 3), "w": models.he(rng, 4, 4 * extent**2).T.copy()}
    weights |= {"from": np.array([1, 1]), "to": np.array([-1, -1]), "axes": np.array([2, 3])}
    weights["pads"] = np.ones(4, np.int64)
    change = {
        "crop": helper.make_node("Slice", ["d", "from", "to", "axes"], ["e"]),
        "pad": helper.make_node("Pad", ["d", "pads", "", "axes"], ["e"]),
    }[kind]
    nodes = [
        helper.make_node("Transpose", ["in"], ["a"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["a", "k"], ["b"]),
        helper.make_node("Transpose", ["b"], ["b2"], perm=[0, 2, 3, 1]),
        helper.make_node("LeakyRelu", ["b2"], ["c"]),
        helper.make_node("Transpose", ["c"], ["d"], perm=[0, 3, 1, 2]),
        change,
        helper.make_node("Transpose", ["e"], ["f"], perm=[0, 2, 3, 1]),
        helper.make_node("Flatten", ["f"], ["g"]),
        helper.make_node("MatMul", ["g", "w"], ["out"]),
    ]
    compiled = compile_training(models.model_of(nodes, weights, (8, 8, 3), 4), quantize="none")
    session = TrainingSession(compiled.save(tmp_path / "m.bundle"))
    x, y = models.blobs((8, 8, 3), 4, 16)
    losses = [session.step(x, y, 0.02) for _ in range(10)]
    graphs = [onnx.load_from_string(compiled.members[name]).graph for name in (TRAIN, EVAL, INFER)]

    assert losses[-1] < losses[0] / 2
    assert [n for g in graphs for n in g.node if n.op_type == "Pad" and len(n.input) > 3] == []
