"""The trainer child: `python -m edge_client.trainer_child` answers tasks on stdin until it closes.

The only process of a device that reads samples (I8): answers carry parameters, counts and metrics, never a
value of the data, and errors name files, shapes and exception types. Messages: trainer_protocol.py.
"""

import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec

from edge_client import (
    lean,  # noqa: F401 - before what imports hashlib
    samples,
)
from edge_client.bundle import BundleError
from edge_client.participation import Participation, TaskError, pack, train
from edge_client.samples import DataError, Samples
from edge_client.storage import without_path, write_whole
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
from edge_client.training import TrainingSession, initial_grid
from edge_client.wire import grid
from edge_client.wire.errors import RemoteWireError
from edge_client.wire.limits import FRAME_BYTES_MAX
from edge_client.wire.messages import DataSchema
from edge_client.wire.topics import Uid

PROGRESS_INTERVAL_S = 0.5
GRID_FILE = "model.grid"
_ALLOCATION_FAILURES = ("bad_alloc", "bad allocation", "Failed to allocate", "Available memory of")

T = TypeVar("T")
Stamp = tuple[str, int, int]


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
            return _failed(error, task)

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
        base = _model(task, session)
        data = self._samples(task.source)
        samples.check(data, task.data)
        uid, digest = Uid.parse(task.uid), bytes.fromhex(task.version_hash)
        participation = Participation(uid, task.version, digest, base, task.plan, task.residual)
        outcome = train(session, data, participation, _Pace(self._put, task.plan.steps))
        sizes = [t.size for t in manifest.tensors]
        return pack(outcome, sizes, participation, len(data.train), session.memory_bytes)


class _Pace:
    """Tells of training at intervals, and of the last step."""

    def __init__(self, put: Callable[[Answer], None], steps: int) -> None:
        self._put = put
        self._steps = steps
        self._total, self._count, self._reported = 0.0, 0, time.monotonic()

    def __call__(self, step: int, loss: float) -> None:
        self._total, self._count = self._total + loss, self._count + 1
        now = time.monotonic()
        if now - self._reported >= PROGRESS_INTERVAL_S or step == self._steps:
            self._put(Progress(step, self._steps, self._total / self._count))
            self._total, self._count, self._reported = 0.0, 0, now


def _failed(error: Exception, task: Task) -> Failed:
    # Memory comes first: a runtime that cannot load a sound bundle for want of it says so in a BundleError.
    if isinstance(error, MemoryError) or any(text in str(error) for text in _ALLOCATION_FAILURES):
        return Failed("out_of_memory", "the trainer's memory limit is too small for this job")
    if isinstance(error, TaskError | DataError):
        return Failed(error.code, str(error))
    if isinstance(error, BundleError) and isinstance(task, TrainTask):
        # The server is told, where everybody reads it: not where things lie on this device.
        return Failed("bad_bundle", str(error).replace(task.bundle_path, "the bundle"))
    # Frames only: the text of a foreign exception might quote data.
    sys.stderr.writelines(traceback.format_tb(error.__traceback__))
    return Failed("internal", f"{type(error).__name__} in the trainer")


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
        raise TaskError("resync", f"the model cannot be built: {without_path(error)}") from error
    if (version, grid.model_hash(values).hex()) != (task.version, task.version_hash):
        raise TaskError("resync", f"the blobs lead to version {version}, not to {task.version} as published")
    if task.model_paths or not path.exists():
        try:
            write_whole(path, grid.encode_keyframe(version, values))
        except OSError as error:
            raise TaskError("storage", f"the model cannot be kept: {error.strerror}") from error
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
