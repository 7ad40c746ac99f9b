"""The fold: updates become integer sums per base version, so order, shards and replay cannot matter (I2).

Every float16 value is a whole multiple of 2**-24, and a defence may weigh an update in steps of 2**-8 (bounds.py),
so sums in units of 2**-32 are exact: no rounding, and the same bytes whatever the order. Statistics, which no gain
scales, are in units of 2**-24. Job validation keeps all sums below 2**63 (spec.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from aggregator.bounds import GAIN_BITS, GAIN_ONE
from aggregator.sums import Sums
from edge_client.wire.limits import FRACTION_BITS
from edge_client.wire.sparse import Update

UNIT_BITS = FRACTION_BITS + GAIN_BITS  # sums of weights are in units of 2**-UNIT_BITS

Weighting = Literal["uniform", "samples"]


@dataclass(frozen=True, slots=True)
class Cached:
    """What a device sent before: the update, and the gain and weight it was folded with."""

    update: Update
    gain: int
    weight: int


@dataclass(slots=True)
class Bucket:
    """Of the updates trained from one base version: Σ weight · gain · update, and Σ weight · cached update before it.

    `weight` is the sum of their weights, `count` their number.
    """

    sums: Sums
    cached: Sums
    weight: int = 0
    count: int = 0


@dataclass(slots=True)
class Fold:
    """The buffer of a job: one bucket a base version.

    `sizes` are those of all tensors of the model's table, statistics at its end included.
    """

    sizes: Sequence[int]
    weighting: Weighting
    buckets: dict[int, Bucket] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Updates in the buffer."""
        return sum(bucket.count for bucket in self.buckets.values())

    @property
    def weight(self) -> int:
        """Sum of their weights: updates or samples."""
        return sum(bucket.weight for bucket in self.buckets.values())

    def weigh(self, update: Update) -> int:
        """The weight of an update: 1, or as many as it saw samples."""
        return max(1, update.n_samples) if self.weighting == "samples" else 1

    def add(self, update: Update, gain: int = GAIN_ONE, cached: Cached | None = None) -> None:
        """Add one update to the bucket of its base version, `gain` / GAIN_ONE of it.

        `cached` is what its device sent before, for cached calibration. An update of gain 0 is counted and weighs
        nothing.
        """
        offsets = np.cumsum([0, *self.sizes], dtype=np.int64)
        bucket = self._bucket(update.base_version)
        weight = self.weigh(update) if gain else 0
        bucket.count += 1
        bucket.weight += weight
        positions, values = update.weights.units(offsets)
        bucket.sums.add(positions, values * (weight * gain))
        if len(update.statistics):
            exact = np.ldexp(update.statistics.astype(np.float64), FRACTION_BITS).astype(np.int64)
            end = int(offsets[-1])
            bucket.sums.add(np.arange(end - len(exact), end), exact * weight)
        if cached is not None and weight:
            positions, values = cached.update.weights.units(offsets)
            bucket.cached.add(positions, values * (weight * cached.gain))

    def merge(self, other: "Fold") -> None:
        """Add the partial sums of another shard of the same buffer."""
        for base, theirs in other.buckets.items():
            ours = self._bucket(base)
            ours.sums.merge(theirs.sums)
            ours.cached.merge(theirs.cached)
            ours.weight += theirs.weight
            ours.count += theirs.count

    def _bucket(self, base: int) -> Bucket:
        if base not in self.buckets:
            size = sum(self.sizes)
            self.buckets[base] = Bucket(Sums(size), Sums(size))
        return self.buckets[base]
