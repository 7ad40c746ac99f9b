"""Makes a sparse ternary update of a training result, with error feedback.

u = clip(delta) + residual; C(u) keeps the top share of all values, each as sign * scale of its tensor. The
caller keeps u - C(u) when the update is accepted and u when its base was not usable, so nothing is lost
(error feedback: Karimireddy et al. 2019, alg. 2; ternary form: Sattler et al. 2019, alg. 1). Pure.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from edge_client.wire.limits import HALF_MAX
from edge_client.wire.sparse import Halves, SparseTensor, no_statistics

_NORM_SLACK = 1.0 - 1e-9  # covers float64 rounding in the receiver's own sum of squares

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Compressed:
    """C(u) per tensor, and the two float16 residuals, little-endian, all tensors concatenated."""

    tensors: tuple[SparseTensor, ...]
    residual_accepted: bytes
    residual_kept: bytes


def compress(delta: Sequence[Floats], residual: bytes | None, density: float, norm_max: float) -> Compressed:
    """Compress one training result.

    `delta` has a flat float32 array per tensor; `residual` is the float16 state left by the last update (None:
    zeros). `density` in (0, 1] is the share of all values to keep, at least one. The norm of the result is at
    most `norm_max`: what error feedback adds beyond it stays in the residual. Raises ValueError when the
    residual has another size than the model or a value is not finite.
    """
    sizes = [len(d) for d in delta]
    u = _clipped(np.concatenate(delta), norm_max) + _state(residual, sum(sizes))
    if not np.isfinite(u).all():
        raise ValueError("the update holds a value that is not finite")
    kept = _top(np.abs(u), density)
    bounds = np.cumsum([0, *sizes])
    edges = np.searchsorted(kept, bounds)
    rows = [kept[a:b] for a, b in pairwise(edges)]
    scales = _scales([np.abs(u[r]) for r in rows], norm_max)
    tensors, sent = [], np.zeros_like(u)
    for row, scale, start in zip(rows, scales, bounds[:-1], strict=True):
        chosen = row if scale > 0 else row[:0]
        negative = u[chosen] < 0
        sent[chosen] = np.where(negative, -scale, scale)
        tensors.append(SparseTensor(chosen - start, negative, scale))
    return Compressed(tuple(tensors), _bytes(u - sent), _bytes(u))


def halved(changes: Sequence[Floats]) -> Halves:
    """The changes of the statistics as they travel, flat and without a residual.

    What float16 rounds off needs none: a statistic is observed anew in every round.
    """
    if not changes:
        return no_statistics()
    return np.clip(np.concatenate(changes), -HALF_MAX, HALF_MAX).astype(np.float16)


def _clipped(delta: Floats, norm_max: float) -> Floats:
    norm = float(np.linalg.norm(delta.astype(np.float64)))
    return delta if norm <= norm_max else delta * np.float32(norm_max / norm)


def _state(residual: bytes | None, count: int) -> Floats:
    if residual is None:
        return np.zeros(count, dtype=np.float32)
    if len(residual) != 2 * count:
        raise ValueError(f"a residual of {len(residual)} B does not fit {count} values")
    return np.frombuffer(residual, dtype="<f2").astype(np.float32)


def _top(magnitudes: Floats, density: float) -> npt.NDArray[np.int64]:
    """Increasing positions of the largest magnitudes, zeros left out."""
    count = min(max(round(density * len(magnitudes)), 1), len(magnitudes))
    top = np.argpartition(magnitudes, len(magnitudes) - count)[len(magnitudes) - count :]
    return np.sort(top[magnitudes[top] > 0]).astype(np.int64)


def _scales(kept: Sequence[Floats], norm_max: float) -> list[float]:
    """Mean magnitude of each tensor's kept values as a float16 value, scaled down to `norm_max` together."""
    means = [float(k.mean(dtype=np.float64)) if len(k) else 0.0 for k in kept]
    norm = math.sqrt(sum(m * m * len(k) for m, k in zip(means, kept, strict=True)))
    factor = min(1.0, norm_max * _NORM_SLACK / norm) if norm > 0 else 1.0
    return [_float16_below(m * factor) for m in means]


def _float16_below(value: float) -> float:
    """The largest float16 value that is not above `value`: rounding up could pass the norm bound."""
    nearest = np.float16(min(value, HALF_MAX))
    return float(np.nextafter(nearest, np.float16(0))) if float(nearest) > value else float(nearest)


def _bytes(values: Floats) -> bytes:
    return np.clip(values, -HALF_MAX, HALF_MAX).astype("<f2").tobytes()
