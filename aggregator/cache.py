"""What each device sent last, for cached calibration (commit.Calibration). Pure; the frames themselves are blobs.

Sums are integers, kept up to date by adding what is new and taking away what it replaces, so they depend on nothing
but the updates (I2).
"""

from dataclasses import dataclass

import msgspec
import numpy as np

from aggregator.fold import Cached
from aggregator.sums import Ints
from edge_client.wire.messages import BlobRef
from edge_client.wire.sparse import Update

CACHE_DEVICES_MAX = 10_000  # devices beyond the first so many are folded uncalibrated; bounds memory and sums


class CacheEntry(msgspec.Struct, frozen=True):
    """The frame that a device sent last, and the gain and weight it was folded with."""

    frame: BlobRef
    gain: int
    weight: int


@dataclass(frozen=True, slots=True)
class Pending:
    """A device's newest update of the buffer, and what of it the sums still hold."""

    frame: bytes
    newest: Cached
    replaces: Cached | None


class Cache:
    """Entries and their sums as of the newest version, and what the buffer brings."""

    def __init__(self, size: int) -> None:
        self.entries: dict[str, CacheEntry] = {}
        self.sums: Ints = np.zeros(size, dtype=np.int64)
        self.weight = 0
        self.pending: dict[str, Pending] = {}

    def wanted(self, device: str) -> str | None:
        """The digest of the frame that `take` needs for this device, None when it needs none."""
        return (
            self.entries[device].frame.digest
            if device in self.entries and device not in self.pending
            else None
        )

    def take(self, device: str, before: Update | None) -> Cached | None:
        """What the device sent before its newest update; `before` is decoded from the frame that was `wanted`."""
        if device in self.pending:
            return self.pending[device].newest
        if before is None:
            return None
        entry = self.entries[device]
        return Cached(before, entry.gain, entry.weight)

    def put(self, device: str, frame: bytes, newest: Cached, before: Cached | None) -> None:
        """The device's newest update was folded; `before` is what `take` gave for it."""
        known = self.pending.get(device)
        self.pending[device] = Pending(frame, newest, known.replaces if known else before)

    def after(self, offsets: Ints) -> tuple[dict[str, Pending], Ints, int]:
        """What the next version adds to the entries, and the sums and their weight with it."""
        room = CACHE_DEVICES_MAX - len(self.entries)
        added = {}
        sums, weight = self.sums.copy(), self.weight
        for device, pending in sorted(self.pending.items()):
            if device not in self.entries:
                if room <= 0:
                    continue
                room -= 1
            added[device] = pending
            for cached, sign in ((pending.newest, 1), (pending.replaces, -1)):
                if cached is not None:
                    positions, values = cached.update.weights.units(offsets)
                    sums[positions] += values * (sign * cached.gain * cached.weight)
                    weight += sign * cached.weight
        return added, sums, weight

    def advance(self, entries: dict[str, CacheEntry], sums: Ints, weight: int) -> list[str]:
        """The version was committed: return the digests of frames that it replaced."""
        gone = [self.entries[device].frame.digest for device in entries if device in self.entries]
        self.entries |= entries
        self.sums, self.weight = sums, weight
        self.pending = {}
        return gone
