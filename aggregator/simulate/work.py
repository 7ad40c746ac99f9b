"""What a worker process does: trains participations and evaluates versions, on memory-mapped data.

The same code as a device's trainer child (edge_client/participation.py), with virtual seconds in its report.
"""

import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from aggregator.simulate.sources import Ints
from broker_bridge.broker_child import die_with_parent
from edge_client.participation import Outcome, Participation, TaskError, pack, train
from edge_client.samples import DataError, Samples
from edge_client.target import Targets
from edge_client.trainer_protocol import Failed, Trained
from edge_client.training import Floats, TrainingSession
from edge_client.wire import grid, sparse
from edge_client.wire.messages import Metrics
from edge_client.wire.weights import Dense, Weights

MEMORY_BYTES = (
    100_000_000  # what simulated devices report as their peak: a real one would differ from run to run
)
ARRAYS = ("x", "y", "x_test", "y_test")

Attack = Literal["sign-flip", "scale", "label-flip", "nan"]


@dataclass(frozen=True, slots=True)
class Training:
    """A participation of one device; `attack` by this factor when it is malicious."""

    bundle: str
    task: Participation
    train: Ints
    holdout: Ints
    train_s: float
    attack: Attack | None = None
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class Look:
    """A version to evaluate on the first `samples` of the test data."""

    bundle: str
    model: Sequence[grid.Grid]
    samples: int


class Bench:
    """The data and the one training session of a process."""

    def __init__(self, folder: Path) -> None:
        arrays = {a: np.load(p, mmap_mode="r") for a in ARRAYS if (p := folder / f"{a}.npy").exists()}
        self._x: Floats = arrays["x"]
        self._x_test: Floats = arrays["x_test"]
        self._y: Targets | None = arrays.get("y")
        self._y_test: Targets | None = arrays.get("y_test")
        self._path = ""
        self._session: TrainingSession | None = None

    def session(self, bundle: str) -> TrainingSession:
        """The session of a bundle; the last one is kept."""
        if self._session is None or self._path != bundle:
            self._session = None
            self._session = TrainingSession(bundle, flush_denormals=True)
            self._path = bundle
        return self._session

    def train(self, work: Training) -> Trained | Failed:
        """The update of a participation, or why there is none."""
        session = self.session(work.bundle)
        manifest = session.bundle.manifest
        y = self._y
        if work.attack == "label-flip" and y is not None and manifest.data.target == "class":
            y = _flipped(y, manifest.data.n_classes)
        data = Samples(self._x, y, work.train, work.holdout, manifest.data)
        try:
            outcome = train(session, data, work.task, lambda _step, _loss: None)
        except (TaskError, DataError) as error:
            return Failed(error.code, str(error))
        outcome = _attacked(replace(outcome, train_s=work.train_s), work)
        sizes = [t.size for t in manifest.tensors]
        trained = pack(outcome, sizes, work.task, len(work.train), MEMORY_BYTES)
        return (
            _poisoned(trained, manifest.sizes, len(manifest.statistics)) if work.attack == "nan" else trained
        )

    def evaluate(self, look: Look) -> Metrics:
        """Figures of a version on test data."""
        session = self.session(look.bundle)
        manifest = session.bundle.manifest
        session.load(
            {
                t.name: grid.from_grid(v, t.step_exp).reshape(t.shape)
                for t, v in zip(manifest.table, look.model, strict=True)
            }
        )
        y = None if manifest.data.target == "none" or self._y_test is None else self._y_test[: look.samples]
        return session.evaluate(self._x_test[: look.samples], y)


def _flipped(y: Targets, classes: int) -> Targets:
    """Class c becomes classes - 1 - c."""
    return np.asarray(classes - 1 - y, dtype=np.int64)


def _attacked(outcome: Outcome, work: Training) -> Outcome:
    """The attacker changes what it learned before its own client compresses and clips it, as admission asks."""
    turn = {"sign-flip": -work.factor, "scale": work.factor}.get(work.attack or "", 1.0)
    return replace(outcome, delta=tuple(np.asarray(d * np.float32(turn)) for d in outcome.delta))


def _poisoned(trained: Trained, sizes: Sequence[int], statistics: int) -> Trained:
    """The same frame with values that are not numbers."""
    update = sparse.decode(trained.frame, sizes, statistics)
    own = sizes[: len(sizes) - statistics]
    if isinstance(update.weights, Dense):
        weights: Weights = Dense(np.full_like(update.weights.values, np.nan))
    else:
        weights = replace(update.weights, scales=np.full(len(own), np.nan))
    frame = sparse.encode(replace(update, weights=weights), own, sparse.Codec(trained.frame[3]))
    return Trained(frame, trained.residual_accepted, trained.residual_kept, trained.evaluation)


_bench: list[Bench] = []


def prepare(folder: str, parent: int) -> None:
    """Begin a process: open the data. It dies with the process `parent`, and leaves Ctrl+C to it."""
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _bench[:] = [Bench(Path(folder))]


def perform_training(work: Training) -> Trained | Failed:
    """Train, in a process that was prepared."""
    return _bench[0].train(work)


def perform_look(look: Look) -> Metrics:
    """Evaluate, in a process that was prepared."""
    return _bench[0].evaluate(look)
