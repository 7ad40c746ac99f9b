"""Visual wake words: the MobileNetV1 of MLPerf Tiny."""

import onnx

from firmware_tools.layers import Net

SIDE = 96
FIRST = 8  # channels of the first layer: 32 times the width multiplier 0.25
BLOCKS = (  # (stride, channels) of each depthwise-separable block
    (1, 16), (2, 32), (1, 32), (2, 64), (1, 64), (2, 128), (1, 128), (1, 128), (1, 128), (1, 128), (1, 128),
    (2, 256), (1, 256),
)  # fmt: skip


def mobilenet(classes: int = 2, seed: int = 0) -> onnx.ModelProto:
    """MobileNetV1 of width 0.25, float32 [N, 3, 96, 96] to [N, classes].

    Howard et al. 2017 (arXiv:1704.04861 table 1), as in MLPerf Tiny (arXiv:2106.07597 §4): 221,794 values, of
    which 5,472 are statistics.
    """
    net = Net("mobilenet", (3, SIDE, SIDE), seed=seed)
    x = net.conv("x", "conv0", (FIRST, 3, 3, 3), strides=[2, 2], auto_pad="SAME_UPPER")
    x = net.add("Relu", net.batch_norm(x, "conv0.norm", FIRST))
    width = FIRST
    for i, (stride, channels) in enumerate(BLOCKS, 1):
        strides = [stride, stride]
        x = net.conv(x, f"depth{i}", (width, 1, 3, 3), group=width, strides=strides, auto_pad="SAME_UPPER")
        x = net.add("Relu", net.batch_norm(x, f"depth{i}.norm", width))
        x = net.conv(x, f"point{i}", (channels, width, 1, 1))
        x = net.add("Relu", net.batch_norm(x, f"point{i}.norm", channels))
        width = channels
    net.dense(net.add("Flatten", net.add("GlobalAveragePool", x)), "dense", (classes, width), output="logits")
    return net.model((classes,))
