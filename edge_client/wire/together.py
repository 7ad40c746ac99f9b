"""Many UPDATE frames decoded together: what `sparse.decode` does to one, done to an array of them.

An update of a small model is a hundred operations on a few hundred values each, so what a server spends on it is the
calls, not the values. Frames of one codec, form and counts are rows of one array here. Whatever is not as it should be
is left to `sparse.decode`, which says what is wrong with it: this file refuses nothing and has no error of its own.
"""

import struct
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from edge_client.wire import frame, leb128, rows, sparse
from edge_client.wire.errors import RemoteWireError
from edge_client.wire.sparse import GAPS, LEVEL_BITS, Codec, Update
from edge_client.wire.weights import Sparse

BYTES_MAX = (
    16 * 1024
)  # of frames decoded together: 128 bytes for each bit of them are 16 MB, and rows stay in the cache
KEPT_MAX = 4096  # values of an update that is worth it: with more it is not the calls that count
MODELS_MAX = 16  # remembered at a time, each with
LAYOUTS_MAX = 4  # of some 80 bytes a value: 21 MB in all
_HEAD = struct.Struct("<II8sH")

Decoded = Update | RemoteWireError


def decode(frames: Sequence[bytes], sizes: Sequence[int], statistics: int = 0) -> list[Decoded]:
    """Of each frame what `sparse.decode` returns or raises. Memory: as it says, and as BYTES_MAX does."""
    model = _model(tuple(sizes), statistics)
    results: dict[int, Decoded] = {}
    for batch in _batches(frames):
        groups: dict[tuple[int, bytes], list[_Opened]] = {}
        for number in batch:
            opened = model.open(number, frames[number])
            if opened is not None:
                groups.setdefault((opened.codec, opened.counts), []).append(opened)
        for (codec, counts), group in groups.items():
            if len(group) > 1:
                weights = model.read(codec, counts, [opened.body for opened in group])
                results |= {
                    o.number: o.update(w) for o, w in zip(group, weights, strict=True) if w is not None
                }
    return [results.get(number) or _alone(data, sizes, statistics) for number, data in enumerate(frames)]


def _alone(data: bytes, sizes: Sequence[int], statistics: int) -> Decoded:
    try:
        return sparse.decode(data, sizes, statistics)
    except RemoteWireError as error:
        return error


def _batches(frames: Sequence[bytes]) -> Iterator[list[int]]:
    """Numbers of neighbouring frames that are within BYTES_MAX together."""
    batch: list[int] = []
    size = 0
    for number, data in enumerate(frames):
        if batch and size + len(data) > BYTES_MAX:
            yield batch
            batch, size = [], 0
        batch.append(number)
        size += len(data)
    if batch:
        yield batch


@dataclass(frozen=True, slots=True)
class _Opened:
    """One frame: its number, the fields before its weights, its counts as sent, and what lies behind them."""

    number: int
    codec: int
    head: tuple[int, int, bytes, int]
    statistics: npt.NDArray[np.float16]
    counts: bytes
    body: memoryview

    def update(self, weights: Sparse) -> Update:
        version, tag, base_hash, n_samples = self.head
        return Update(version, base_hash, tag, n_samples, weights, self.statistics)


class _Model:
    """Reads the frames of one model."""

    def __init__(self, sizes: tuple[int, ...], statistics: int) -> None:
        self._own = np.asarray(sizes[: len(sizes) - statistics], dtype=np.int64)
        self._total = int(self._own.sum())
        self._changes = sum(sizes) - self._total
        self._layouts: OrderedDict[tuple[int, bytes], rows.Gaps] = OrderedDict()

    def open(self, number: int, data: bytes) -> _Opened | None:
        """A frame's parts; None when it is not one that can be read together with others."""
        at = _HEAD.size + 2 * self._changes
        try:
            kind, codec, body = frame.decode(data)
            if kind is not frame.Kind.UPDATE or codec & ~GAPS not in LEVEL_BITS or len(body) < at:
                return None
            counts = self._counts(codec, body[at:])
        except RemoteWireError:
            return None
        changes = sparse.no_statistics()
        if self._changes:
            changes = np.frombuffer(body[_HEAD.size : at], dtype="<f2").astype(np.float16)
        if counts is None or not np.isfinite(changes).all():
            return None
        return _Opened(number, codec, _HEAD.unpack_from(body), changes, counts, body[at + len(counts) :])

    def read(self, codec: int, counts: bytes, bodies: Sequence[memoryview]) -> list[Sparse | None]:
        """The weights of frames with this codec byte and these counts; None for one that is not right."""
        width = LEVEL_BITS[Codec(codec & ~GAPS)]
        if not codec & GAPS:
            return rows.read_nested(bodies, leb128.read(memoryview(counts), 0)[0], self._own, width)
        layout = self._layouts.get((codec, counts))
        if layout is None:
            layout = rows.Gaps(np.array(self._read(counts), dtype=np.int64), self._own, width)
            self._layouts[codec, counts] = layout
            if len(self._layouts) > LAYOUTS_MAX:
                self._layouts.popitem(last=False)
        return layout.read(bodies)

    def _counts(self, codec: int, body: memoryview) -> bytes | None:
        """What `body` begins with: the counts of its values, None when they are too many; raises RemoteWireError."""
        most = min(KEPT_MAX, 8 * len(body))
        if not codec & GAPS:
            kept, end = leb128.read(body, 0)
            return bytes(body[:end]) if 0 < kept <= min(most, self._total) else None
        for number, known in self._layouts:
            if number == codec and body[: len(known)] == known:
                return known
        end = 0
        for _ in self._own:
            _, end = leb128.read(body, end)
        counts = np.array(self._read(bytes(body[:end])))
        return bytes(body[:end]) if (counts <= self._own).all() and 0 < counts.sum() <= most else None

    def _read(self, counts: bytes) -> list[int]:
        found, end = [], 0
        for _ in self._own:
            count, end = leb128.read(memoryview(counts), end)
            found.append(count)
        return found


@lru_cache(maxsize=MODELS_MAX)
def _model(sizes: tuple[int, ...], statistics: int) -> _Model:
    return _Model(sizes, statistics)
