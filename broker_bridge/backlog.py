"""How much of the log the aggregator has not taken yet, and the wait for room at its bound.

An aggregator that is stopped or slow thus stops the bridge from acknowledging, as a full disk does: the broker's
window fills, and devices keep their updates. What an earlier bridge appended counts by its offsets, not by its bytes.
"""

import asyncio
from collections import deque

import msgspec
import structlog

from broker_bridge.cells import TAKEN_KEY, TakenCell
from broker_bridge.ports import Heads
from broker_bridge.storage import persistently

ENTRIES_MAX = 20_000  # eight seconds of the fastest stream measured (bench/README.md)
BYTES_MAX = 256 << 20  # of their bodies: dense updates of large models reach this first

log = structlog.get_logger()


class Backlog:
    """Counts what is appended against what is taken."""

    def __init__(self, heads: Heads, entries_max: int = ENTRIES_MAX, bytes_max: int = BYTES_MAX) -> None:
        self._heads = heads
        self._entries_max, self._bytes_max = entries_max, bytes_max
        self._taken: dict[int, int] = {}
        self._newest: dict[int, int] = {}
        # (offset, bytes) of each entry not taken, by partition
        self._sizes: dict[int, deque[tuple[int, int]]] = {}
        self._bytes = 0
        self._room = asyncio.Event()
        self._room.set()

    @property
    def entries(self) -> int:
        """Entries that are known to be in the log and not taken."""
        return sum(max(newest - self._taken.get(p, 0), 0) for p, newest in self._newest.items())

    def appended(self, partition: int, offset: int, size: int) -> None:
        """An entry with a body of `size` bytes is in the log."""
        if offset <= max(self._newest.get(partition, 0), self._taken.get(partition, 0)):
            return
        self._newest[partition] = offset
        self._sizes.setdefault(partition, deque()).append((offset, size))
        self._bytes += size
        self._look()

    def take(self, offsets: dict[int, int]) -> None:
        """The aggregator has read up to these offsets; after a crash it begins at earlier ones again."""
        self._taken = offsets
        for partition, sizes in self._sizes.items():
            while sizes and sizes[0][0] <= offsets.get(partition, 0):
                self._bytes -= sizes.popleft()[1]
        self._look()

    async def room(self) -> None:
        """Return once another entry may be appended."""
        await self._room.wait()

    async def follow(self) -> None:
        """Hear of what the aggregator takes, until cancelled."""
        after = 0

        async def follow() -> None:
            nonlocal after
            async for change in self._heads.watch(TAKEN_KEY, after):
                if change.key == TAKEN_KEY and change.value:
                    self.take(msgspec.json.decode(change.value, type=TakenCell).offsets)
                after = change.revision

        await persistently(follow, "backlog")

    def _look(self) -> None:
        full = self.entries >= self._entries_max or self._bytes >= self._bytes_max
        if full and self._room.is_set():
            log.warning(
                "backlog_full", entries=self.entries, bytes=self._bytes, remedy="is the aggregator running?"
            )
            self._room.clear()
        elif not full and not self._room.is_set():
            log.info("backlog_has_room", entries=self.entries)
            self._room.set()
