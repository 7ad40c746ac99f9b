"""Writes what the README's steps need: model.onnx, two shards of made-up data, and a configuration for each.

The data are sine waves whose frequency is the class, with noise, so that there is something to learn.
"""

from pathlib import Path

import numpy as np
import onnx

from firmware_tools.zoo import cnn1d

CHANNELS, LENGTH, CLASSES, SAMPLES = 6, 100, 7, 140

CONFIG = """\
[device]
id = "device-{number}"
state_dir = "device-{number}-state"

[broker]
host = "127.0.0.1"
port = 1883

[data.wrist-imu]
path = "device-{number}.npz"
shape = [{channels}, {length}]
classes = {classes}
axes = ["channel", "time"]
"""


def main() -> None:
    """Write the files into the working directory."""
    onnx.save(cnn1d(channels=CHANNELS, length=LENGTH, classes=CLASSES), "model.onnx")
    time = np.arange(LENGTH)
    for number in (1, 2):
        rng = np.random.default_rng(number)
        y = rng.permutation(np.arange(SAMPLES) % CLASSES)
        phase = rng.uniform(0, 2 * np.pi, (SAMPLES, CHANNELS, 1))
        waves = np.sin(2 * np.pi * (1 + y)[:, None, None] * time / LENGTH + phase)
        x = waves + rng.normal(0, 0.3, (SAMPLES, CHANNELS, LENGTH))
        np.savez(f"device-{number}.npz", x=x.astype(np.float32), y=y.astype(np.int64))
        config = CONFIG.format(number=number, channels=CHANNELS, length=LENGTH, classes=CLASSES)
        Path(f"device-{number}.toml").write_text(config)
    print("wrote model.onnx, device-1.npz, device-1.toml, device-2.npz, device-2.toml")


if __name__ == "__main__":
    main()
