"""Trains one network with one framework, in a process of its own, as many steps at a time as it is told.

    python bench/step/worker.py fedfleet|torch NET FOLDER

Prints one line of JSON after the first step, and one after each line `N` on its input: the times of N more steps.
Between them it waits, so that several such processes can take turns in short slices. FOLDER holds NET.bundle and
NET.npz, which has the initial parameters and the data. One thread, denormals flushed.
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

Step = Callable[[np.ndarray, np.ndarray], float]


def fedfleet(name: str, folder: Path) -> Step:
    """The trainer child's own session, in a process that begins as the child does."""
    from edge_client import lean  # noqa: F401, PLC0415 - the other frameworks' processes have none of it
    from edge_client.training import TrainingSession  # noqa: PLC0415

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


def serve(step: Step, data: Path, began: float, clock: Callable[[], float] = time.perf_counter) -> None:
    """Train as told on standard input; `clock` times the steps."""
    with np.load(data) as file:
        x, y = file["x%"], file["y%"]
    taken = 0

    def train(count: int) -> dict[str, object]:
        nonlocal taken
        times = []
        loss = 0.0
        for _ in range(count):
            rows = np.arange(taken * BATCH, (taken + 1) * BATCH) % len(y)
            batch = x[rows], y[rows]
            start = clock()
            loss = step(*batch)
            times.append((clock() - start) * 1e3)
            taken += 1
        return {"ms": times, "loss": loss, "peak_bytes": peak_bytes()}

    print(json.dumps(train(1) | {"first_step_s": time.perf_counter() - began}), flush=True)
    for line in sys.stdin:
        print(json.dumps(train(int(line))), flush=True)


def main() -> None:
    """Serve the framework and network of the command line."""
    framework, name, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    step = {"fedfleet": fedfleet, "torch": pytorch}[framework](name, folder)
    serve(step, folder / f"{name.partition('@')[0]}.npz", BEGAN)


if __name__ == "__main__":
    main()
