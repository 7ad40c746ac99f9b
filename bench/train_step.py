"""Milliseconds per training step and peak memory of the 24,599-parameter 1-D CNN, one thread.

    python bench/train_step.py [--steps 300] [--quantize none]

The bundle is compiled in another process, so that onnx does not count in the peak; the numbers are those of
the trainer child's own session: Python, numpy, ONNX Runtime, batch 32 of [6, 100] float32.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from edge_client.training import TrainingSession

BATCH = 32
WARM_UP = 20  # steps before timing: the runtime plans its memory in the first


def build(path: Path, quantize: str) -> None:
    """Compile the network."""
    from firmware_tools import compile_training  # noqa: PLC0415 - onnx stays out of the measured process
    from firmware_tools.zoo import cnn1d  # noqa: PLC0415

    compile_training(cnn1d(), quantize=quantize, batch_size=BATCH).save(path)


def measure(path: Path, steps: int) -> None:
    """Train on random samples and print what it takes."""
    session = TrainingSession(path, flush_denormals=True)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1024, 6, 100)).astype(np.float32)
    y = rng.integers(0, 7, 1024)
    times = []
    for _ in range(steps + WARM_UP):
        rows = rng.integers(0, len(y), BATCH)
        began = time.perf_counter()
        session.step(x[rows], y[rows], 0.01)
        times.append((time.perf_counter() - began) * 1e3)
    trained = session.memory_bytes
    session.evaluate(x, y)
    low, median, high = np.percentile(times[WARM_UP:], [5, 50, 95])
    print(f"ms/step     median {median:.2f}   5 % {low:.2f}   95 % {high:.2f}   ({steps} steps of {BATCH})")
    print(f"peak RSS    {trained / 1e6:.0f} MB training, {session.memory_bytes / 1e6:.0f} MB with evaluation")


def main() -> None:
    """Compile apart, measure here."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--quantize", choices=["int8-weights", "none"], default="int8-weights")
    parser.add_argument("--build", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.build:
        build(options.build, options.quantize)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cnn1d.bundle"
        command = [sys.executable, __file__, "--build", str(path), "--quantize", options.quantize]
        subprocess.run(command, check=True)
        measure(path, options.steps)


if __name__ == "__main__":
    main()
