"""Train every bundle of a directory: run by the host's Python and by the emulated one, on the same files.

`NAME.bundle` and `NAME.npz` (`x` [steps, batch, *shape], `y` [steps, batch], `learning_rate`) become `losses` [steps]
and each parameter by name, [steps + 1, *shape]: before the first step and after every one.
"""

import sys
from pathlib import Path

import numpy as np

from edge_client.training import TrainingSession


def train(bundle: Path, *, course: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
    """Losses and parameters of every step; with the `course` of another run, each step starts from its parameters."""
    session = TrainingSession(bundle)
    losses, params = [], [session.params]
    with np.load(bundle.with_suffix(".npz")) as data:
        rate = float(data["learning_rate"])
        for step, (x, y) in enumerate(zip(data["x"], data["y"], strict=True)):
            if course is not None:
                session.load({name: course[name][step] for name in params[0]})
            losses.append(session.step(x, y, rate))
            params.append(session.params)
    return {"losses": np.array(losses), **{name: np.stack([p[name] for p in params]) for name in params[0]}}


if __name__ == "__main__":
    bundles, results = map(Path, sys.argv[1:])
    for path in sorted(bundles.glob("*.bundle")):
        np.savez(results / f"{path.stem}.npz", **train(path))
