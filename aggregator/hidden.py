"""The hidden state x̂ that devices train from, and how far the server's exact model x is ahead of it. Pure.

Each version moves x̂ by C(x - x̂), which every device applies in the same integers; what C leaves out stays in
x - x̂ and comes with a later version. Sources: EF21-P (Gruntkowska et al. 2023, alg. 1), QAFeL (Ortega &
Jafarkhani 2023, alg. 1); a server that keeps x exact: MCM (Philippenko & Dieuleveut 2021).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge_client.wire.grid import GRID_MAX, Grid

FINE_BITS = 8  # x has this many bits below a grid step: then it rounds like float32 (ADR 9)
LAG_MAX = GRID_MAX  # of x - x̂ in fine steps, so that it is stored as int32; beyond it x̂ moves by more
_ABOVE_MEAN = 0.75  # of the next power of two: from here on that is the nearer one

Exact = npt.NDArray[np.int64]  # a tensor of x in fine steps, 2**-FINE_BITS of a grid step


@dataclass(frozen=True, slots=True)
class State:
    """x̂ as flat int32 arrays in grid steps, and x - x̂ in fine steps; both in the order of the model's table."""

    model: tuple[Grid, ...]
    lag: tuple[Grid, ...]

    @classmethod
    def start(cls, model: tuple[Grid, ...]) -> "State":
        """Version 0: x̂ = x."""
        return cls(model, tuple(np.zeros_like(values) for values in model))

    def exact(self) -> tuple[Exact, ...]:
        """The server's model x in fine steps."""
        return tuple(_fine(m) + lag for m, lag in zip(self.model, self.lag, strict=True))

    @property
    def lossless(self) -> bool:
        """True when x̂ is x rounded to the grid: nothing was left out."""
        return all(int(np.abs(lag).max(initial=0)) <= 2 ** (FINE_BITS - 1) for lag in self.lag)

    def lag_norm(self, step_exps: Sequence[int]) -> float:
        """L2 norm of x - x̂ in the model's own units."""
        squares = (
            float(np.square(np.ldexp(lag.astype(np.float64), step - FINE_BITS)).sum())
            for lag, step in zip(self.lag, step_exps, strict=True)
        )
        return math.sqrt(sum(squares))


def follow(
    exact: Sequence[Exact],
    model: Sequence[Grid],
    step_exps: Sequence[int],
    density: float,
    *,
    statistics: int = 0,
) -> State:
    """The state after x̂ ← x̂ + C(x - x̂), for `exact` = x and `model` = x̂ before.

    C keeps the `density` share of all weights that differ most, in the model's units; in each tensor these move
    by one and the same power of two of grid steps, the nearest to their mean difference. At density 1, and for the
    last `statistics` tensors, which are few, x̂ becomes x rounded to the grid, ties to even. The same bytes wherever
    it is computed (I2): every choice is made in integers or exact float64, ties in favour of the lower index.
    """
    edge = len(model) - statistics
    behind = [x - _fine(m) for x, m in zip(exact, model, strict=True)]
    moves = [np.rint(np.ldexp(b.astype(np.float64), -FINE_BITS)).astype(np.int64) for b in behind]
    differ = sum(int(np.count_nonzero(m)) for m in moves[:edge])
    count = min(max(1, round(density * sum(len(m) for m in moves[:edge]))), differ)
    if density < 1 and count:
        moves[:edge] = _ternary(behind[:edge], moves[:edge], step_exps, count)
    after = [
        np.clip(m.astype(np.int64) + move, -GRID_MAX, GRID_MAX).astype(np.int32)
        for m, move in zip(model, moves, strict=True)
    ]
    lag = [(x - _fine(m)).astype(np.int32) for x, m in zip(exact, after, strict=True)]
    return State(tuple(after), tuple(lag))


def _ternary(
    behind: Sequence[Exact], whole: Sequence[Exact], step_exps: Sequence[int], count: int
) -> list[Exact]:
    """Moves of the `count` values that lag most; `whole` are the moves that would leave nothing out."""
    sizes = [
        np.where(w != 0, np.ldexp(np.abs(b).astype(np.float64), step), 0.0)
        for b, w, step in zip(behind, whole, step_exps, strict=False)
    ]
    chosen = _largest(np.concatenate(sizes), count)
    moves, start = [], 0
    for b, w in zip(behind, whole, strict=True):
        mine = chosen[start : start + len(b)]
        start += len(b)
        move = np.where(mine, np.sign(b) << _exponent(np.abs(b[mine])), 0)
        moves.append(np.where(np.abs(b - (move << FINE_BITS)) > LAG_MAX, w, move))
    return moves


def _largest(sizes: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.bool_]:
    """Where the `count` largest are; partitioning by value, as which of equals comes first differs by machine."""
    cut = np.partition(sizes, len(sizes) - count)[len(sizes) - count]
    chosen: npt.NDArray[np.bool_] = sizes > cut
    chosen[np.flatnonzero(sizes == cut)[: count - int(np.count_nonzero(chosen))]] = True
    return chosen


def _exponent(sizes: Exact) -> int:
    """Exponent of the power of two, in grid steps, nearest to the mean of these sizes in fine steps; at least 0."""
    if not len(sizes):
        return 0
    fraction, exponent = math.frexp(int(sizes.sum()) / len(sizes) / 2**FINE_BITS)
    return max(0, exponent if fraction >= _ABOVE_MEAN else exponent - 1)


def _fine(values: Grid) -> Exact:
    return values.astype(np.int64) << FINE_BITS
