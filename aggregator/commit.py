"""The commit: a full buffer and the current model make the next model. Pure, elementwise float64 (I2)."""

from collections.abc import Mapping, Sequence

import numpy as np

from aggregator.fold import Fold
from aggregator.hidden import FINE_BITS, Exact
from edge_client.wire.grid import GRID_MAX
from edge_client.wire.limits import FRACTION_BITS

EXACT_MAX = GRID_MAX << FINE_BITS  # x saturates where x̂ does


def commit(
    exact: Sequence[Exact],
    step_exps: Sequence[int],
    fold: Fold,
    weights: Mapping[int, float],
    server_lr: float,
    *,
    statistics: int = 0,
) -> tuple[Exact, ...]:
    """The model after x ← x + server_lr · Σ_base s(base) · S_base / Z, in fine steps (ties to even).

    `weights` maps each base version to s(τ); bases are added in ascending order, so the float64 result is
    the same wherever it is computed. Z is the buffer's total weight, stale or not (FedBuff, alg. 1: divide
    by K). The last `statistics` tensors are no weights: they move to the devices' weighted mean, neither
    stretched by `server_lr` nor shrunk by staleness. Values saturate at ±(2**31 - 1) grid steps. Without updates
    the model stays as it is.
    """
    if not fold.count:
        return tuple(exact)
    total = np.zeros(sum(len(values) for values in exact), dtype=np.float64)
    heard = 0.0
    for base in sorted(fold.buckets):
        total += weights[base] * fold.buckets[base].sums.astype(np.float64)
        heard += weights[base] * fold.buckets[base].weight
    edge = sum(len(values) for values in exact[: len(exact) - statistics])
    total[:edge] *= server_lr / fold.weight
    if heard > 0:
        total[edge:] /= heard
    out = []
    start = 0
    for values, step_exp in zip(exact, step_exps, strict=True):
        move = np.rint(np.ldexp(total[start : start + len(values)], FINE_BITS - step_exp - FRACTION_BITS))
        # Bounded before it is an integer: twice the range reaches from either end beyond the other.
        move = np.clip(move, -2.0 * EXACT_MAX, 2.0 * EXACT_MAX).astype(np.int64)
        out.append(np.clip(values + move, -EXACT_MAX, EXACT_MAX))
        start += len(values)
    return tuple(out)
