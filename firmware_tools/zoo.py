"""The network that the demo trains; examples/models/ has more."""

from collections.abc import Sequence

import onnx

from firmware_tools.layers import Net


def cnn1d(  # noqa: PLR0917 - the dimensions of a network in their usual order
    channels: int = 6,
    length: int = 100,
    classes: int = 7,
    widths: Sequence[int] = (32, 48, 64),
    kernel: int = 5,
    seed: int = 0,
    *,
    batch_norm: bool = False,
) -> onnx.ModelProto:
    """A 1-D convolutional network for windows of sensor readings, float32 [N, channels, length] to [N, classes].

    Each layer is a same-padded convolution, with `batch_norm` a BatchNormalization, and ReLU, halved by max pooling
    but for the last; then the mean over time and a dense layer. The defaults give 24,599 parameters.
    """
    net = Net("cnn1d", (channels, length), seed=seed)
    tensor, fan = "x", channels
    for i, width in enumerate(widths):
        pads = [(kernel - 1) // 2, kernel // 2]
        tensor = net.conv(tensor, f"conv{i + 1}", (width, fan, kernel), pads=pads)
        if batch_norm:
            tensor = net.batch_norm(tensor, f"norm{i + 1}", width)
        tensor = net.add("Relu", tensor)
        if i < len(widths) - 1:
            tensor = net.add("MaxPool", tensor, kernel_shape=[2], strides=[2])
        fan = width
    pooled = net.add("Flatten", net.add("GlobalAveragePool", tensor))
    net.dense(pooled, "dense", (classes, fan), output="logits")
    return net.model((classes,))
