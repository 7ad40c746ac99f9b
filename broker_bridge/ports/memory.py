"""The engine that keeps everything in memory: for tests, simulations and demos that need not survive."""

import hashlib
from collections import deque
from collections.abc import AsyncIterator

from broker_bridge.ports.bell import HEADS, Bell, log_topic
from broker_bridge.ports.types import (
    FORGOTTEN,
    REMEMBERED,
    Change,
    Conflict,
    CorruptBlob,
    Digest,
    Entry,
    Kind,
    Mark,
    MissingBlob,
    Ports,
    split,
)


def open_memory(partitions: int) -> Ports:
    """A fresh, empty engine."""
    bell = Bell()
    return Ports(MemoryLog(partitions, bell), MemoryHeads(bell), MemoryBlobs(), partitions, _close)


async def _close() -> None:
    """Nothing outlives the objects."""


class MemoryLog:
    """UpdateLog in lists."""

    def __init__(self, partitions: int, bell: Bell) -> None:
        self._entries: list[deque[Entry]] = [deque() for _ in range(partitions)]
        self._newest = [0] * partitions
        self._marks: list[dict[str, dict[int, Mark]]] = [
            {} for _ in range(partitions)
        ]  # by stream and number
        self._bell = bell

    async def append(
        self, partition: int, uid: str, kind: Kind, body: bytes, mark: bytes | None = None
    ) -> int:
        """As in UpdateLog, but durable only as long as the process."""
        offset = self._newest[partition] + 1
        if mark is not None:
            stream, number = split(uid)
            marks = self._marks[partition].setdefault(stream, {})
            if number in marks:
                return marks[number].offset
            marks[number] = Mark(offset, kind, mark)
            of_kind = sorted(n for n, known in marks.items() if known.kind is kind)
            for old in of_kind[:-REMEMBERED]:
                del marks[old]
        self._newest[partition] = offset
        self._entries[partition].append(Entry(offset, uid, kind, body))
        self._bell.ring([log_topic(partition)])
        return offset

    async def find(self, partition: int, uid: str) -> Mark | None:
        """As in UpdateLog."""
        stream, number = split(uid)
        marks = self._marks[partition].get(stream, {})
        later = sum(n > number and known.kind is Kind.UPDATE for n, known in marks.items())
        return marks.get(number) or (FORGOTTEN if later >= REMEMBERED else None)

    async def read(self, partition: int, after: int, limit: int) -> list[Entry]:
        """As in UpdateLog."""
        entries = self._entries[partition]
        if not entries:
            return []
        start = max(0, after + 1 - entries[0].offset)
        return [entries[i] for i in range(start, min(len(entries), start + limit))]

    async def wait(self, partition: int, after: int) -> None:
        """As in UpdateLog."""
        while self._newest[partition] <= after:
            await self._bell.ticket(log_topic(partition))

    async def trim(self, partition: int, below: int) -> None:
        """As in UpdateLog."""
        entries = self._entries[partition]
        while entries and entries[0].offset < below:
            entries.popleft()


class MemoryHeads:
    """Heads in a dictionary; a dropped cell stays as a change with value None."""

    def __init__(self, bell: Bell) -> None:
        self._cells: dict[str, Change] = {}
        self._revision = 0
        self._bell = bell

    async def load(self, key: str) -> tuple[int, bytes]:
        """As in Heads."""
        cell = self._cells.get(key)
        return (0, b"") if cell is None or cell.value is None else (cell.revision, cell.value)

    async def swing(self, key: str, expected: int, value: bytes) -> int:
        """As in Heads."""
        await self._expect(key, expected)
        return self._set(key, value)

    async def drop(self, key: str, expected: int) -> None:
        """As in Heads."""
        await self._expect(key, expected)
        if expected:
            self._set(key, None)

    async def list(self, prefix: str) -> list[Change]:
        """As in Heads."""
        return sorted(
            (c for c in self._cells.values() if c.key.startswith(prefix) and c.value is not None),
            key=lambda change: change.key,
        )

    async def watch(self, prefix: str, after: int = 0) -> AsyncIterator[Change]:
        """As in Heads."""
        while True:
            ticket = self._bell.ticket(HEADS)
            changes = [
                c
                for c in self._cells.values()
                if c.revision > after and c.key.startswith(prefix) and (after or c.value is not None)
            ]
            if not changes:
                await ticket
            for change in sorted(changes, key=lambda c: c.revision):
                after = change.revision
                yield change

    async def _expect(self, key: str, expected: int) -> None:
        actual, _ = await self.load(key)
        if actual != expected:
            raise Conflict(f"{key} is at revision {actual}, not {expected}")

    def _set(self, key: str, value: bytes | None) -> int:
        self._revision += 1
        self._cells[key] = Change(key, self._revision, value)
        self._bell.ring([HEADS])
        return self._revision


class MemoryBlobs:
    """Blobs in a dictionary."""

    def __init__(self) -> None:
        self._blobs: dict[Digest, bytes] = {}

    async def put(self, data: bytes) -> Digest:
        """As in Blobs, but durable only as long as the process."""
        digest = Digest(hashlib.sha256(data).hexdigest())
        self._blobs[digest] = bytes(data)
        return digest

    async def get(self, digest: Digest) -> bytes:
        """As in Blobs."""
        data = self._blobs.get(digest)
        if data is None:
            raise MissingBlob(f"no blob {digest}")
        if hashlib.sha256(data).hexdigest() != digest:
            raise CorruptBlob(f"blob {digest} does not have its digest")
        return data

    async def delete(self, digest: Digest) -> None:
        """As in Blobs."""
        self._blobs.pop(digest, None)

    async def list(self) -> AsyncIterator[Digest]:
        """As in Blobs."""
        for digest in list(self._blobs):
            yield digest
