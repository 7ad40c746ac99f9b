"""Activity from windows of sensor readings: a recurrent network."""

import numpy as np
import onnx

from firmware_tools.layers import Net

CHANNELS, LENGTH, HIDDEN = 6, 100, 32


def gru(classes: int = 7, seed: int = 0) -> onnx.ModelProto:
    """A GRU whose last state a dense layer classifies, float32 [N, 6, 100] to [N, classes].

    Cho et al. 2014 (arXiv:1406.1078 §2.3), with the reset gate behind the product as cuDNN, PyTorch and Keras
    compute it: 4,071 values, drawn evenly from ±1 / sqrt(32).
    """
    net = Net("gru", (CHANNELS, LENGTH), seed=seed)
    limit = 1 / np.sqrt(HIDDEN)
    shapes = {
        "input": (1, 3 * HIDDEN, CHANNELS),
        "recurrent": (1, 3 * HIDDEN, HIDDEN),
        "bias": (1, 6 * HIDDEN),
    }
    weights = [net.tensor(f"gru.{n}", net.rng.uniform(-limit, limit, s)) for n, s in shapes.items()]
    steps = net.add("Transpose", "x", perm=[2, 0, 1])
    _, last = net.graph.add_many(
        "GRU", steps, *weights, outputs=("", ""), hidden_size=HIDDEN, linear_before_reset=1
    )
    state = net.add("Squeeze", last, net.graph.ints(0))
    net.dense(state, "dense", (classes, HIDDEN), output="logits")
    return net.model((classes,))
