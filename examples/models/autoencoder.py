"""Anomaly detection: the fully connected autoencoder of MLPerf Tiny."""

import onnx

from firmware_tools.layers import Net

FEATURES = 640  # five frames of a log-mel spectrogram of 128 bands
WIDTHS = (128, 128, 128, 128, 8, 128, 128, 128, 128)


def autoencoder(seed: int = 0) -> onnx.ModelProto:
    """Autoencoder, float32 [N, 640] to its reconstruction [N, 640].

    The baseline of DCASE 2020 task 2 (Koizumi et al., arXiv:2006.05822 §4), as in MLPerf Tiny (arXiv:2106.07597
    §4): 269,992 values, of which 2,064 are statistics. The error of a reconstruction tells how unusual a sound is.
    """
    net = Net("autoencoder", (FEATURES,), seed=seed)
    x, width = "x", FEATURES
    for i, units in enumerate(WIDTHS, 1):
        x = net.dense(x, f"dense{i}", (units, width))
        x = net.add("Relu", net.batch_norm(x, f"dense{i}.norm", units))
        width = units
    net.dense(x, "reconstruction", (FEATURES, width), output="logits")
    return net.model((FEATURES,))
