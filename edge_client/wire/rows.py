"""The streams of updates (streams.py) read many at once: each update is a row of arrays, for `together.decode`.

The readers return the weights of each row, None for one that is not right in any way, which is then read alone.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edge_client.wire import nested, places
from edge_client.wire.weights import Sparse

_INFINITE = 0x7C00  # as an unsigned number, a float16 from here on is not finite or has a sign
_SPARE_BYTES = 8  # behind each row, so that eight bytes can be read from any byte of it on

Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]


class Table:
    """Rows of bytes, each padded with zeros to the same length, from which fields of bits are taken."""

    def __init__(self, rows: Sequence[memoryview | bytes]) -> None:
        self.lengths = np.array([len(row) for row in rows], dtype=np.int64)
        self.width = int(self.lengths.max()) + _SPARE_BYTES
        joined = b"".join(bytes(row).ljust(self.width, b"\0") for row in rows)
        self.bytes: Bytes = np.frombuffer(joined, dtype=np.uint8).reshape(len(rows), self.width)
        self._words: npt.NDArray[np.uint64] = np.ndarray(
            len(joined) - 7, dtype=">u8", buffer=joined, strides=(1,)
        )
        self._begins = (np.arange(len(rows)) * self.width)[:, None]

    def fields(self, starts: Ints, widths: Ints) -> Ints:
        """Values of `widths` bits, at most 31, from bits `starts` of each row on; both of shape (rows or 1, values)."""
        at = starts >> 3
        np.minimum(
            at, self.width - _SPARE_BYTES, out=at
        )  # beyond a row's end: the row is not right, and found so
        words = self._words[at + self._begins].astype(np.uint64)
        words <<= (starts & 7).astype(np.uint64)
        # A shift by 64 is undefined, so one bit is always shifted on its own.
        words >>= np.uint64(1)
        words >>= (63 - widths).astype(np.uint64)
        values: Ints = words.view(np.int64)
        return values

    def padded(self, used: Ints) -> Bools:
        """Whether the last of the bytes that hold `used` bits of each row is filled with zeros."""
        last = np.minimum(used >> 3, self.width - 1)
        rest = self.bytes[np.arange(len(self.bytes)), last]
        right: Bools = ((rest & (0xFF >> (used & 7))) == 0) | ((used & 7) == 0)
        return right


class Gaps:
    """Updates in the form of gaps with these counts: all their streams but one lie at the same places."""

    def __init__(self, counts: Ints, sizes: Ints, width: int) -> None:
        self._counts, self._kept, self._width = counts, int(counts.sum()), width
        counts.flags.writeable = False  # all updates share it
        self._sent = np.flatnonzero(counts)
        self._rice = places.parameters(counts, sizes)
        self._levels = np.full((1, self._kept * (width > 0)), width, dtype=np.int64)
        parts = (self._kept, self._kept * width, int(self._rice.sum()))
        ends = np.cumsum([(used + 7) // 8 for used in parts])
        begins = 8 * (ends - [(used + 7) // 8 for used in parts])
        self._used = begins + parts
        self._fixed_bytes = int(ends[-1])
        self._level_starts = _starts(self._levels) + begins[1]
        self._rice_starts = _starts(self._rice[None]) + begins[2]
        coded = np.where(counts < sizes, counts, 0)
        self._limit = np.repeat(sizes, coded)
        self._before = np.repeat(places.starts(coded), coded)  # gaps in the tensors before that of each gap
        self._coded = np.repeat(coded > 0, counts)
        self._places = np.arange(self._kept, dtype=np.int64) - np.repeat(places.starts(counts), counts)

    def read(self, bodies: Sequence[memoryview]) -> list[Sparse | None]:
        """The weights that bodies, behind their counts, hold."""
        found: list[Sparse | None] = [None] * len(bodies)
        tail = 2 * len(self._sent)
        quotients = [body[self._fixed_bytes : len(body) - tail] for body in bodies]
        numbers = [i for i, body in enumerate(bodies) if len(body) >= self._fixed_bytes + tail]
        ends, right = _unary([quotients[i] for i in numbers], len(self._rice))
        numbers = [number for number, is_right in zip(numbers, right, strict=True) if is_right]
        if numbers:
            self._take([bodies[i] for i in numbers], ends, numbers, found)
        return found

    def _take(
        self, bodies: Sequence[memoryview], ends: Ints, numbers: Sequence[int], found: list[Sparse | None]
    ) -> None:
        table = Table([body[: self._fixed_bytes] for body in bodies])
        scales, right = _scales([body[len(body) - 2 * len(self._sent) :] for body in bodies])
        for used in self._used:
            right &= table.padded(np.full(len(bodies), used))
        gaps = table.fields(self._rice_starts, self._rice[None])
        gaps |= (np.diff(ends, axis=1, prepend=-1) - 1) << self._rice
        right &= (gaps < self._limit).all(
            axis=1
        )  # a sum of others may overflow: that row is not right already
        sums = np.zeros((len(bodies), len(self._rice) + 1), dtype=np.int64)
        np.cumsum(gaps + 1, axis=1, out=sums[:, 1:])
        indices = sums[:, 1:] - sums[:, self._before] - 1
        right &= (indices < self._limit).all(axis=1)
        if len(self._rice) < self._kept:
            every = np.tile(self._places, (len(bodies), 1))
            every[:, self._coded] = indices
            indices = every
        negative = np.unpackbits(table.bytes[:, : (self._kept + 7) // 8], axis=1).view(np.bool_)[
            :, : self._kept
        ]
        levels = table.fields(self._level_starts, self._levels) + 1 if self._width else None
        by_tensor = np.zeros((len(bodies), len(self._counts)))
        by_tensor[:, self._sent] = scales
        for row in np.flatnonzero(right).tolist():
            own = None if levels is None else levels[row]
            found[numbers[row]] = Sparse(self._counts, by_tensor[row], indices[row], negative[row], own)


def _starts(widths: Ints) -> Ints:
    starts: Ints = np.cumsum(widths, axis=1) - widths
    return starts


def _scales(tails: Sequence[memoryview]) -> tuple[npt.NDArray[np.float16], Bools]:
    """The scales of each row, and whether they are finite magnitudes."""
    halves = np.frombuffer(b"".join(tails), dtype="<u2").reshape(len(tails), -1)
    right: Bools = np.logical_and.reduce(halves < _INFINITE, axis=1)
    return halves.view(np.float16), right


def _unary(parts: Sequence[memoryview], count: int) -> tuple[Ints, list[bool]]:
    """Of parts of `count` unary codes each, where each code ends; and which parts are such, the others left out."""
    if not parts:
        return np.zeros((0, count), dtype=np.int64), []
    joined = np.frombuffer(b"".join(parts), dtype=np.uint8)
    stops = 8 * np.cumsum([len(part) for part in parts])
    ones = np.flatnonzero(np.unpackbits(joined))
    edges = np.searchsorted(ones, np.concatenate([[0], stops]))
    used = (
        np.concatenate([ones, [0]])[edges[1:] - 1] + 1
        if count
        else stops - 8 * np.array(list(map(len, parts)))
    )
    right = (np.diff(edges) == count) & (stops - used < 8)
    starts = np.concatenate([[0], stops[:-1]])[right]
    rows = ones[edges[:-1][right][:, None] + np.arange(count)] - starts[:, None]
    return rows, right.tolist()


def read_nested(bodies: Sequence[memoryview], kept: int, sizes: Ints, width: int) -> list[Sparse | None]:
    """The weights of updates in the form of nested places with `kept` values each, behind that number."""
    table = Table(bodies)
    total = int(sizes.sum())
    signed, used = _places(table, kept, 2 * total)
    right = table.padded(used)
    at = 8 * ((used + 7) // 8)
    levels = None
    if width:
        widths = np.full((1, kept), width, dtype=np.int64)
        levels = table.fields(_starts(widths) + at[:, None], widths) + 1
        right &= table.padded(at + kept * width)
        at += 8 * ((kept * width + 7) // 8)
    halves = np.repeat(sizes, 2)
    begins = places.starts(halves)
    rows = np.arange(len(bodies))[:, None]
    edges = np.searchsorted((signed + rows * 2 * total).ravel(), (begins + rows * 2 * total).ravel())
    by_half = np.diff(edges, append=signed.size).reshape(len(bodies), -1)
    counts = by_half.reshape(len(bodies), -1, 2).sum(axis=2)
    right &= table.lengths == at // 8 + 2 * (counts > 0).sum(axis=1)
    half = np.repeat(np.tile(np.arange(len(halves)), len(bodies)), by_half.ravel()).reshape(signed.shape)
    own = places.starts(sizes)[half >> 1]
    where = signed - begins[half] + own
    order = np.argsort(where, axis=1, kind="stable")
    where = np.take_along_axis(where, order, axis=1)
    right &= (where[:, 1:] != where[:, :-1]).all(axis=1)
    negative = np.take_along_axis(half & 1 > 0, order, axis=1)
    indices = where - own  # which is in the order of the tensors already
    if levels is not None:
        levels = np.take_along_axis(levels, order, axis=1)
    found: list[Sparse | None] = [None] * len(bodies)
    for row in np.flatnonzero(right).tolist():
        halves_sent = np.frombuffer(bodies[row][int(at[row]) // 8 :], dtype="<u2")
        if (halves_sent >= _INFINITE).any():
            continue
        scales = np.zeros(len(sizes))
        scales[np.flatnonzero(counts[row])] = halves_sent.view("<f2")
        level = None if levels is None else levels[row]
        found[row] = Sparse(counts[row], scales, indices[row], negative[row], level)
    return found


def _places(table: Table, count: int, size: int) -> tuple[Ints, Ints]:
    """The nested places of each row, and the bits that they take; see nested.read."""
    rows = len(table.bytes)
    free = size - count
    known = np.full((rows, (1 << count.bit_length()) + 1), free, dtype=np.int64)
    known[:, 0] = 0
    used = np.zeros(rows, dtype=np.int64)
    for level in reversed(range(count.bit_length() if free else 0)):
        step = 2 << level
        own = known[:, 1 << level : count + 1 : step]
        low, high = known[:, ::step][:, : own.shape[1]], known[:, step::step][:, : own.shape[1]]
        possible = high - low + 1
        base, edge = nested.widths(possible)
        value = table.fields(_starts(base) + used[:, None], base)
        used += base.sum(axis=1)
        long = value >= edge
        # The last bits of those that are longer follow all the others.
        last = table.fields(used[:, None] + np.cumsum(long, axis=1) - long, np.ones((1, 1), dtype=np.int64))
        value += long * (value - edge + last)
        used += long.sum(axis=1)
        value -= edge >> 1
        value += low
        value += possible * (value < low)
        # A row that has ended before is not right, and its values must stay within their neighbours all the same.
        np.minimum(value, high, out=value)
        own[:] = np.maximum(value, low)
    return known[:, 1 : count + 1] + np.arange(count), used
