"""Which of many places are taken, by halves: binary interpolative coding, level by level.

k of n places are taken. c_i, the number of free places before the i-th taken one, never falls: 0 = c_0 <= c_1 <= ...
<= c_k <= n - k. The one in the middle is sent first, then those in the middle of each half, and so on, each as one of
the values left between its two neighbours that are known already: where places cluster there are few, and in a run of
taken places a single one, which takes no bits. There is no parameter, and whatever bits arrive say k places.
A value of m possible ones takes floor(log2 m) bits, some of them one more; those next to either neighbour do not.

Source: Moffat & Stuiver (2000), "Binary interpolative coding for effective index compression", with the levels of
their recursion in turn, so that both sides code a whole level at once.
"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from edge_client.wire import bits

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def fields(places: Ints, size: int) -> tuple[Ints, Ints]:
    """Strictly increasing `places` below `size` as values and widths of `bits.pack_fixed`, both int64."""
    count = len(places)
    known = _ladder(count, size - count)
    known[1 : count + 1] = places - np.arange(count)
    levels = list(_levels(known, count))
    if not levels:
        return known[:0], known[:0]
    own, low, high = (np.concatenate(parts) for parts in zip(*levels, strict=True))
    value, possible = own - low, high - low + 1
    base, edge = widths(possible)
    value += edge >> 1
    value -= np.where(value < possible, 0, possible)
    long = value >= edge
    value += np.where(long, edge, 0)
    ends = np.cumsum([len(level[0]) for level in levels])
    return _in_turn(value >> long, value & 1, base, long, ends)


def read(data: memoryview, count: int, size: int) -> tuple[Ints, int]:
    """The `count` <= `size` places that `data` begins with, and their length in bytes.

    Memory is bounded by 50 bytes a place and 10 times `data`. Raises RemoteWireError (`bad_stream`) when the bytes end
    before or are not padded with zeros.
    """
    known = _ladder(count, size - count)
    reader = bits.Reader(data)
    for own, low, high in _levels(known, count):
        possible = high - low
        possible += 1
        base, edge = widths(possible)
        value = reader.fixed(base)
        (long,) = (value >= edge).nonzero()
        value[long] += value[long] - edge[long] + reader.flags(len(long))
        value -= edge >> 1
        value += low
        # The last few of the possible values follow the first ones, which are next to the lower neighbour.
        value += possible * (value < low)
        own[:] = value
    return known[1 : count + 1] + np.arange(count), reader.close()


def _ladder(count: int, free: int) -> Ints:
    """Room for c_0 = 0, c_1 to c_count, and `free` behind them up to a power of two."""
    known = np.full((1 << count.bit_length()) + 1, free, dtype=np.int64)
    known[0] = 0
    return known


def _levels(known: Ints, count: int) -> Iterator[tuple[Ints, Ints, Ints]]:
    """Views of `known`: the values of each level, and their neighbours below and above, of the levels before."""
    for level in reversed(range(count.bit_length() if known[-1] else 0)):
        step = 2 << level
        own = known[1 << level : count + 1 : step]
        yield own, known[::step][: len(own)], known[step::step][: len(own)]


def widths(possible: Ints) -> tuple[Ints, Ints]:
    """By number of possible values: the bits that all of them take, and how many take no more."""
    length = np.frexp(possible)[1].astype(np.int64)
    return length - 1, (1 << length) - possible


def _in_turn(first: Ints, second: Ints, widths: Ints, long: Bools, ends: Ints) -> tuple[Ints, Ints]:
    """Fields and their widths: of each level, which end at `ends`, all first parts and then the one bit of the long."""
    values, sizes = [], []
    for begin, end in pairwise([0, *ends.tolist()]):
        rest = second[begin:end][long[begin:end]]
        values += [first[begin:end], rest]
        sizes += [widths[begin:end], np.ones_like(rest)]
    return np.concatenate(values), np.concatenate(sizes)
