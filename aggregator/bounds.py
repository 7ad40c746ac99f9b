"""Defences that weigh updates of a buffer, never refuse them: a bound on norms, a cap on one device's share. Pure.

Both are fixed when a version is committed and hold for the buffer after it, so replaying the log gives the same
bytes whatever the order of the updates (I2). A gain is a whole number of 1/256, so that sums stay integers.
Norm bounding: Sun et al. 2019, arXiv:1911.07963, §4; a bound that follows a quantile: Andrew et al. 2021, NeurIPS.
"""

import math
from collections.abc import Iterable, Mapping

import msgspec

GAIN_BITS = 8
GAIN_ONE = 1 << GAIN_BITS
BINS_PER_OCTAVE = 4  # a bound is at most a fifth above the quantile it stands for
NORMS_MIN = 16  # fewer norms than this bound nothing
WINDOW_VERSIONS = 8  # versions whose norms count together: follows the training, rides out one odd buffer
SPARE_DEVICES = 2  # times as many devices as could fill a buffer: it fills while half of them are away

_EDGES = tuple(2.0 ** (i / BINS_PER_OCTAVE - 1) for i in range(BINS_PER_OCTAVE + 1))


class Bounds(msgspec.Struct, frozen=True):
    """What one buffer's updates are weighed by; None bounds nothing.

    `norm` is the L2 norm to which an update is scaled down; `device_updates` is how many updates of one device
    count in a buffer.
    """

    norm: float | None = None
    device_updates: int | None = None

    def gain(self, norm: float, before: int) -> int:
        """The gain of an update of this norm, when its device has `before` updates in the buffer already."""
        if self.device_updates is not None and before >= self.device_updates:
            return 0
        if self.norm is None or norm <= self.norm:
            return GAIN_ONE
        return math.floor(GAIN_ONE * self.norm / norm)


def norm_bin(norm: float) -> int:
    """The bin of a norm, a quarter of an octave wide: exact, so that counts of shards add up."""
    if norm <= 0:
        return -1074 * BINS_PER_OCTAVE
    fraction, exponent = math.frexp(norm)
    part = max(i for i in range(BINS_PER_OCTAVE) if fraction >= _EDGES[i])
    return exponent * BINS_PER_OCTAVE + part


def upper_edge(number: int) -> float:
    """The norm at the upper end of a bin."""
    exponent, part = divmod(number, BINS_PER_OCTAVE)
    return math.ldexp(_EDGES[part + 1], exponent)


def norm_bound(histograms: Iterable[Mapping[int, int]], quantile: float, factor: float) -> float | None:
    """`factor` times the `quantile` of the norms in these histograms (bin: count); None for too few norms."""
    total: dict[int, int] = {}
    for histogram in histograms:
        for number, count in histogram.items():
            total[number] = total.get(number, 0) + count
    wanted = quantile * sum(total.values())
    if sum(total.values()) < NORMS_MIN:
        return None
    seen = 0
    for number in sorted(total):
        seen += total[number]
        if seen >= wanted:
            break
    return factor * upper_edge(number)


def device_updates(share_max: float, buffer_size: int, participants: int) -> int | None:
    """How many updates of one device may count in a buffer; None while there are too few devices to share it."""
    if participants * share_max < SPARE_DEVICES:
        return None
    return max(1, math.ceil(share_max * buffer_size))
