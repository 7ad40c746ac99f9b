"""What an update says of a model's weights, in memory: the values it kept, or all of them.

Flat over all tensors, so that nobody who sends, checks or folds an update loops over tensors. Values are exact
multiples of 2**-24 in float16 forms, which is what the fold adds up in integers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge_client.wire.limits import FRACTION_BITS

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SparseTensor:
    """The kept values of one tensor: sign * level * scale at `indices`, int64, strictly increasing, C order.

    `negative` bool and `levels` int64 >= 1 are of the same length (None: all 1); `scale` is a non-negative
    float that float16 holds exactly.
    """

    indices: Ints
    negative: Bools
    scale: float
    levels: Ints | None = None

    def dense(self, size: int) -> npt.NDArray[np.float32]:
        """The tensor's change as a flat float32 array of `size` values."""
        out = np.zeros(size, dtype=np.float32)
        magnitudes = self.scale if self.levels is None else self.scale * self.levels
        out[self.indices] = np.where(self.negative, -magnitudes, magnitudes)
        return out


@dataclass(frozen=True, slots=True)
class Sparse:
    """The kept values of all tensors: `counts` int64 and `scales` float64 by tensor, the rest by value.

    `indices` int64 count from the start of their own tensor. `levels` int64 >= 1, None where all are 1.
    """

    counts: Ints
    scales: Floats
    indices: Ints
    negative: Bools
    levels: Ints | None = None

    @classmethod
    def of(cls, tensors: Sequence[SparseTensor]) -> "Sparse":
        """From the kept values of each tensor; either all of them have levels or none."""
        levels = [t.levels for t in tensors if t.levels is not None]
        return cls(
            np.array([len(t.indices) for t in tensors], dtype=np.int64),
            np.array([t.scale for t in tensors], dtype=np.float64),
            np.concatenate([np.zeros(0, np.int64), *(t.indices for t in tensors)]),
            np.concatenate([np.zeros(0, np.bool_), *(t.negative for t in tensors)]),
            np.concatenate(levels) if levels else None,
        )

    @property
    def tensors(self) -> tuple[SparseTensor, ...]:
        """The kept values tensor by tensor, as views."""
        edges = np.cumsum(self.counts)[:-1]
        indices, negative = np.split(self.indices, edges), np.split(self.negative, edges)
        levels = [None] * len(indices) if self.levels is None else np.split(self.levels, edges)
        scales = self.scales.tolist()
        return tuple(SparseTensor(*parts) for parts in zip(indices, negative, scales, levels, strict=True))

    @property
    def kept(self) -> int:
        """Number of values sent."""
        return len(self.indices)

    def norm(self) -> float:
        """L2 norm over all tensors."""
        if self.levels is None:
            return float(np.sqrt((self.scales**2 * self.counts).sum()))
        return float(np.linalg.norm(np.repeat(self.scales, self.counts) * self.levels))

    def units(self, offsets: Ints) -> tuple[Ints, Ints]:
        """Distinct flat positions and the values there, int64 in units of 2**-24; tensors start at `offsets`."""
        values = np.repeat(np.ldexp(self.scales, FRACTION_BITS).astype(np.int64), self.counts)
        if self.levels is not None:
            values *= self.levels
        positions = self.indices + np.repeat(offsets[: len(self.counts)], self.counts)
        return positions, np.where(self.negative, -values, values)


@dataclass(frozen=True, slots=True)
class Dense:
    """Every value of every tensor, concatenated: float16 or float32, finite."""

    values: npt.NDArray[np.float16] | npt.NDArray[np.float32]

    @property
    def kept(self) -> int:
        """Number of values sent."""
        return len(self.values)

    def norm(self) -> float:
        """L2 norm over all tensors."""
        return float(np.linalg.norm(self.values.astype(np.float64)))

    def units(self, offsets: Ints) -> tuple[Ints, Ints]:
        """Every position and its value, int64 in units of 2**-24; a float32 is rounded to one, ties to even."""
        del offsets  # everything is there
        values = np.rint(np.ldexp(self.values.astype(np.float64), FRACTION_BITS)).astype(np.int64)
        return np.arange(len(values), dtype=np.int64), values


Weights = Sparse | Dense
