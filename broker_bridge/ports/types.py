"""The protocols of the three ports and the values they exchange (DESIGN §4). No I/O here."""

import enum
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import NewType, Protocol

Digest = NewType("Digest", str)  # SHA-256 in lower-case hex
# Marks of each kind that a stream keeps: as many messages as a broker may have on its way to a bridge.
REMEMBERED = 64


class PortError(Exception):
    """Root of all errors of the ports."""


class Conflict(PortError):  # noqa: N818 - a race that was lost is not an error of anybody
    """Somebody else swung the head first; load it again and decide anew."""


class MissingBlob(PortError):  # noqa: N818 - reads better where it is caught
    """No blob has this digest."""


class CorruptBlob(PortError):  # noqa: N818 - reads better where it is caught
    """The stored bytes do not have the digest they are stored under."""


class StorageError(PortError):
    """The engine's storage failed; the message names the file. What was asked for did not happen."""


class StorageFull(StorageError):  # noqa: N818 - reads better where it is caught
    """No space is left; the same call works again once there is some."""


class CorruptStorage(StorageError):  # noqa: N818 - reads better where it is caught
    """The file is damaged or is not one of this engine's."""


class Kind(enum.IntEnum):
    """What a log entry is."""

    UPDATE = 1  # an admitted update: it will be folded (I1)
    EVALUATION = 2  # a device's hold-out metrics
    EVENT = 3  # state, info, ask or task of a device
    REJECTION = 4  # the durable verdict on a refused uid, counted by the aggregator


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the log; offsets of a partition start at 1 and have no gaps below the newest."""

    offset: int
    uid: str
    kind: Kind
    body: bytes


@dataclass(frozen=True, slots=True)
class Mark:
    """What the log remembers of a uid, even after its entry was trimmed; see FORGOTTEN."""

    offset: int
    kind: Kind
    mark: bytes


FORGOTTEN = Mark(0, Kind.UPDATE, b"")  # of a uid behind the updates that its stream remembers, known or not


def split(uid: str) -> tuple[str, int]:
    """Stream and number of a uid that is remembered."""
    stream, _, number = uid.rpartition(":")
    return stream, int(number)


class UpdateLog(Protocol):
    """Append-only, one order per partition."""

    async def append(
        self, partition: int, uid: str, kind: Kind, body: bytes, mark: bytes | None = None
    ) -> int:
        """Store an entry durably and return its offset.

        With a mark, not empty, the uid is remembered, and the same again returns the first offset. It has the form
        `<stream>:<number>`: of each kind the REMEMBERED highest numbers of a stream are kept. An update's sender
        may only go on to the next number when it knows that this one was appended.
        """
        ...

    async def find(self, partition: int, uid: str) -> Mark | None:
        """Return what is remembered of a uid, FORGOTTEN behind REMEMBERED later updates, else None."""
        ...

    async def read(self, partition: int, after: int, limit: int) -> list[Entry]:
        """Entries with offset > after, in order, at most `limit`."""
        ...

    async def wait(self, partition: int, after: int) -> None:
        """Return once there is an entry with offset > after."""
        ...

    async def trim(self, partition: int, below: int) -> None:
        """Forget the bodies of entries with offset < below; their marks stay."""
        ...


@dataclass(frozen=True, slots=True)
class Change:
    """A head was set or, with value None, dropped. Revisions grow over all keys of an engine."""

    key: str
    revision: int
    value: bytes | None


class Heads(Protocol):
    """Small mutable cells under compare-and-swap."""

    async def load(self, key: str) -> tuple[int, bytes]:
        """Return (revision, value); (0, b"") when the cell does not exist."""
        ...

    async def swing(self, key: str, expected: int, value: bytes) -> int:
        """Set a cell whose revision is `expected` (0: must not exist); return the new one or raise Conflict."""
        ...

    async def drop(self, key: str, expected: int) -> None:
        """Remove a cell whose revision is `expected`; raise Conflict."""
        ...

    async def list(self, prefix: str) -> list[Change]:
        """All cells under a prefix, ordered by key."""
        ...

    def watch(self, prefix: str, after: int = 0) -> AsyncIterator[Change]:
        """Yield the newest change of each cell under a prefix with revision > after, then changes as they come.

        Values between two looks may be skipped, the newest never. Drops come too, except those from before
        the first look of a watch from 0, which has told of no cell yet.
        """
        ...


class Blobs(Protocol):
    """Content-addressed and write-once."""

    async def put(self, data: bytes) -> Digest:
        """Store bytes durably; storing them again is harmless."""
        ...

    async def get(self, digest: Digest) -> bytes:
        """Return the bytes, verified; raise MissingBlob or CorruptBlob."""
        ...

    async def delete(self, digest: Digest) -> None:
        """Remove a blob; removing a missing one is harmless."""
        ...

    def list(self) -> AsyncIterator[Digest]:
        """Yield every digest."""
        ...


@dataclass(frozen=True, slots=True)
class Ports:
    """The three ports of one engine; `partitions` is fixed when the engine is made.

    `close` ends the engine after the calls under way; call it once, last.
    """

    log: UpdateLog
    heads: Heads
    blobs: Blobs
    partitions: int
    close: Callable[[], Awaitable[None]]
