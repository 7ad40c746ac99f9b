"""What the bridge has done since its state was made, kept in its BridgeCell."""

import msgspec

from broker_bridge.cells import BRIDGE_PREFIX, BridgeCell
from broker_bridge.ports import Conflict, Heads

CODES_MAX = 64  # rejection codes counted by name; there are about twenty, so more would be a bug
JOBS_MAX = 1000  # jobs counted by name: an unknown job's name comes from whoever publishes


class Counters:
    """Counts in memory; `save` writes them when they changed."""

    def __init__(self, heads: Heads, name: str) -> None:
        self._heads = heads
        self._key = f"{BRIDGE_PREFIX}{name}"
        self._revision = 0
        self._saved = BridgeCell(at=0.0)
        self.bytes_up = 0
        self.bytes_down = 0
        self.messages_up = 0
        self.messages_down = 0
        self.accepted = 0
        self.duplicates = 0
        self.rejected: dict[str, int] = {}
        self.jobs_up: dict[str, int] = {}

    async def load(self) -> None:
        """Go on from the stored counters."""
        self._revision, value = await self._heads.load(self._key)
        if value:
            cell = self._saved = msgspec.json.decode(value, type=BridgeCell)
            self.bytes_up, self.bytes_down = cell.bytes_up, cell.bytes_down
            self.messages_up, self.messages_down = cell.messages_up, cell.messages_down
            self.accepted, self.duplicates = cell.accepted, cell.duplicates
            self.rejected, self.jobs_up = dict(cell.rejected), dict(cell.jobs_up)

    def came_up(self, size: int) -> None:
        """A message of `size` bytes came from a device."""
        self.messages_up += 1
        self.bytes_up += size

    def went_down(self, size: int) -> None:
        """A message of `size` bytes was handed to the broker."""
        self.messages_down += 1
        self.bytes_down += size

    def refused(self, code: str) -> None:
        """Something was refused with this code."""
        _count(self.rejected, code, 1, CODES_MAX)

    def update_packet(self, job: str, size: int) -> None:
        """A packet of an update of `job` came in."""
        _count(self.jobs_up, job, size, JOBS_MAX)

    async def save(self, partials: int, untaken: int, now: float) -> None:
        """Write the cell when a counter changed; `now` in Unix seconds. Raises StorageError."""
        cell = BridgeCell(
            at=self._saved.at,
            bytes_up=self.bytes_up,
            bytes_down=self.bytes_down,
            messages_up=self.messages_up,
            messages_down=self.messages_down,
            accepted=self.accepted,
            duplicates=self.duplicates,
            rejected=dict(self.rejected),
            jobs_up=dict(self.jobs_up),
            partials=partials,
            untaken=untaken,
        )
        if cell == self._saved:
            return
        cell = msgspec.structs.replace(cell, at=now)
        try:
            self._revision = await self._heads.swing(self._key, self._revision, msgspec.json.encode(cell))
        except Conflict:  # somebody reset the cell; ours is the newer count, written next time
            self._revision, _ = await self._heads.load(self._key)
            return
        self._saved = cell


def _count(table: dict[str, int], name: str, amount: int, limit: int) -> None:
    if name not in table and len(table) >= limit:
        name = "other"
    table[name] = table.get(name, 0) + amount
