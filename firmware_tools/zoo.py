"""Small inference models to start from, built with nothing but onnx."""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto

from firmware_tools.autodiff.graph import DYNAMIC, Graph, value_info

_OPSET = 18


def cnn1d(  # noqa: PLR0917 - the dimensions of a network in their usual order
    channels: int = 6,
    length: int = 100,
    classes: int = 7,
    widths: Sequence[int] = (32, 48, 64),
    kernel: int = 5,
    seed: int = 0,
) -> onnx.ModelProto:
    """A 1-D convolutional network for windows of sensor readings, float32 [N, channels, length] to [N, classes].

    Each layer is a same-padded convolution and ReLU, halved by max pooling but for the last; then the mean over
    time and a dense layer. The defaults give 24,599 parameters. Initialised after He et al. 2015
    (arXiv:1502.01852 eq. 10), biases zero.
    """
    rng = np.random.default_rng(seed)
    graph = Graph(_OPSET)
    tensor, fan = "x", channels
    for i, width in enumerate(widths):
        weight, bias = f"conv{i + 1}.weight", f"conv{i + 1}.bias"
        graph.constants[weight] = _he(rng, (width, fan, kernel))
        graph.constants[bias] = np.zeros(width, dtype=np.float32)
        tensor = graph.add("Conv", tensor, weight, bias, pads=[(kernel - 1) // 2, kernel // 2])
        tensor = graph.add("Relu", tensor)
        if i < len(widths) - 1:
            tensor = graph.add("MaxPool", tensor, kernel_shape=[2], strides=[2])
        fan = width
    pooled = graph.add("Flatten", graph.add("GlobalAveragePool", tensor))
    graph.constants["dense.weight"] = _he(rng, (classes, fan))
    graph.constants["dense.bias"] = np.zeros(classes, dtype=np.float32)
    graph.add("Gemm", pooled, "dense.weight", "dense.bias", output="logits", transB=1)
    model = graph.model(
        "cnn1d",
        [value_info("x", TensorProto.FLOAT, (DYNAMIC, channels, length))],
        [value_info("logits", TensorProto.FLOAT, (DYNAMIC, classes))],
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def _he(
    rng: np.random.Generator, shape: tuple[int, ...]
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    deviation = np.sqrt(2.0 / np.prod(shape[1:]))
    return np.asarray(rng.standard_normal(shape) * deviation, dtype=np.float32)
