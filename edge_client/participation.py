"""One participation: a model and samples become an update and an evaluation. No files, no messages.

The trainer child performs it on a device, `fedfleet simulate` in its workers.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edge_client import samples
from edge_client.compress import compress, halved
from edge_client.samples import Indices, Samples
from edge_client.target import Targets
from edge_client.trainer_protocol import Trained
from edge_client.training import DivergedError, Floats, TrainingSession
from edge_client.wire import grid, sparse
from edge_client.wire.messages import CODECS, Evaluation, Metrics, TrainingPlan
from edge_client.wire.topics import Uid


class TaskError(Exception):
    """The task fails with `code` (trainer_protocol.Failed)."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Participation:
    """What to train from and how.

    `base` is version `version` of the model on its grid, flat, in table order, and `version_hash` its hash;
    `residual` is the float16 error-feedback state, little-endian, None for zeros; `uid` names the update to be made.
    """

    uid: Uid
    version: int
    version_hash: bytes
    base: Sequence[grid.Grid]
    plan: TrainingPlan
    residual: bytes | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What training changed: a flat float32 array per tensor of the table; the hold-out before and after; seconds."""

    delta: tuple[Floats, ...]
    before: Metrics
    after: Metrics
    train_s: float


def train(
    session: TrainingSession, data: Samples, task: Participation, report: Callable[[int, float], None]
) -> Outcome:
    """Evaluate the base on the hold-out, train from it, evaluate again; `report` gets each step and its loss.

    Raises DataError when there is nothing to train on, and TaskError: `diverged`, or `unknown_codec`.
    """
    if task.plan.codec not in CODECS:
        raise TaskError("unknown_codec", f"this device does not speak the codec {task.plan.codec!r}")
    if not len(data.train):
        raise samples.DataError("bad_data", f"{len(data)} samples leave none to train on")
    start = {
        t.name: grid.from_grid(v, t.step_exp).reshape(t.shape)
        for t, v in zip(session.bundle.manifest.table, task.base, strict=True)
    }
    session.load(start)
    session.reset_optimizer()
    before = _evaluated(session, data)
    began = time.monotonic()
    _steps(session, data, task, report)
    train_s = time.monotonic() - began
    after = _evaluated(session, data)
    trained = session.params
    delta = tuple((trained[name] - value).ravel() for name, value in start.items())
    if not all(np.isfinite(d).all() for d in delta):
        raise TaskError("diverged", "the training diverged: a parameter is not finite after it")
    return Outcome(delta, before, after, train_s)


def pack(
    outcome: Outcome, sizes: Sequence[int], task: Participation, n_samples: int, memory_bytes: int
) -> Trained:
    """The update frame, both residuals and the evaluation.

    `sizes` are those of the tensors of weights, which are the first of the table; `n_samples` were trained on, in
    `memory_bytes` at most. Raises ValueError when the residual is of another model.
    """
    edge, plan = len(sizes), task.plan
    result = compress(outcome.delta[:edge], task.residual, plan.density, plan.norm_max, plan.codec)
    update = sparse.Update(
        task.version, task.version_hash, task.uid.tag, n_samples, result.weights, halved(outcome.delta[edge:])
    )
    evaluation = Evaluation(
        task.version,
        outcome.before,
        outcome.after,
        plan.steps,
        round(outcome.train_s, 3),
        memory_bytes,
        _norm(result.residual_accepted),
        round(result.weights.kept / sum(sizes), 6),
    )
    frame = sparse.encode(update, sizes, result.codec)
    return Trained(frame, result.residual_accepted, result.residual_kept, evaluation)


def _steps(
    session: TrainingSession, data: Samples, task: Participation, report: Callable[[int, float], None]
) -> None:
    plan = task.plan
    # The name joins the seed, so that a device does not repeat its batches every round.
    rng = np.random.default_rng((abs(plan.seed), task.uid.tag))
    deal = samples.batches(data.train, plan.batch_size, rng)
    for step in range(1, plan.steps + 1):
        try:
            loss = session.step(*_rows(session, data, next(deal)), plan.learning_rate)
        except DivergedError as error:
            raise TaskError(
                "diverged", f"the training diverged: step {step} of {plan.steps}: {error}"
            ) from error
        report(step, loss)


def _evaluated(session: TrainingSession, data: Samples) -> Metrics:
    metrics = session.evaluate(*_rows(session, data, data.holdout))
    if not math.isfinite(metrics.loss):
        raise TaskError("diverged", "the training diverged: the loss on the hold-out is not finite")
    return metrics


def _rows(session: TrainingSession, data: Samples, rows: Indices) -> tuple[Floats, Targets | None]:
    """These samples, and their labels where the bundle's loss has any."""
    wanted = session.bundle.manifest.data.target != "none"
    return data.x[rows], data.y[rows] if wanted and data.y is not None else None


def _norm(residual: bytes) -> float:
    return float(np.linalg.norm(np.frombuffer(residual, dtype="<f2").astype(np.float64)))
