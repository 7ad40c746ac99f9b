"""Ways from the version a device holds to the newest: deltas, one merged delta, or the key-frame. Pure.

Deltas add up in integers (I5), so the way is a matter of bytes alone: a merged delta says each weight's place once,
however many versions moved it.
"""

from collections.abc import Sequence

from aggregator.versions import VersionManifest, reference
from edge_client.wire import grid
from edge_client.wire.grid import Grid
from edge_client.wire.messages import BlobRef

Way = tuple[BlobRef, ...]
MODELS_BYTES_MAX = 64 << 20  # of models in memory, a job: 28 versions of half a million weights
VALUE_BYTES = 4  # of a weight on the grid


class Paths:
    """The deltas of the newest versions, and what was merged of them."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = sizes
        self._deltas: dict[int, tuple[BlobRef, bytes]] = {}  # by the version each leads to
        self._ways: dict[int, Way] = {}  # to the newest version, by the version held
        self._made: dict[int, bytes] = {}  # merged deltas that are such a way and were not named yet
        self._models: dict[int, tuple[Grid, ...]] = {}
        self._fresh: list[bytes] = []
        self.merged: dict[int, list[str]] = {}  # digests, by the version they lead to

    def hold(self, version: int, model: tuple[Grid, ...]) -> None:
        """Keep the model that devices have at a version: a difference costs a fraction of merging deltas.

        As many are kept as MODELS_BYTES_MAX has room for, the newest.
        """
        self._models[version] = model
        most = max(1, MODELS_BYTES_MAX // (VALUE_BYTES * sum(self._sizes)))
        for old in sorted(self._models)[:-most]:
            del self._models[old]

    def again(self, digest: str) -> bytes | None:
        """The delta of this digest; None when it is not one. A merged one is made anew when it is next needed."""
        for ref, delta in self._deltas.values():
            if ref.digest == digest:
                return delta
        self._ways.clear()
        self._made.clear()
        return None

    def rest(self) -> None:
        """Forget all ways: nobody asks for one any more."""
        for kept in (self._deltas, self._ways, self._made, self._models):
            kept.clear()

    def extend(self, version: int, delta: bytes) -> None:
        """`version` is the newest now, and this delta leads to it."""
        self._deltas[version] = (reference(delta), delta)
        self._ways.clear()
        self._made.clear()

    def find(self, holds: int | None, head: VersionManifest) -> Way:
        """The blobs of fewest bytes that lead from version `holds` to `head`, the newest; () when it is held."""
        if holds is None or holds > head.version:
            return (head.keyframe,)
        way = self._way(holds, head.version)
        if way is None or _bytes(way) > head.keyframe.size:
            return (head.keyframe,)
        merged = self._made.pop(holds, None)
        if merged is not None:
            self._fresh.append(merged)
            known = self.merged.setdefault(head.version, [])
            if way[0].digest not in known:  # it is after a restart, which makes it again
                known.append(way[0].digest)
        return way

    def prices(self, holds: int, version: int) -> tuple[list[int], int] | None:
        """Bytes of each delta from version `holds` to `version`, the newest, and of the least way by deltas.

        None when there is no way by deltas, or none is needed.
        """
        if holds >= version:
            return None
        way = self._way(holds, version)
        if way is None:
            return None
        deltas = [self._deltas[v][0].size for v in range(holds + 1, version + 1)]
        return deltas, _bytes(way)

    def take_fresh(self) -> list[bytes]:
        """Merged deltas that were named by `find` and have yet to be stored."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def forget(self, oldest: int) -> list[str]:
        """Forget what leads to versions before `oldest`; return the digests of merged deltas that may go."""
        self._deltas = {version: kept for version, kept in self._deltas.items() if version >= oldest}
        self._models = {version: model for version, model in self._models.items() if version >= oldest}
        gone = [version for version in self.merged if version < oldest]
        return [digest for version in gone for digest in self.merged.pop(version)]

    def _way(self, holds: int, version: int) -> Way | None:
        """The deltas of fewest bytes between two versions; None when one is not there."""
        if holds not in self._ways:
            steps = range(holds + 1, version + 1)
            if any(step not in self._deltas for step in steps):
                return None
            way = tuple(self._deltas[step][0] for step in steps)
            if len(way) > 1:
                merged = self._merged(holds, version)
                if len(merged) < _bytes(way):
                    way, self._made[holds] = (reference(merged),), merged
            self._ways[holds] = way
        return self._ways[holds]

    def _merged(self, holds: int, version: int) -> bytes:
        """One delta between two versions, from their models when they are at hand."""
        before, after = self._models.get(holds), self._models.get(version)
        if before is not None and after is not None:
            return grid.encode_delta(version, holds, after, before)
        steps = range(holds + 1, version + 1)
        return grid.merge(grid.decode(self._deltas[step][1], self._sizes) for step in steps)


def _bytes(way: Way) -> int:
    return sum(blob.size for blob in way)
