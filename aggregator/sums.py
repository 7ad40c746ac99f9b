"""Integer sums over a model's values that stay small while few values were touched."""

import numpy as np
import numpy.typing as npt

DENSE_SHARE = 0.1  # from here on 8 B a value are cheaper to keep than 16 B an entry, and quicker to add to

Ints = npt.NDArray[np.int64]


class Sums:
    """Flat int64 sums of `size` values: a list of additions until they are a tenth of the values, then an array.

    Memory: at most 16 B an entry for a tenth of the values plus one update, afterwards 8 B a value.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self.parts: list[tuple[Ints, Ints]] = []
        self.entries = 0
        self.array: Ints | None = None

    def add(self, positions: Ints, values: Ints) -> None:
        """Add int64 `values` at `positions`; both are kept, so the caller leaves them alone."""
        if self.array is not None:
            np.add.at(self.array, positions, values)  # quicker than indexed addition, a third less
            return
        self.parts.append((positions, values))
        self.entries += len(positions)
        if self.entries > DENSE_SHARE * self._size:
            self.array = self._filled()
            self.parts = []

    def merge(self, other: "Sums") -> None:
        """Add what another has; integers, so in any order and grouping the same."""
        for positions, values in other.parts:
            self.add(positions, values)
        if other.array is not None:
            self.array = self.dense() + other.array
            self.parts = []

    def dense(self) -> Ints:
        """All sums as one array, not to be written to."""
        return self._filled() if self.array is None else self.array

    def _filled(self) -> Ints:
        sums = np.zeros(self._size, dtype=np.int64)
        for positions, values in self.parts:
            np.add.at(sums, positions, values)
        return sums
