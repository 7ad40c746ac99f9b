"""The kept values of an update as bytes, in one of two forms (docs/wire.md §7).

| nested | gaps |
|---|---|
| LEB128 number of values kept | LEB128 number of each tensor |
| nested places: of each tensor those of positive values, then those of negative ones | signs, one bit a value |
| levels - 1, none, 3 or 7 bits a value | levels - 1 |
| | Rice remainders, then quotients, of the gaps between places of a tensor |
| f16 scale of each tensor that keeps a value | the same |

Each stream is padded to a byte. Real updates lie in clusters (rows of a few channels, runs of one sign), which nested
places make use of; those without structure are less as gaps. A value takes a bit at least: fewer bits are refused, so
that what a frame asks for in memory is in proportion to its bytes.
"""

import numpy as np
import numpy.typing as npt

from edge_client.wire import bits, leb128, nested, places
from edge_client.wire.errors import RemoteWireError
from edge_client.wire.weights import Sparse

_HALF_BYTES = 2
_INFINITE = 0x7C00  # as an unsigned number, a float16 from here on is not finite or has a sign

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def encode(weights: Sparse, sizes: Ints, width: int) -> tuple[bytes, bool]:
    """The streams in the form that is less, and whether that is gaps; levels take `width` bits."""
    counts = b"".join(map(leb128.encode, weights.counts.tolist()))
    found, parameters = places.gaps(weights.indices, weights.counts, sizes)
    quotients = found >> parameters
    lengths = weights.kept, int(parameters.sum()), int(quotients.sum()) + len(quotients)
    spread = len(counts) + sum((n + 7) // 8 for n in lengths)
    scales = weights.scales[weights.counts > 0].astype("<f2").tobytes()
    if weights.kept < 0.9 * 8 * spread:  # or there is little beside the bit that each value takes at least
        order, values, widths = _nested(weights, sizes)
        count = leb128.encode(weights.kept)
        halved = len(count) + (int(widths.sum()) + 7) // 8
        if weights.kept <= 8 * halved <= 8 * spread:
            return count + bits.pack_fixed(values, widths) + _levels(weights, width, order) + scales, False
    flags, remainders = bits.pack_flags(weights.negative), found & ((1 << parameters) - 1)
    rest = bits.pack_fixed(remainders, parameters) + bits.pack_unary(quotients)
    return counts + flags + _levels(weights, width) + rest + scales, True


def decode(data: memoryview, sizes: Ints, width: int, gaps: bool) -> Sparse:
    """Inverse of `encode`; raises RemoteWireError: `bad_tensors`, `bad_stream`, `bad_index` or `not_finite`."""
    return (_read_gaps if gaps else _read_nested)(_Body(data), sizes, width)


def _nested(weights: Sparse, sizes: Ints) -> tuple[Ints, Ints, Ints]:
    """The order of the values in that form, and their nested places as values and widths."""
    upper = np.where(weights.negative, np.repeat(sizes, weights.counts), 0)
    signed = np.repeat(2 * places.starts(sizes), weights.counts) + weights.indices + upper
    order = np.argsort(signed, kind="stable")
    return order, *nested.fields(signed[order], 2 * int(sizes.sum()))


def _levels(weights: Sparse, width: int, order: Ints | slice = slice(None)) -> bytes:
    if not width:
        return b""
    levels = np.ones(weights.kept, dtype=np.int64) if weights.levels is None else weights.levels[order]
    return bits.pack_fixed(levels - 1, np.full(weights.kept, width, dtype=np.int64))


def _read_gaps(body: "_Body", sizes: Ints, width: int) -> Sparse:
    counts = np.array([body.count(size) for size in sizes.tolist()], dtype=np.int64)
    kept = body.enough_for(int(counts.sum()))
    scales = body.scales(counts)
    negative = bits.unpack_flags(body.stream(kept), kept)
    levels = body.levels(kept, width)
    parameters = places.parameters(counts, sizes)
    found = bits.unpack_fixed(body.stream(int(parameters.sum())), parameters)
    found |= bits.unpack_unary(body.rest, len(parameters)) << parameters
    return Sparse(counts, scales, places.indices(found, counts, sizes), negative, levels)


def _read_nested(body: "_Body", sizes: Ints, width: int) -> Sparse:
    total = int(sizes.sum())
    kept = body.enough_for(body.count(total))
    signed, length = nested.read(body.rest, kept, 2 * total)
    body.stream(8 * length)
    levels = body.levels(kept, width)
    halves = np.repeat(sizes, 2)
    begins = places.starts(halves)
    by_half = np.diff(np.searchsorted(signed, begins), append=kept)
    signed -= np.repeat(begins, by_half)
    counts = by_half.reshape(-1, 2).sum(axis=1)
    scales = body.scales(counts)
    if len(body.rest):
        raise RemoteWireError("bad_stream", "the update goes on after its last value")
    own = np.repeat(places.starts(sizes), counts)
    where = signed + own
    order = np.argsort(where, kind="stable")
    where = where[order]
    if (where[1:] == where[:-1]).any():
        raise RemoteWireError("bad_index", "a value of the update is both positive and negative")
    negative = np.repeat(np.arange(len(halves)) % 2 > 0, by_half)[order]
    return Sparse(counts, scales, where - own, negative, None if levels is None else levels[order])


class _Body:
    """What is left of a frame's body: streams are taken off its front, scales off its end."""

    def __init__(self, body: memoryview) -> None:
        self.rest, self._bits = body, 8 * len(body)

    def count(self, most: int) -> int:
        """A LEB128 number of values of which there may be `most`."""
        value, end = leb128.read(self.rest, 0)
        if value > most:
            raise RemoteWireError("bad_tensors", f"{value} values where there may be {most}")
        self.rest = self.rest[end:]
        return value

    def enough_for(self, kept: int) -> int:
        """`kept`, of which no more than bits can have been sent."""
        if kept > self._bits:
            raise RemoteWireError(
                "bad_stream", f"{kept} values in {self._bits // 8} B, less than a bit for each"
            )
        return kept

    def stream(self, length: int) -> memoryview:
        """The next `length` bits, padded to a byte."""
        end = (length + 7) // 8
        if end > len(self.rest):
            raise RemoteWireError("bad_stream", "the update ends inside its streams")
        taken, self.rest = self.rest[:end], self.rest[end:]
        return taken

    def levels(self, kept: int, width: int) -> Ints | None:
        """A level for each value; None when they take no bits."""
        if not width:
            return None
        return bits.unpack_fixed(self.stream(kept * width), np.full(kept, width, dtype=np.int64)) + 1

    def scales(self, counts: Ints) -> Floats:
        """By tensor, from the end; 0 where nothing was kept."""
        sent = np.flatnonzero(counts)
        begin = len(self.rest) - _HALF_BYTES * len(sent)
        if begin < 0:
            raise RemoteWireError("bad_stream", "the update ends inside its scales")
        halves = np.frombuffer(self.rest[begin:], dtype="<u2")
        if (halves >= _INFINITE).any():
            raise RemoteWireError("not_finite", "a scale of a tensor is not a finite magnitude")
        self.rest = self.rest[:begin]
        scales = np.zeros(len(counts))
        scales[sent] = halves.view("<f2")
        return scales
