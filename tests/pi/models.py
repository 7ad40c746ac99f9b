"""The models trained under emulation: one network of each kind that sensors are given."""

import numpy as np
from onnx import helper

from firmware_tools.zoo import cnn1d
from tests.unit.firmware_tools.models import he, mlp, model_of

CHANNELS, LENGTH, CLASSES, HIDDEN = 3, 16, 4, 8


def gru():
    """A GRU over windows of 16 readings of three channels, and a dense layer on its last state."""
    rng = np.random.default_rng(0)
    weights = {
        "gru.w": rng.uniform(-0.4, 0.4, (1, 3 * HIDDEN, CHANNELS)).astype(np.float32),
        "gru.r": rng.uniform(-0.4, 0.4, (1, 3 * HIDDEN, HIDDEN)).astype(np.float32),
        "gru.b": np.zeros((1, 6 * HIDDEN), np.float32),
        "dense.w": rng.uniform(-0.4, 0.4, (HIDDEN, CLASSES)).astype(np.float32),
        "dense.b": np.zeros(CLASSES, np.float32),
    }
    nodes = [
        helper.make_node("Transpose", ["in"], ["time-first"], perm=[2, 0, 1]),
        helper.make_node("GRU", ["time-first", "gru.w", "gru.r", "gru.b"], ["", "last"], hidden_size=HIDDEN),
        helper.make_node("Squeeze", ["last", "axis"], ["state"]),
        helper.make_node("Gemm", ["state", "dense.w", "dense.b"], ["out"]),
    ]
    return model_of(nodes, weights | {"axis": np.array([0])}, (CHANNELS, LENGTH), CLASSES)


def normalised():
    """A convolution, BatchNormalization and a dense layer over the same windows: a model with statistics."""
    rng = np.random.default_rng(0)
    weights = {
        "conv.w": he(rng, HIDDEN, CHANNELS, 3),
        "bn.scale": np.ones(HIDDEN, np.float32),
        "bn.shift": np.zeros(HIDDEN, np.float32),
        "bn.mean": np.zeros(HIDDEN, np.float32),
        "bn.var": np.ones(HIDDEN, np.float32),
        "dense.w": he(rng, HIDDEN * LENGTH, CLASSES),
        "dense.b": np.zeros(CLASSES, np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["in", "conv.w"], ["a"], pads=[1, 1]),
        helper.make_node("BatchNormalization", ["a", "bn.scale", "bn.shift", "bn.mean", "bn.var"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Flatten", ["c"], ["d"]),
        helper.make_node("Gemm", ["d", "dense.w", "dense.b"], ["out"]),
    ]
    return model_of(nodes, weights, (CHANNELS, LENGTH), CLASSES)


MODELS = {
    "cnn": lambda: cnn1d(CHANNELS, LENGTH, CLASSES, widths=(8, 12, 16)),
    "mlp": lambda: mlp(classes=CLASSES),
    "gru": gru,
    "norm": normalised,
}
