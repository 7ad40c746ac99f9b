"""The uplink codecs: one frame for updates that keep a few values and for those that keep all (docs/wire.md §7).

Body of an UPDATE frame, little-endian:

     0  u32  base version
     4  u32  tag of the uid (topics.Uid.tag)
     8  8 B  hash of the base model
    16  u16  n_samples, saturating
    18  f16  changes of the statistics, all tensors concatenated
     …  …    dense-fp16, dense-fp32: every value of every tensor
             ternary, q4, q8: the kept values (streams.py)

A value is sign * level * scale. The last tensors of a model may be statistics, which are few and travel dense: their
number is not in the frame but known to whoever knows the model's table. Source: STC (Sattler et al. 2019, alg. 1) for
the ternary form.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from edge_client.wire import frame, streams
from edge_client.wire.errors import LocalWireError, RemoteWireError
from edge_client.wire.limits import SAMPLES_MAX, TENSOR_COUNT_MAX
from edge_client.wire.weights import Dense, Sparse, Weights

_HEAD = struct.Struct("<II8sH")
_HALF_BYTES = 2
GAPS = 0x80  # set in the codec byte when the kept values are in that form (streams.py)

Halves = npt.NDArray[np.float16]
Ints = npt.NDArray[np.int64]


class Codec(IntEnum):
    """The lower seven bits of the codec byte of an UPDATE frame."""

    TERNARY = 1
    Q4 = 2
    Q8 = 3
    DENSE_FP16 = 4
    DENSE_FP32 = 5


# Names that capabilities, plans and job specs use. `sign` is a ternary update that keeps every value.
CODECS = {
    "ternary": Codec.TERNARY,
    "q4": Codec.Q4,
    "q8": Codec.Q8,
    "sign": Codec.TERNARY,
    "dense-fp16": Codec.DENSE_FP16,
    "dense-fp32": Codec.DENSE_FP32,
}
LEVEL_BITS = {Codec.TERNARY: 0, Codec.Q4: 3, Codec.Q8: 7}
_DENSE: dict[Codec, np.dtype[np.floating]] = {
    Codec.DENSE_FP16: np.dtype("<f2"),
    Codec.DENSE_FP32: np.dtype("<f4"),
}


def no_statistics() -> Halves:
    """The statistics of a model that has none."""
    return np.zeros(0, dtype=np.float16)


@dataclass(frozen=True, slots=True)
class Update:
    """One device's update of the weights in the model's table, in its order.

    `statistics` float16, flat: the changes of the tensors behind the weights in the table.
    """

    base_version: int
    base_hash: bytes
    tag: int
    n_samples: int
    weights: Weights
    statistics: Halves = field(default_factory=no_statistics)

    def norm(self) -> float:
        """L2 norm over all tensors of weights."""
        return self.weights.norm()


def encode(update: Update, sizes: Sequence[int], codec: Codec = Codec.TERNARY) -> bytes:
    """Encode as an UPDATE frame; `sizes` are those of the tensors of weights.

    Raises LocalWireError when a field does not fit the format.
    """
    if len(update.base_hash) != 8 or len(sizes) > TENSOR_COUNT_MAX:
        raise LocalWireError("an update needs an 8-byte base hash and at most TENSOR_COUNT_MAX tensors")
    head = (
        _HEAD.pack(update.base_version, update.tag, update.base_hash, min(update.n_samples, SAMPLES_MAX))
        + update.statistics.astype("<f2").tobytes()
    )
    if isinstance(update.weights, Dense):
        if codec not in _DENSE or update.weights.kept != sum(sizes):
            raise LocalWireError(f"{update.weights.kept} dense values in an update of codec {codec.name}")
        return frame.encode(
            frame.Kind.UPDATE, head + update.weights.values.astype(_DENSE[codec]).tobytes(), codec
        )
    body, gaps = streams.encode(_checked(update.weights, sizes, codec), np.asarray(sizes), LEVEL_BITS[codec])
    return frame.encode(frame.Kind.UPDATE, head + body, codec | GAPS * gaps)


def decode(data: bytes, sizes: Sequence[int], statistics: int = 0) -> Update:
    """Decode an UPDATE frame against the sizes of the model's tensors, the last `statistics` of them dense.

    Memory is bounded by 10 times the frame and 64 bytes a value sent, of which there are no more than the model has
    values and the frame has bits. Raises RemoteWireError: the codes of `frame.decode`, `bad_codec`, `bad_tensors` (not
    this model's table), `bad_stream`, `bad_index` (outside its tensor) or `not_finite`.
    """
    kind, number, body = frame.decode(data)
    if kind is not frame.Kind.UPDATE:
        raise RemoteWireError("bad_frame", f"a {kind.name} frame where an UPDATE was expected")
    codec, gaps = split(number)
    if len(body) < _HEAD.size:
        raise RemoteWireError("bad_frame", "the update ends inside its header")
    version, tag, base_hash, n_samples = _HEAD.unpack_from(body)
    own = np.asarray(sizes[: len(sizes) - statistics], dtype=np.int64)
    changes, at = _read_statistics(body, _HEAD.size, sum(sizes) - int(own.sum()))
    if codec in _DENSE:
        weights: Weights = _read_dense(body[at:], int(own.sum()), _DENSE[codec])
    else:
        weights = streams.decode(body[at:], own, LEVEL_BITS[codec], gaps)
    return Update(version, base_hash, tag, n_samples, weights, changes)


def split(number: int) -> tuple[Codec, bool]:
    """Codec and whether GAPS is set, of the codec byte of an UPDATE frame; raises RemoteWireError (`bad_codec`)."""
    try:
        codec = Codec(number & ~GAPS)
    except ValueError:
        known = ", ".join(f"{c.value} ({c.name})" for c in Codec)
        raise RemoteWireError("bad_codec", f"unknown update codec {number & ~GAPS}; known: {known}") from None
    if number & GAPS and codec in _DENSE:
        raise RemoteWireError("bad_codec", f"codec {codec.name} has no gaps")
    return codec, bool(number & GAPS)


def bound_bytes(weights: Weights, sizes: Ints, number: int) -> float:
    """Bytes that no code of these weights can be below on average, envelope and table aside.

    A tensor of n values that sends k of them costs n H(k/n) + k b bits, with b bits a value; a dense one its values.
    `sizes` int64 are those of the tensors of weights, `number` is the codec byte.
    """
    if isinstance(weights, Dense):
        return float(weights.values.nbytes)
    share = np.clip(weights.counts / sizes, 1e-12, 1 - 1e-12)
    entropy = -share * np.log2(share) - (1 - share) * np.log2(1 - share)
    mixed = (weights.counts > 0) & (weights.counts < sizes)
    value_bits = 1 + LEVEL_BITS[split(number)[0]]
    return float((sizes * entropy * mixed + weights.counts * value_bits).sum() / 8)


def _checked(weights: Sparse, sizes: Sequence[int], codec: Codec) -> Sparse:
    """The weights, if this codec can send them; LocalWireError otherwise."""
    if codec not in LEVEL_BITS or len(weights.counts) != len(sizes) or (weights.counts > sizes).any():
        raise LocalWireError(f"kept values that do not fit {len(sizes)} tensors or codec {codec.name}")
    most = 1 << LEVEL_BITS[codec]
    levels = weights.levels if weights.levels is not None and weights.kept else np.ones(1)
    if levels.min() < 1 or levels.max() > most:
        raise LocalWireError(f"levels {levels.min()} to {levels.max()} do not fit 1 to {most}")
    return weights


def _read_dense(body: memoryview, count: int, kind: np.dtype[np.floating]) -> Dense:
    if len(body) != count * kind.itemsize:
        raise RemoteWireError("bad_stream", f"{len(body)} B of dense values where {count} were expected")
    values = np.frombuffer(body, dtype=kind)
    if not np.isfinite(values).all():
        raise RemoteWireError("not_finite", "a value of the update is not finite")
    return Dense(values)


def _read_statistics(body: memoryview, at: int, count: int) -> tuple[Halves, int]:
    end = at + count * _HALF_BYTES
    if end > len(body):
        raise RemoteWireError("bad_stream", "the update ends inside its statistics")
    changes = np.frombuffer(body[at:end], dtype="<f2").astype(np.float16)
    if not np.isfinite(changes).all():
        raise RemoteWireError("not_finite", "a change of a statistic is not finite")
    return changes, end
