"""Keyword spotting: the depthwise-separable CNN of MLPerf Tiny."""

import onnx

from firmware_tools.layers import Net

FRAMES, COEFFICIENTS = 49, 10  # MFCCs of one second of speech
CHANNELS, BLOCKS = 64, 4


def ds_cnn(classes: int = 12, seed: int = 0) -> onnx.ModelProto:
    """DS-CNN, float32 [N, 1, 49, 10] to [N, classes].

    Zhang et al. 2017 (arXiv:1711.07128 §4.2), as in MLPerf Tiny (arXiv:2106.07597 §4): 24,908 values, of which
    1,152 are statistics. The reference's dropout is left out: training graphs hold none.
    """
    net = Net("ds-cnn", (1, FRAMES, COEFFICIENTS), seed=seed)
    x = net.conv("x", "conv0", (CHANNELS, 1, 10, 4), strides=[2, 2], auto_pad="SAME_UPPER")
    x = net.add("Relu", net.batch_norm(x, "conv0.norm", CHANNELS))
    for i in range(1, BLOCKS + 1):
        x = net.conv(x, f"depth{i}", (CHANNELS, 1, 3, 3), group=CHANNELS, pads=[1, 1, 1, 1])
        x = net.add("Relu", net.batch_norm(x, f"depth{i}.norm", CHANNELS))
        x = net.conv(x, f"point{i}", (CHANNELS, CHANNELS, 1, 1))
        x = net.add("Relu", net.batch_norm(x, f"point{i}.norm", CHANNELS))
    net.dense(
        net.add("Flatten", net.add("GlobalAveragePool", x)), "dense", (classes, CHANNELS), output="logits"
    )
    return net.model((classes,))
