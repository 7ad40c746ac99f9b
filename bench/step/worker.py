"""Measures one framework training one network, in a process of its own; prints one line of JSON.

    python bench/step/worker.py fedfleet|torch NET FOLDER STEPS

FOLDER holds NET.bundle and NET.npz, which has the initial parameters and the data. One thread, denormals flushed.
"""

import time

BEGAN = time.perf_counter()  # imports are part of what is measured

import json  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402

BATCH = 32
RATE, MOMENTUM = 0.01, 0.9
WARM_UP = 5  # steps before timing: memory is planned and pages are touched in the first

Step = Callable[[np.ndarray, np.ndarray], float]


def fedfleet(name: str, folder: Path) -> Step:
    """The trainer child's own session."""
    from edge_client.training import TrainingSession  # noqa: PLC0415 - the other framework's process has none

    session = TrainingSession(folder / f"{name}.bundle", flush_denormals=True)
    return lambda x, y: session.step(x, y, RATE)


def pytorch(name: str, folder: Path) -> Step:
    """PyTorch eager, as its tutorials train."""
    import torch  # noqa: PLC0415
    from nets_torch import module  # noqa: PLC0415

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    with np.load(folder / f"{name}.npz") as file:
        net = module(name, {k: file[k] for k in file.files})
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE, momentum=MOMENTUM)

    def step(x: np.ndarray, y: np.ndarray) -> float:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(torch.from_numpy(x)), torch.from_numpy(y))
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return step


def peak_bytes() -> int:
    """Peak resident size; getrusage's would begin with that of the process which started this one."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024


def main() -> None:
    """Train and print what it took."""
    framework, name, folder, steps = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
    with np.load(folder / f"{name.partition('@')[0]}.npz") as file:
        x, y = file["x%"], file["y%"]
    step = {"fedfleet": fedfleet, "torch": pytorch}[framework](name, folder)
    losses, times = [], []
    first = 0.0
    for i in range(WARM_UP + steps):
        rows = np.arange(i * BATCH, (i + 1) * BATCH) % len(y)
        batch = x[rows], y[rows]
        start = time.perf_counter()
        losses.append(step(*batch))
        end = time.perf_counter()
        times.append((end - start) * 1e3)
        first = first or end - BEGAN
    low, median, high = np.percentile(times[WARM_UP:], [5, 50, 95])
    result = {
        "framework": framework, "net": name, "ms": median, "ms_5": low, "ms_95": high, "first_step_s": first,
        "peak_bytes": peak_bytes(), "losses": [losses[0], losses[-1]],
    }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
