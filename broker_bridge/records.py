"""What the bodies and marks of log entries hold, as msgpack; written by the bridge, read by the aggregator.

`at` is the bridge's Unix time at admission: the aggregator has no other clock for what it replays.
"""

from typing import Literal, TypeVar

import msgspec

DIGEST_BYTES = 8  # of the frame's SHA-256: enough to tell two bodies under one uid apart (I12)


class UpdateRecord(msgspec.Struct, frozen=True, array_like=True):
    """An admitted update; `frame` decodes, is finite and fits its job's table (I1)."""

    at: float
    frame: bytes
    wire_bytes: int  # bytes of all its packets' payloads


class EvaluationRecord(msgspec.Struct, frozen=True, array_like=True):
    """A device's Evaluation message, decodable."""

    at: float
    payload: bytes


class EventRecord(msgspec.Struct, frozen=True, array_like=True):
    """A control message of a device, decodable as the message of its topic; or that an operator has it forgotten."""

    at: float
    topic: Literal["state", "info", "ask", "task", "forget"]  # forget: by the aggregator, without a payload
    device: str
    job: str  # "" for state, info and forget
    payload: bytes


class RejectionRecord(msgspec.Struct, frozen=True, array_like=True):
    """A refused uid."""

    at: float
    code: str
    message: str


class VerdictMark(msgspec.Struct, frozen=True, array_like=True):
    """The mark of an UPDATE, EVALUATION or REJECTION entry: enough to answer a duplicate for ever."""

    digest: bytes  # first DIGEST_BYTES of SHA-256 of the frame or payload
    code: str = ""  # "" is accepted


Record = UpdateRecord | EvaluationRecord | EventRecord | RejectionRecord


def encode(record: Record | VerdictMark) -> bytes:
    """Encode a record or mark."""
    return msgspec.msgpack.encode(record)


R = TypeVar("R", bound=Record | VerdictMark)


def decode(kind: type[R], data: bytes) -> R:
    """Decode a record or mark that `encode` made; raise msgspec.DecodeError on anything else."""
    return msgspec.msgpack.decode(data, type=kind)
