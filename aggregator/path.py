"""Ways from the version a device holds to the newest: deltas, one merged delta, or the key-frame. Pure.

Deltas add up in integers (I5), so the way is a matter of bytes alone: a merged delta says each weight's place once,
however many versions moved it.
"""

from collections.abc import Sequence

from aggregator.versions import VersionManifest, reference
from edge_client.wire import grid
from edge_client.wire.messages import BlobRef

Way = tuple[BlobRef, ...]


class Paths:
    """The deltas of the newest versions, and what was merged of them."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = sizes
        self._deltas: dict[int, tuple[BlobRef, bytes]] = {}  # by the version each leads to
        self._ways: dict[int, Way] = {}  # to the newest version, by the version held
        self._fresh: list[bytes] = []
        self.merged: dict[int, list[str]] = {}  # digests, by the version they lead to

    def extend(self, version: int, delta: bytes) -> None:
        """`version` is the newest now, and this delta leads to it."""
        self._deltas[version] = (reference(delta), delta)
        self._ways.clear()

    def find(self, holds: int | None, head: VersionManifest) -> Way:
        """The blobs of fewest bytes that lead from version `holds` to `head`, the newest; () when it is held."""
        if holds is None or holds > head.version:
            return (head.keyframe,)
        if holds not in self._ways:
            self._ways[holds] = self._least(holds, head)
        return self._ways[holds]

    def take_fresh(self) -> list[bytes]:
        """Merged deltas that were named by `find` and have yet to be stored."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def forget(self, oldest: int) -> list[str]:
        """Forget what leads to versions before `oldest`; return the digests of merged deltas that may go."""
        self._deltas = {version: kept for version, kept in self._deltas.items() if version >= oldest}
        gone = [version for version in self.merged if version < oldest]
        return [digest for version in gone for digest in self.merged.pop(version)]

    def _least(self, holds: int, head: VersionManifest) -> Way:
        whole = (head.keyframe,)
        steps = range(holds + 1, head.version + 1)
        if any(version not in self._deltas for version in steps):
            return whole
        single = tuple(self._deltas[version][0] for version in steps)
        least = min(single, whole, key=_bytes)
        if len(single) < 2:
            return least
        merged = grid.merge(grid.decode(self._deltas[version][1], self._sizes) for version in steps)
        ref = reference(merged)
        if ref.size >= _bytes(least):
            return least
        self._fresh.append(merged)
        known = self.merged.setdefault(head.version, [])
        if ref.digest not in known:  # it is after a restart, which makes it again
            known.append(ref.digest)
        return (ref,)


def _bytes(way: Way) -> int:
    return sum(blob.size for blob in way)
