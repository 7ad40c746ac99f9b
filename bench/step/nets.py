"""The networks whose training step is measured, as ONNX models; `nets_torch` has their twins.

Shapes follow MLPerf Tiny (Banbury et al. 2021, arXiv:2106.07597 §4) where a network is theirs, with paddings that
are the same on both sides, so that neither framework has to pad by itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import onnx

from firmware_tools.layers import Net
from firmware_tools.zoo import cnn1d

SENSORS, READINGS, ACTIVITIES = 6, 100, 7


@dataclass(frozen=True)
class Measured:
    """A network: how to build it, the shape of a sample and the number of classes."""

    build: Callable[[], onnx.ModelProto]
    sample: tuple[int, ...]
    classes: int


def pilot() -> onnx.ModelProto:
    """Two 3x3 convolutions of 16 and 32 channels, each with ReLU and 2x2 pooling, and a dense layer."""
    net = Net("pilot", (1, 28, 28), seed=0)
    x, width = "x", 1
    for i, channels in enumerate((16, 32), 1):
        x = net.add("Relu", net.conv(x, f"conv{i}", (channels, width, 3, 3), pads=[1] * 4))
        x = net.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
        width = channels
    net.dense(net.add("Flatten", x), "dense", (10, width * 49), output="logits")
    return net.model((10,))


def ds_cnn(*, norm: bool) -> onnx.ModelProto:
    """Keyword spotting: a 10x4 convolution and four depthwise-separable blocks of 64 channels."""
    net = Net("ds_cnn", (1, 49, 10), seed=0)

    def layer(x: str, name: str, weight: tuple[int, ...], **attributes: object) -> str:
        x = net.conv(x, name, weight, **attributes)
        return net.add("Relu", net.batch_norm(x, f"{name}_norm", 64) if norm else x)

    x = layer("x", "conv", (64, 1, 10, 4), pads=[5, 1, 5, 1], strides=[2, 2])
    for i in range(4):
        x = layer(x, f"depth{i}", (64, 1, 3, 3), pads=[1] * 4, group=64)
        x = layer(x, f"point{i}", (64, 64, 1, 1))
    net.dense(net.add("Flatten", net.add("GlobalAveragePool", x)), "dense", (12, 64), output="logits")
    return net.model((12,))


def resnet8(*, norm: bool) -> onnx.ModelProto:
    """Image classification: three residual stacks of 16, 32 and 64 channels."""
    net = Net("resnet8", (3, 32, 32), seed=0)

    def layer(x: str, name: str, weight: tuple[int, ...], stride: int = 1) -> str:
        x = net.conv(x, name, weight, pads=[1] * 4, strides=[stride] * 2)
        return net.batch_norm(x, f"{name}_norm", weight[0]) if norm else x

    x, width = net.add("Relu", layer("x", "conv", (16, 3, 3, 3))), 16
    for i, channels in enumerate((16, 32, 64)):
        stride = 1 if channels == width else 2
        y = net.add("Relu", layer(x, f"stack{i}a", (channels, width, 3, 3), stride))
        y = layer(y, f"stack{i}b", (channels, channels, 3, 3))
        if stride > 1:
            x = net.conv(x, f"short{i}", (channels, width, 1, 1), strides=[stride] * 2)
        x, width = net.add("Relu", net.add("Add", x, y)), channels
    net.dense(net.add("Flatten", net.add("GlobalAveragePool", x)), "dense", (10, width), output="logits")
    return net.model((10,))


def recurrent(kind: str) -> onnx.ModelProto:
    """A GRU or LSTM of 64 over 100 readings of 6 sensors; a dense layer on its last state."""
    gates, size = {"GRU": 3, "LSTM": 4}[kind], 64
    net = Net(kind.lower(), (READINGS, SENSORS), seed=0)
    shapes = {"input": (1, gates * size, SENSORS), "recurrent": (1, gates * size, size)}
    weights = [net.tensor(n, net.rng.uniform(-(size**-0.5), size**-0.5, s)) for n, s in shapes.items()]
    weights.append(net.tensor("bias", net.rng.uniform(-(size**-0.5), size**-0.5, (1, 2 * gates * size))))
    net.graph.add_many(
        kind, net.add("Transpose", "x", perm=[1, 0, 2]), *weights, outputs=("", "last"), hidden_size=size,
        linear_before_reset=1 if kind == "GRU" else None,
    )  # fmt: skip
    net.dense(net.add("Squeeze", "last", net.graph.ints(0)), "dense", (ACTIVITIES, size), output="logits")
    return net.model((ACTIVITIES,))


NETS = {
    "pilot": Measured(pilot, (1, 28, 28), 10),
    "cnn1d": Measured(cnn1d, (SENSORS, READINGS), ACTIVITIES),
    "gru": Measured(partial(recurrent, "GRU"), (READINGS, SENSORS), ACTIVITIES),
    "lstm": Measured(partial(recurrent, "LSTM"), (READINGS, SENSORS), ACTIVITIES),
    "ds_cnn": Measured(partial(ds_cnn, norm=True), (1, 49, 10), 12),
    "resnet8": Measured(partial(resnet8, norm=True), (3, 32, 32), 10),
    "ds_cnn_plain": Measured(partial(ds_cnn, norm=False), (1, 49, 10), 12),
    "resnet8_plain": Measured(partial(resnet8, norm=False), (3, 32, 32), 10),
}
