"""Makes an update of a training result, with error feedback.

u = clip(delta) + residual; C(u) is what travels. The caller keeps u - C(u) when the update is accepted and u when
its base was not usable, so nothing is lost (error feedback: Karimireddy et al. 2019, alg. 2; STC: Sattler et al.
2019, alg. 1). Pure.

| codec | C(u) |
|---|---|
| `ternary` | the largest values of all tensors together, as sign * the mean of its tensor's kept magnitudes (STC) |
| `q4`, `q8` | the same values with 3 or 7 bits of magnitude, in steps of the tensor's largest / 8 or / 128 |
| `sign` | every value as sign * the mean magnitude of its tensor (Bernstein et al. 2018, arXiv:1802.04434) |
| `dense-fp16`, `dense-fp32` | every value, rounded |
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge_client.wire.limits import HALF_MAX
from edge_client.wire.sparse import CODECS, LEVEL_BITS, Codec, Halves, no_statistics
from edge_client.wire.weights import Dense, Sparse, Weights

_NORM_SLACK = 1.0 - 1e-9  # covers float64 rounding in the receiver's own sum of squares

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Compressed:
    """C(u), the codec of its frame, and the two float16 residuals, little-endian, all tensors concatenated."""

    weights: Weights
    codec: Codec
    residual_accepted: bytes
    residual_kept: bytes


def compress(
    delta: Sequence[Floats],
    residual: bytes | None,
    density: float,
    norm_max: float,
    codec: str = "ternary",
) -> Compressed:
    """Compress one training result.

    `delta` has a flat float32 array per tensor; `residual` is the float16 state left by the last update (None:
    zeros). `density` in (0, 1] is the share of all values that a sparse codec keeps, at least one. The norm of
    the result is at most `norm_max`: what error feedback adds beyond it stays in the residual. Raises ValueError
    when the residual has another size than the model, a value is not finite, or the codec is not known.
    """
    if codec not in CODECS:
        raise ValueError(f"unknown codec {codec!r}; known: {', '.join(CODECS)}")
    sizes = np.array([len(d) for d in delta], dtype=np.int64)
    u = _clipped(np.concatenate(delta), norm_max) + _state(residual, int(sizes.sum()))
    if not np.isfinite(u).all():
        raise ValueError("the update holds a value that is not finite")
    kind = CODECS[codec]
    weights: Weights
    if kind in LEVEL_BITS:
        kept = np.arange(len(u)) if codec == "sign" else _top(np.abs(u), density)
        weights = _kept(u, kept, sizes, LEVEL_BITS[kind], norm_max)
    else:
        weights = _dense(u, kind, norm_max)
    return Compressed(weights, kind, _bytes(u - _sent(weights, sizes)), _bytes(u))


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


def _top(magnitudes: Floats, density: float) -> Ints:
    """Increasing positions of the largest magnitudes, zeros left out."""
    count = min(max(round(density * len(magnitudes)), 1), len(magnitudes))
    top = np.argpartition(magnitudes, len(magnitudes) - count)[len(magnitudes) - count :]
    return np.sort(top[magnitudes[top] > 0]).astype(np.int64)


def _kept(u: Floats, kept: Ints, sizes: Ints, width: int, norm_max: float) -> Sparse:
    """The values at `kept` in one scale a tensor and levels of `width` bits; a tensor of scale 0 keeps none."""
    starts = np.cumsum(sizes) - sizes
    owner = np.searchsorted(starts, kept, side="right") - 1
    magnitudes = np.abs(u[kept]).astype(np.float64)
    counts = np.bincount(owner, minlength=len(sizes))
    if width == 0:
        levels = None
        scales = np.bincount(owner, magnitudes, len(sizes)) / np.maximum(counts, 1)
    else:
        top = np.zeros(len(sizes))
        np.maximum.at(top, owner, magnitudes)
        scales = _half_below(top / 2**width)
        ratio = np.divide(magnitudes, scales[owner], out=np.ones_like(magnitudes), where=scales[owner] > 0)
        levels = np.clip(np.rint(ratio), 1, 2**width).astype(np.int64)
    norm = float(np.linalg.norm(scales[owner] * (1 if levels is None else levels)))
    scales = _half_below(scales * (min(1.0, norm_max * _NORM_SLACK / norm) if norm > 0 else 1.0))
    sound = scales[owner] > 0
    kept, owner = kept[sound], owner[sound]
    return Sparse(
        np.bincount(owner, minlength=len(sizes)).astype(np.int64),
        scales,
        kept - starts[owner],
        u[kept] < 0,
        None if levels is None else levels[sound],
    )


def _dense(u: Floats, kind: Codec, norm_max: float) -> Dense:
    bounded = _clipped(u, norm_max * _NORM_SLACK)
    if kind is Codec.DENSE_FP32:
        return Dense(bounded)
    half = _half_below(np.abs(bounded).astype(np.float64))  # rounded towards zero, so the norm stays bounded
    return Dense(np.copysign(half, bounded).astype(np.float16))


def _sent(weights: Weights, sizes: Ints) -> Floats:
    if isinstance(weights, Dense):
        return weights.values.astype(np.float32)
    return np.concatenate([t.dense(n) for t, n in zip(weights.tensors, sizes.tolist(), strict=True)])


def _half_below(values: Doubles) -> Doubles:
    """The largest float16 values that are not above `values` >= 0: rounding up could pass the norm bound."""
    nearest = np.minimum(values, HALF_MAX).astype(np.float16)
    below = np.nextafter(nearest, np.float16(0))
    return np.where(nearest.astype(np.float64) > values, below, nearest).astype(np.float64)


def _bytes(values: Floats) -> bytes:
    return np.clip(values, -HALF_MAX, HALF_MAX).astype("<f2").tobytes()
