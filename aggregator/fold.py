"""The fold: updates become integer sums per base version, so order, shards and replay cannot matter (I2).

Every float16 value is a whole multiple of 2**-24, so a sum in units of 2**-24 is exact: no rounding, and
the same bytes whatever the order. Job validation keeps the sums below 2**63 (spec.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from edge_client.wire.limits import FRACTION_BITS
from edge_client.wire.sparse import Update

Weighting = Literal["uniform", "samples"]


@dataclass(slots=True)
class Bucket:
    """Sums of the updates trained from one base version: Σ weight · update, in units of 2**-24, flat int64."""

    sums: npt.NDArray[np.int64]
    weight: int = 0
    count: int = 0


class Fold:
    """The buffer of a job: one bucket a base version."""

    def __init__(self, sizes: Sequence[int], weighting: Weighting) -> None:
        """`sizes` are those of all tensors of the model's table, statistics at its end included."""
        self._offsets = np.cumsum([0, *sizes], dtype=np.int64)
        self._weighting = weighting
        self.buckets: dict[int, Bucket] = {}

    @property
    def count(self) -> int:
        """Updates in the buffer."""
        return sum(bucket.count for bucket in self.buckets.values())

    @property
    def weight(self) -> int:
        """Sum of their weights: updates or samples."""
        return sum(bucket.weight for bucket in self.buckets.values())

    def add(self, update: Update) -> None:
        """Add one update to the bucket of its base version."""
        bucket = self.buckets.get(update.base_version)
        if bucket is None:
            bucket = Bucket(np.zeros(int(self._offsets[-1]), dtype=np.int64))
            self.buckets[update.base_version] = bucket
        weight = max(1, update.n_samples) if self._weighting == "samples" else 1
        update.weights.add_to(bucket.sums, self._offsets, weight)
        if len(update.statistics):
            exact = np.ldexp(update.statistics.astype(np.float64), FRACTION_BITS).astype(np.int64)
            bucket.sums[-len(exact) :] += exact * weight
        bucket.weight += weight
        bucket.count += 1
