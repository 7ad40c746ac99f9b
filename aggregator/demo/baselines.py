"""What the federation is compared with: each device alone, and all data in one place.

Same network, optimiser, learning rate, step budget, hold-outs and stopping rule; the unseen subjects are
looked at once, when training is over and the version is chosen.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from aggregator.demo.data import Shard
from aggregator.demo.plan import BATCH_SIZE, GAP, HOLDOUT, LEARNING_RATE, PATIENCE, Budget
from aggregator.ending import plateaued
from aggregator.history import SMOOTHING_VERSIONS
from aggregator.holdout import score
from edge_client.samples import batches, split
from edge_client.training import TrainingSession

Look = Callable[[], None]


def _go_on() -> None:
    """Nobody looks."""


@dataclass(frozen=True)
class Baseline:
    """Accuracy on the unseen subjects of the version that the hold-out chose, and the steps it took."""

    accuracy: float
    steps: int


@dataclass(frozen=True)
class Split:
    """Training windows and hold-out windows of one or more shards."""

    x: npt.NDArray[np.float32]
    y: npt.NDArray[np.int64]
    holdout_x: npt.NDArray[np.float32]
    holdout_y: npt.NDArray[np.int64]


def split_shards(shards: Sequence[Shard]) -> Split:
    """Split each shard as its device does, then put them together."""
    parts = [(shard, *split(shard.segment, HOLDOUT, GAP)) for shard in shards]
    return Split(
        np.concatenate([shard.x[train] for shard, train, _ in parts]),
        np.concatenate([shard.y[train] for shard, train, _ in parts]),
        np.concatenate([shard.x[held] for shard, _, held in parts]),
        np.concatenate([shard.y[held] for shard, _, held in parts]),
    )


def train(
    session: TrainingSession, part: Split, unseen: Shard, budget: Budget, *, seed: int, look: Look
) -> Baseline:
    """Train until the hold-out stops improving or the budget is spent; `session` must be fresh.

    `look` is called before each part of it, and may raise to end it.
    """
    chosen = batches(np.arange(len(part.y)), BATCH_SIZE, np.random.default_rng(seed))
    scores: list[float] = []
    smoothed: list[float | None] = []
    best, best_params, steps = -1.0, session.params, 0
    for _ in range(budget.looks_max):
        look()
        for _ in range(budget.steps_per_look):
            rows = next(chosen)
            session.step(part.x[rows], part.y[rows], LEARNING_RATE)
        steps += budget.steps_per_look
        scores.append(score(session.evaluate(part.holdout_x, part.holdout_y)))
        smoothed.append(float(np.mean(scores[-SMOOTHING_VERSIONS:])))
        if smoothed[-1] is not None and smoothed[-1] > best:
            best, best_params = smoothed[-1], session.params
        if plateaued(smoothed, PATIENCE):
            break
    session.load(best_params)
    return Baseline(score(session.evaluate(unseen.x, unseen.y)), steps)


def centralised(
    bundle: Path, shards: Sequence[Shard], unseen: Shard, budget: Budget, seed: int, *, look: Look = _go_on
) -> Baseline:
    """One model on all devices' data."""
    return train(TrainingSession(bundle), split_shards(shards), unseen, budget, seed=seed, look=look)


def local_only(
    bundle: Path,
    shards: Sequence[Shard],
    unseen: Shard,
    budget: Budget,
    seed: int,
    *,
    look: Look = _go_on,
) -> Iterator[Baseline]:
    """One model a device on its own data, one after the other."""
    for index, shard in enumerate(shards):
        yield train(
            TrainingSession(bundle), split_shards([shard]), unseen, budget, seed=seed + index, look=look
        )
