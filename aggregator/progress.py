"""Tells the bridges how far the log has been taken, so that they stop taking more where it has not."""

from collections.abc import Mapping

import msgspec

from aggregator.clocks import waited
from broker_bridge.cells import TAKEN_KEY, TakenCell
from broker_bridge.ports import Heads

INTERVAL_S = 0.5  # a write each time; the bridge's bound is thousands of entries, so it need not hear of each


class Progress:
    """Writes the cell `taken` when the cursor has moved, every half second at most."""

    def __init__(self, heads: Heads) -> None:
        self._heads = heads
        self._told: dict[int, int] = {}
        self._told_at = 0.0

    async def tell(self, cursor: Mapping[int, int], now: float) -> None:
        """Write the offset that was taken last of each partition; `now` in Unix seconds. Raises PortError."""
        if cursor == self._told or not waited(self._told_at, INTERVAL_S, now):
            return
        offsets = dict(cursor)
        revision, _ = await self._heads.load(TAKEN_KEY)
        await self._heads.swing(TAKEN_KEY, revision, msgspec.json.encode(TakenCell(offsets)))
        self._told, self._told_at = offsets, now
