"""Runs of Rice codes with one parameter a run, coded all together: no loop over values, and none over runs.

Golomb (1966) with a power-of-two divisor, Rice & Plaunt (1971), split into two streams: a value v of
a run with parameter r is v >> r in unary in one stream and r bits of remainder in the other.
"""

import math

import numpy as np
import numpy.typing as npt

from edge_client.wire.errors import RemoteWireError

WIDTH_MAX = 31  # bits of a remainder: a gap is below 2**32
BLOCK = 1 << 16  # fields unpacked at a time, so that what they need meanwhile stays in the cache

Ints = npt.NDArray[np.int64]


def parameters(counts: Ints, sizes: Ints) -> Ints:
    """The Rice parameter of each run of `counts` gaps spread over `sizes` places; both sides derive it alike.

    r = floor(log2(0.9624 · (m + 1/2))) for the mean gap m = (size - k) / (k + 1), 0 where that is below 1: the
    best one for geometric gaps (Kiely 2004, eq. 8, with log(1 + 1/m) taken as 1 / (m + 1/2)), in integers alone.
    """
    scaled = 9624 * (2 * (sizes - counts) + counts + 1) // (20000 * (counts + 1))
    # frexp gives the number of bits of an integer below 2**53 exactly.
    lengths: Ints = np.frexp(scaled.astype(np.float64))[1].astype(np.int64)
    return np.clip(lengths - 1, 0, WIDTH_MAX)


def parameter(mean: float) -> int:
    """The Rice parameter of values of this mean, for streams that say which it is; by the same formula."""
    return min(max(math.frexp(0.9624 * (mean + 0.5))[1] - 1, 0), WIDTH_MAX)


def pack_flags(flags: npt.NDArray[np.bool_]) -> bytes:
    """One bit a value, padded to a byte with zeros."""
    return np.packbits(flags).tobytes()


def unpack_flags(data: memoryview, count: int) -> npt.NDArray[np.bool_]:
    """Inverse of `pack_flags` for `count` values; raises RemoteWireError (`bad_stream`)."""
    if len(data) != (count + 7) // 8:
        raise RemoteWireError("bad_stream", f"a stream of {len(data)} B where {count} bits were expected")
    flags = np.unpackbits(np.frombuffer(data, dtype=np.uint8)).astype(np.bool_)
    if flags[count:].any():
        raise RemoteWireError("bad_stream", "a stream is not padded with zeros")
    return flags[:count]


def pack_fixed(values: Ints, widths: Ints) -> bytes:
    """Values of `widths` bits each, most significant bit first, one after another, padded to a byte with zeros."""
    if not len(values):
        return b""
    ends = np.cumsum(widths)
    starts = ends - widths
    word, unsigned = starts >> 6, values.astype(np.uint64)
    room = 64 - (starts & 63) - widths  # bits of the word right of the value; negative where it spills over
    inside = np.where(room >= 0, unsigned << np.maximum(room, 0).astype(np.uint64), 0)
    over = np.flatnonzero(room < 0)
    inside[over] = unsigned[over] >> (-room[over]).astype(np.uint64)
    words = np.zeros(int(ends[-1] >> 6) + 2, dtype=np.uint64)
    first = np.flatnonzero(np.diff(word, prepend=-1))
    words[word[first]] = np.add.reduceat(inside, first)
    words[word[over] + 1] += unsigned[over] << (64 + room[over]).astype(np.uint64)
    return words.astype(">u8").tobytes()[: (int(ends[-1]) + 7) // 8]


class Reader:
    """Takes values off a stream of `pack_fixed`, run after run, where the widths of one follow from those before."""

    def __init__(self, data: memoryview) -> None:
        self._data, self._at = data, 0
        self._flags = np.unpackbits(np.frombuffer(data, dtype=np.uint8))
        # The eight bytes from each byte on: more than WIDTH_MAX bits from any bit of it on.
        self._words: npt.NDArray[np.uint64] = np.ndarray(
            len(data) + 1, dtype=">u8", buffer=bytes(data) + bytes(8), strides=(1,)
        )

    def fixed(self, widths: Ints) -> Ints:
        """The next values, of these widths; raises RemoteWireError (`bad_stream`) where the stream ends before."""
        if len(widths) > BLOCK:
            parts = [self.fixed(widths[i : i + BLOCK]) for i in range(0, len(widths), BLOCK)]
            return np.concatenate(parts)
        if not len(widths):
            return widths
        starts = widths.cumsum()
        total = int(starts[-1])
        starts += self._passed(total)
        starts -= widths
        words = self._words[starts >> 3].astype(np.uint64)
        starts &= 7
        words <<= starts.view(np.uint64)
        # A shift by 64 is undefined, so one bit is always shifted on its own.
        words >>= np.uint64(1)
        words >>= (63 - widths).view(np.uint64)
        values: Ints = words.view(np.int64)
        return values

    def flags(self, count: int) -> npt.NDArray[np.uint8]:
        """The next `count` values of one bit each, 0 or 1; raises as `fixed` does."""
        begin = self._passed(count)
        return self._flags[begin : begin + count]

    def close(self) -> int:
        """The stream's length in bytes; raises RemoteWireError (`bad_stream`) unless zeros fill the last one."""
        if self._at % 8 and self._data[self._at // 8] & (0xFF >> self._at % 8):
            raise RemoteWireError("bad_stream", "a stream is not padded with zeros")
        return (self._at + 7) // 8

    def _passed(self, more: int) -> int:
        """Where the next `more` bits begin."""
        begin = self._at
        self._at += more
        if self._at > len(self._flags):
            raise RemoteWireError("bad_stream", f"a stream of {len(self._data)} B ends before its last value")
        return begin


def unpack_fixed(data: memoryview, widths: Ints) -> Ints:
    """Inverse of `pack_fixed`; raises RemoteWireError (`bad_stream`) unless `data` has just these values."""
    reader = Reader(data)
    values = reader.fixed(widths)
    if reader.close() != len(data):
        raise RemoteWireError("bad_stream", f"a stream of {len(data)} B goes on after its last value")
    return values


def pack_unary(values: Ints) -> bytes:
    """Each value as that many zero bits and a one."""
    if not len(values):
        return b""
    ends = np.cumsum(values + 1) - 1
    bits = np.zeros(int(ends[-1]) + 1, dtype=np.uint8)
    bits[ends] = 1
    return np.packbits(bits).tobytes()


def unpack_unary(data: memoryview, count: int) -> Ints:
    """Inverse of `pack_unary` for `count` values; raises RemoteWireError (`bad_stream`)."""
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8))
    found = int(np.count_nonzero(bits))
    if found != count:  # before positions are listed, each of which takes eight bytes
        raise RemoteWireError("bad_stream", f"the unary stream holds {found} values instead of {count}")
    ends = np.flatnonzero(bits).astype(np.int64)
    if len(bits) - (int(ends[-1]) + 1 if count else 0) >= 8:
        raise RemoteWireError("bad_stream", "the unary stream goes on after its last value")
    return np.diff(ends, prepend=-1) - 1
