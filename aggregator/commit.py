"""The commit: a full buffer and the current model make the next model. Pure, elementwise float64 (I2)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from aggregator.fold import UNIT_BITS, Fold
from aggregator.hidden import FINE_BITS, Exact
from aggregator.sums import Ints
from edge_client.wire.grid import GRID_MAX
from edge_client.wire.limits import FRACTION_BITS

EXACT_MAX = GRID_MAX << FINE_BITS  # x saturates where x̂ does

Doubles = npt.NDArray[np.float64]
Normalizer = Literal["count", "weight"]


@dataclass(frozen=True, slots=True)
class Calibration:
    """What devices sent before, all of them together: Σ weight · cached update and Σ weight; β says how much it counts.

    CA2FL (Wang et al. 2024, alg. 2) with β = 1; FedStale (Rodio & Neglia 2024, eq. 4) for β between 0 and 1.
    """

    beta: float
    sums: Ints
    weight: int


def mean_update(
    fold: Fold,
    weights: Mapping[int, float],
    *,
    normalizer: Normalizer = "count",
    calibration: Calibration | None = None,
    drifts: Mapping[int, Doubles] | None = None,
    statistics: int = 0,
) -> Doubles:
    """The mean update of a buffer, flat float64 in the model's units, statistics included.

    Σ_base s(base) (S_base - β C_base + w_base D_base) / Z + β H, where `weights` maps each base version to s(τ), S and
    C are the bucket's sums of updates and of what their devices had sent before, H is the mean of `calibration`, and
    `drifts` has D = x_base - x for strategies that mix models (FedAsync: Xie et al. 2019, alg. 1), where present.
    Bases are added in ascending order, so the float64 result is the same wherever it is computed. Z is the buffer's
    total weight, stale or not (`count`; FedBuff, alg. 1: divide by K), or Σ s(base) w_base (`weight`). The last
    `statistics` values are no weights of the model: they move to the devices' weighted mean, whatever the strategy.
    """
    size = sum(fold.sizes)
    edge = size - statistics
    total, observed = np.zeros(edge), np.zeros(statistics)
    heard = 0.0
    for base in sorted(fold.buckets):
        bucket, weight = fold.buckets[base], weights[base]
        part = bucket.sums.dense().astype(np.float64)
        observed += weight * part[edge:]
        part = part[:edge]
        if calibration is not None:
            part -= calibration.beta * bucket.cached.dense()[:edge]
        if drifts is not None:
            part += np.ldexp(bucket.weight * drifts[base][:edge], UNIT_BITS)
        total += weight * part
        heard += weight * bucket.weight
    normal = float(fold.weight) if normalizer == "count" else heard
    mean = np.ldexp(total / normal, -UNIT_BITS) if normal > 0 else np.zeros(edge)
    if calibration is not None and calibration.weight:
        mean += calibration.beta * np.ldexp(calibration.sums[:edge] / calibration.weight, -UNIT_BITS)
    return np.concatenate([mean, np.ldexp(observed / heard, -FRACTION_BITS) if heard > 0 else observed])


def advance(exact: Sequence[Exact], step_exps: Sequence[int], step: Doubles) -> tuple[Exact, ...]:
    """The model x + `step`, which is flat in the model's units, in fine steps (ties to even).

    Values saturate at ±(2**31 - 1) grid steps.
    """
    out = []
    start = 0
    for values, step_exp in zip(exact, step_exps, strict=True):
        move = np.rint(np.ldexp(step[start : start + len(values)], FINE_BITS - step_exp))
        # Bounded before it is an integer: twice the range reaches from either end beyond the other.
        move = np.clip(move, -2.0 * EXACT_MAX, 2.0 * EXACT_MAX).astype(np.int64)
        out.append(np.clip(values + move, -EXACT_MAX, EXACT_MAX))
        start += len(values)
    return tuple(out)
