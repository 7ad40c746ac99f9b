"""The trainer child: `python -m edge_client.trainer_child` answers tasks on stdin until it closes.

The only process of a device that reads samples (I8): answers carry parameters, counts and metrics, never a
value of the data, and errors name files, shapes and exception types. Messages: trainer_protocol.py.
"""

import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec
import numpy as np

from edge_client import samples
from edge_client.bundle import BundleError
from edge_client.compress import compress, halved
from edge_client.samples import DataError, Samples
from edge_client.target import Targets
from edge_client.trainer_protocol import (
    Answer,
    DataSource,
    Described,
    DescribeTask,
    Failed,
    Progress,
    Task,
    Trained,
    TrainTask,
    receive_task,
    send,
)
from edge_client.training import DivergedError, Floats, TrainingSession, initial_grid
from edge_client.wire import grid, sparse
from edge_client.wire.errors import RemoteWireError
from edge_client.wire.limits import FRAME_BYTES_MAX
from edge_client.wire.messages import CODECS, DataSchema, Evaluation, Metrics
from edge_client.wire.topics import Uid

PROGRESS_INTERVAL_S = 0.5
GRID_FILE = "model.grid"
_ALLOCATION_FAILURES = ("bad_alloc", "bad allocation", "Failed to allocate", "Available memory of")

T = TypeVar("T")
Stamp = tuple[str, int, int]


class TaskError(Exception):
    """The task fails with `code` (trainer_protocol.Failed)."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Cached:
    """The last thing opened from a file, opened again only when the file or the request has changed."""

    def __init__(self) -> None:
        self._key: object = None
        self._value: object = None

    def get(self, path: str, request: object, read: Callable[[], T]) -> T:
        """The value for this file and request; `read` runs on a miss, after the old value was let go."""
        key = (_stamp(path), request)
        if key != self._key:
            self._key = self._value = None
            self._value = read()
            self._key = key
        return self._value  # type: ignore[return-value]  # one Cached holds one kind of value


class Child:
    """Performs tasks one after another; keeps the compiled session and the data between them."""

    def __init__(self, put: Callable[[Answer], None], *, flush_denormals: bool = False) -> None:
        self._flush = flush_denormals
        self._put = put
        self._sessions = Cached()
        self._data = Cached()

    def perform(self, task: Task) -> Answer:
        """The result of a task; every failure becomes a Failed."""
        try:
            if isinstance(task, DescribeTask):
                return self._describe(task)
            return self._train(task)
        except Exception as error:  # noqa: BLE001 - reported to the daemon; the child must go on
            return _failed(error)

    def _describe(self, task: DescribeTask) -> Described:
        data = self._samples(task.source)
        return Described(data.schema, len(data))

    def _samples(self, source: DataSource) -> Samples:
        return self._data.get(source.path, source, lambda: samples.load(source))

    def _train(self, task: TrainTask) -> Trained:
        session = self._sessions.get(
            task.bundle_path,
            None,
            lambda: TrainingSession(task.bundle_path, flush_denormals=self._flush),
        )
        manifest = session.bundle.manifest
        if _unnamed(manifest.data) != _unnamed(task.data):
            raise TaskError("schema_mismatch", "the bundle was compiled for other samples than the job's")
        if task.plan.codec not in CODECS:
            raise TaskError("unknown_codec", f"this device does not speak the codec {task.plan.codec!r}")
        base = _model(task, session)
        data = self._samples(task.source)
        samples.check(data, task.data)
        if not len(data.train):
            raise DataError("bad_data", f"{len(data)} samples leave none to train on")
        start = {
            t.name: grid.from_grid(v, t.step_exp).reshape(t.shape)
            for t, v in zip(manifest.table, base, strict=True)
        }
        session.load(start)
        session.reset_optimizer()
        before = _evaluated(session, data)
        began = time.monotonic()
        self._steps(session, data, task)
        train_s = time.monotonic() - began
        after = _evaluated(session, data)
        trained = session.params
        delta = [(trained[name] - value).ravel() for name, value in start.items()]
        if not all(np.isfinite(d).all() for d in delta):
            raise TaskError("diverged", "a parameter is not finite after training")
        edge = len(manifest.tensors)
        plan = task.plan
        result = compress(delta[:edge], task.residual, plan.density, plan.norm_max, plan.codec)
        update = sparse.Update(
            task.version,
            bytes.fromhex(task.version_hash),
            Uid.parse(task.uid).tag,
            len(data.train),
            result.weights,
            halved(delta[edge:]),
        )
        evaluation = Evaluation(
            task.version,
            before,
            after,
            task.plan.steps,
            round(train_s, 3),
            session.memory_bytes,
            _norm(result.residual_accepted),
        )
        frame = sparse.encode(update, [t.size for t in manifest.tensors], result.codec)
        return Trained(frame, result.residual_accepted, result.residual_kept, evaluation)

    def _steps(self, session: TrainingSession, data: Samples, task: TrainTask) -> None:
        plan = task.plan
        # The name joins the seed, so that a device does not repeat its batches every round.
        rng = np.random.default_rng((abs(plan.seed), Uid.parse(task.uid).tag))
        deal = samples.batches(data.train, plan.batch_size, rng)
        total, count, reported = 0.0, 0, time.monotonic()
        for step in range(1, plan.steps + 1):
            rows = next(deal)
            try:
                loss = session.step(*_rows(session, data, rows), plan.learning_rate)
            except DivergedError as error:
                raise TaskError("diverged", f"step {step} of {plan.steps}: {error}") from error
            total, count = total + loss, count + 1
            now = time.monotonic()
            if now - reported >= PROGRESS_INTERVAL_S or step == plan.steps:
                self._put(Progress(step, plan.steps, total / count))
                total, count, reported = 0.0, 0, now


def _failed(error: Exception) -> Failed:
    # Memory comes first: a runtime that cannot load a sound bundle for want of it says so in a BundleError.
    if isinstance(error, MemoryError) or any(text in str(error) for text in _ALLOCATION_FAILURES):
        return Failed("out_of_memory", "the trainer's memory limit is too small for this job")
    if isinstance(error, TaskError | DataError):
        return Failed(error.code, str(error))
    if isinstance(error, BundleError):
        return Failed("bad_bundle", str(error))
    # Frames only: the text of a foreign exception might quote data.
    sys.stderr.writelines(traceback.format_tb(error.__traceback__))
    return Failed("internal", f"{type(error).__name__} in the trainer")


def _norm(residual: bytes) -> float:
    return float(np.linalg.norm(np.frombuffer(residual, dtype="<f2").astype(np.float64)))


def _evaluated(session: TrainingSession, data: Samples) -> Metrics:
    metrics = session.evaluate(*_rows(session, data, data.holdout))
    if not math.isfinite(metrics.loss):
        raise TaskError("diverged", "the loss on the hold-out is not finite")
    return metrics


def _rows(session: TrainingSession, data: Samples, rows: samples.Indices) -> tuple[Floats, Targets | None]:
    """These samples, and their labels where the bundle's loss has any."""
    wanted = session.bundle.manifest.data.target != "none"
    return data.x[rows], data.y[rows] if wanted and data.y is not None else None


