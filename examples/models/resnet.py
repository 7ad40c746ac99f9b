"""Image classification: the ResNet-8 of MLPerf Tiny."""

import onnx

from firmware_tools.layers import Net

SIDE = 32
WIDTHS = (16, 32, 64)  # channels of the three residual stacks


def resnet(classes: int = 10, seed: int = 0) -> onnx.ModelProto:
    """ResNet-8, float32 [N, 3, 32, 32] to [N, classes].

    He et al. 2016 (arXiv:1512.03385 §4.2), cut to one residual block a stack as in MLPerf Tiny
    (arXiv:2106.07597 §4): 78,666 values, of which 480 are statistics.
    """
    net = Net("resnet-8", (3, SIDE, SIDE), seed=seed)
    width = WIDTHS[0]
    x = net.conv("x", "conv0", (width, 3, 3, 3), pads=[1, 1, 1, 1])
    x = net.add("Relu", net.batch_norm(x, "conv0.norm", width))
    for i, channels in enumerate(WIDTHS, 1):
        strides = [1, 1] if channels == width else [2, 2]
        y = net.conv(x, f"stack{i}.a", (channels, width, 3, 3), strides=strides, auto_pad="SAME_UPPER")
        y = net.add("Relu", net.batch_norm(y, f"stack{i}.a.norm", channels))
        y = net.conv(y, f"stack{i}.b", (channels, channels, 3, 3), pads=[1, 1, 1, 1])
        y = net.batch_norm(y, f"stack{i}.b.norm", channels)
        if channels != width:
            x = net.conv(x, f"stack{i}.shortcut", (channels, width, 1, 1), strides=strides)
        x = net.add("Relu", net.add("Add", x, y))
        width = channels
    net.dense(net.add("Flatten", net.add("GlobalAveragePool", x)), "dense", (classes, width), output="logits")
    return net.model((classes,))
