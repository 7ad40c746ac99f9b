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


def unpack_fixed(data: memoryview, widths: Ints) -> Ints:
    """Inverse of `pack_fixed`; raises RemoteWireError (`bad_stream`) unless `data` has just these values."""
    total = int(widths.sum())
    if len(data) != (total + 7) // 8:
        raise RemoteWireError("bad_stream", f"a stream of {len(data)} B where {total} bits were expected")
    if total % 8 and data[-1] & ((1 << (8 - total % 8)) - 1):
        raise RemoteWireError("bad_stream", "a stream is not padded with zeros")
    values = np.zeros(len(widths), dtype=np.int64)
    if not total:
        return values
    words = np.frombuffer(bytes(data) + bytes(16 - len(data) % 8), dtype=">u8").astype(np.uint64)
    passed = 0
    for begin in range(0, len(widths), BLOCK):
        mine = widths[begin : begin + BLOCK]
        ends = np.cumsum(mine) + passed
        starts, passed = ends - mine, int(ends[-1])
        at, skip = starts >> 6, (starts & 63).astype(np.uint64)
        # A shift by 64 is undefined, so one bit is always shifted on its own.
        joined = (words[at] << skip) | (words[at + 1] >> np.uint64(1) >> (np.uint64(63) - skip))
        values[begin : begin + BLOCK] = joined >> np.uint64(1) >> (63 - mine).astype(np.uint64)
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
