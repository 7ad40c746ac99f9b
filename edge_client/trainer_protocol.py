"""What daemon and trainer child say to each other over the child's stdin and stdout.

Each message is a u32 little-endian length and a msgpack-encoded tagged struct. The child answers every task
with any number of Progress and then exactly one result; it exits when its stdin closes. msgspec only, so
that the daemon may import it.
"""

import struct
from typing import BinaryIO

import msgspec

from edge_client.wire.limits import FRAME_BYTES_MAX
from edge_client.wire.messages import DataSchema, Evaluation, Target, TrainingPlan

MESSAGE_BYTES_MAX = 4 * FRAME_BYTES_MAX  # one frame and two float16 residuals, with room
_LENGTH = struct.Struct("<I")


class DataSource(msgspec.Struct, frozen=True):
    """A `.npz` file with `x` float32 [n, *shape], `y` as `target` says and optionally `segment` int64 [n].

    `y` is int64 [n] for class, uint8 [n, labels] of 0 and 1 for labels, float32 [n, *target_shape] for values; it
    is not read for none. The last `holdout` share of each segment (a contiguous recording) is held out; `gap`
    samples before it are used for neither, so that overlapping windows do not leak.
    """

    path: str
    holdout: float = 0.2
    gap: int = 1
    target: Target = "class"


class DescribeTask(msgspec.Struct, frozen=True, tag="describe"):
    """Report the schema of a data source."""

    source: DataSource


class TrainTask(msgspec.Struct, frozen=True, tag="train"):
    """Apply `model` to the workspace's model, train by `plan`, and encode the update.

    `workspace` holds `model.grid`, the newest model this child has built (absent at first). `residual` is
    the float16 error-feedback state, little-endian, all tensors concatenated; None is all zeros.
    """

    job: str
    workspace: str
    bundle_path: str
    model_paths: tuple[str, ...]  # KEYFRAME or DELTA frames to apply in order; empty: workspace is current
    version: int
    version_hash: str
    source: DataSource
    data: DataSchema
    plan: TrainingPlan
    uid: str  # name of the update to be made (topics.Uid)
    residual: bytes | None = None


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """Training is at `step` of `steps`; `loss` is the mean since the last report."""

    step: int
    steps: int
    loss: float


class Described(msgspec.Struct, frozen=True, tag="described"):
    """Schema and size of a data source; where it has classes, `n_classes` is the largest label plus one."""

    data: DataSchema
    n_samples: int


class Trained(msgspec.Struct, frozen=True, tag="trained"):
    """An update ready to send; the residuals replace the old one once the verdict is known (I4)."""

    frame: bytes
    residual_accepted: bytes  # u - C(u)
    residual_kept: bytes  # u: the update was sound but its base was not usable (KEEP_MASS_CODES)
    evaluation: Evaluation


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The task failed; the child goes on.

    Codes: `bad_data` (file unreadable or not of the declared form), `schema_mismatch`, `bad_bundle`,
    `resync` (model blobs do not lead to `version_hash`), `diverged` (the loss or a parameter is not finite),
    `out_of_memory`, `internal`.
    """

    code: str
    message: str


Task = DescribeTask | TrainTask
Answer = Progress | Described | Trained | Failed

_encoder = msgspec.msgpack.Encoder()
_tasks = msgspec.msgpack.Decoder(Task)
_answers = msgspec.msgpack.Decoder(Answer)


def send(stream: BinaryIO, message: Task | Answer) -> None:
    """Write one message and flush."""
    data = _encoder.encode(message)
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.flush()


def receive_task(stream: BinaryIO) -> Task | None:
    """Read one task; None when the stream is closed."""
    data = _read(stream)
    return None if data is None else _tasks.decode(data)


def receive_answer(stream: BinaryIO) -> Answer | None:
    """Read one answer; None when the child is gone."""
    data = _read(stream)
    return None if data is None else _answers.decode(data)


def _read(stream: BinaryIO) -> bytes | None:
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    if length > MESSAGE_BYTES_MAX:
        raise ValueError(f"a message of {length} B is over {MESSAGE_BYTES_MAX} B")
    data = stream.read(length)
    return data if len(data) == length else None