def _unnamed(schema: DataSchema) -> DataSchema:
    """The schema but for the names of its axes."""
    return msgspec.structs.replace(schema, axes=())


def _model(task: TrainTask, session: TrainingSession) -> Sequence[grid.Grid]:
    """The model the task names: the workspace's (at first the bundle's version 0) with the blobs applied."""
    sizes = session.bundle.manifest.sizes
    path = Path(task.workspace) / GRID_FILE
    try:
        values, version = _workspace(path, sizes) or (initial_grid(session.bundle), 0)
        for blob in task.model_paths:
            frame = grid.decode(_bytes(Path(blob)), sizes)
            values, version = grid.apply(values, frame, version), frame.version
    except (RemoteWireError, OSError) as error:
        raise TaskError("resync", f"the model cannot be built: {error}") from error
    if (version, grid.model_hash(values).hex()) != (task.version, task.version_hash):
        raise TaskError("resync", f"the blobs lead to version {version}, not to {task.version} as published")
    if task.model_paths or not path.exists():
        _replace(path, grid.encode_keyframe(version, values))
    return values


def _workspace(path: Path, sizes: Sequence[int]) -> tuple[tuple[grid.Grid, ...], int] | None:
    if not path.exists():
        return None
    try:
        frame = grid.decode(_bytes(path), sizes)
        return grid.apply(None, frame, None), frame.version
    except RemoteWireError:
        return None  # a damaged file counts as absent: the version hash decides what is usable


def _bytes(path: Path) -> bytes:
    if path.stat().st_size > FRAME_BYTES_MAX:
        raise RemoteWireError("too_large", f"{path.name} is over {FRAME_BYTES_MAX} B")
    return path.read_bytes()


def _replace(path: Path, data: bytes) -> None:
    """Write temp, fsync, rename: a crash leaves the old model or the new one."""
    temporary = path.with_suffix(".part")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _stamp(path: str) -> Stamp | None:
    try:
        status = Path(path).stat()
    except OSError:
        return None  # reading it will say what is wrong
    return path, status.st_mtime_ns, status.st_size


def serve(stdin: BinaryIO, stdout: BinaryIO) -> None:
    """Answer tasks until `stdin` closes."""
    child = Child(lambda answer: send(stdout, answer), flush_denormals=True)
    while (task := receive_task(stdin)) is not None:
        send(stdout, child.perform(task))


def main() -> None:
    """Serve on the process's stdin and stdout; whatever else would print goes to stderr."""
    channel = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        serve(sys.stdin.buffer, channel)
    except BrokenPipeError:
        sys.exit(1)  # the daemon is gone; nobody is left to answer


if __name__ == "__main__":
    main()
