"""The uplink codecs: one frame for updates that keep a few values and for those that keep all (docs/wire.md §7).

Body of an UPDATE frame, little-endian:

     0  u32  base version
     4  u32  tag of the uid (topics.Uid.tag)
     8  8 B  hash of the base model
    16  u16  n_samples, saturating
    18  u16  tensors of weights
    20  …    ternary, q4, q8: per tensor LEB128 count k and, when k > 0, f16 scale
     …  f16  changes of the statistics, all tensors concatenated
     …  …    ternary, q4, q8: four streams, each padded to a byte
                 signs, one bit per value (1 is negative)
                 levels - 1, none, 3 or 7 bits per value
                 Rice remainders of the index gaps
                 Rice quotients of the index gaps
             dense-fp16, dense-fp32: every value of every tensor

A value is sign * level * scale. Where a tensor keeps all its values no gaps are sent. The Rice parameter of a tensor
follows from k and its size (bits.parameters). The last tensors of a model may be statistics, which are few and
travel dense: their number is not in the frame but known to whoever knows the model's table. Sources: STC (Sattler
et al. 2019, alg. 1) for the ternary form; Rice & Plaunt 1971.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from edge_client.wire import bits, frame, leb128, places
from edge_client.wire.errors import LocalWireError, RemoteWireError
from edge_client.wire.limits import SAMPLES_MAX, TENSOR_COUNT_MAX
from edge_client.wire.weights import Dense, Sparse, Weights

_HEAD = struct.Struct("<II8sHH")
_SCALE = struct.Struct("<e")
_HALF_BYTES = 2

Halves = npt.NDArray[np.float16]
Ints = npt.NDArray[np.int64]


class Codec(IntEnum):
    """The codec byte of an UPDATE frame."""

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
    head = _HEAD.pack(
        update.base_version,
        update.tag,
        update.base_hash,
        min(update.n_samples, SAMPLES_MAX),
        len(sizes),
    )
    statistics = update.statistics.astype("<f2").tobytes()
    if isinstance(update.weights, Dense):
        if codec not in _DENSE or update.weights.kept != sum(sizes):
            raise LocalWireError(f"{update.weights.kept} dense values in an update of codec {codec.name}")
        values = update.weights.values.astype(_DENSE[codec]).tobytes()
        return frame.encode(frame.Kind.UPDATE, head + statistics + values, codec)
    table, streams = _encoded(update.weights, np.asarray(sizes, dtype=np.int64), codec)
    return frame.encode(frame.Kind.UPDATE, head + table + statistics + streams, codec)


def decode(data: bytes, sizes: Sequence[int], statistics: int = 0) -> Update:
    """Decode an UPDATE frame against the sizes of the model's tensors, the last `statistics` of them dense.

    Memory is bounded by 64 bytes a value sent, of which there are no more than the model has, and 8 times the
    frame. Raises RemoteWireError: the codes of `frame.decode`, `bad_codec`, `bad_tensors` (not this model's table),
    `bad_stream`, `bad_index` (outside its tensor) or `not_finite`.
    """
    kind, number, body = frame.decode(data)
    if kind is not frame.Kind.UPDATE:
        raise RemoteWireError("bad_frame", f"a {kind.name} frame where an UPDATE was expected")
    try:
        codec = Codec(number)
    except ValueError:
        known = ", ".join(f"{c.value} ({c.name})" for c in Codec)
        raise RemoteWireError("bad_codec", f"unknown update codec {number}; known: {known}") from None
    if len(body) < _HEAD.size:
        raise RemoteWireError("bad_frame", "the update ends inside its header")
    version, tag, base_hash, n_samples, count = _HEAD.unpack_from(body)
    own = sizes[: len(sizes) - statistics]
    if count != len(own):
        raise RemoteWireError("bad_tensors", f"{count} tensors where the model has {len(own)}")
    at, counts, scales = _HEAD.size, np.zeros(0, dtype=np.int64), np.zeros(0)
    if codec in LEVEL_BITS:
        counts, scales, at = _read_table(body, own)
    changes, at = _read_statistics(body, at, sum(sizes) - sum(own))
    rest = body[at:]
    if codec in _DENSE:
        weights: Weights = _read_dense(rest, sum(own), _DENSE[codec])
    else:
        weights = _read_sparse(rest, counts, scales, np.asarray(own, dtype=np.int64), LEVEL_BITS[codec])
    return Update(version, base_hash, tag, n_samples, weights, changes)


def bound_bytes(weights: Weights, sizes: Ints, codec: int) -> float:
    """Bytes that no code of these weights can be below on average, envelope and table aside.

    A tensor of n values that sends k of them costs n H(k/n) + k b bits, with b bits a value; a dense one its values.
    `sizes` int64 are those of the tensors of weights.
    """
    if isinstance(weights, Dense):
        return float(weights.values.nbytes)
    share = np.clip(weights.counts / sizes, 1e-12, 1 - 1e-12)
    entropy = -share * np.log2(share) - (1 - share) * np.log2(1 - share)
    mixed = (weights.counts > 0) & (weights.counts < sizes)
    value_bits = 1 + LEVEL_BITS[Codec(codec)]
    return float((sizes * entropy * mixed + weights.counts * value_bits).sum() / 8)


def _encoded(weights: Sparse, sizes: Ints, codec: Codec) -> tuple[bytes, bytes]:
    if codec not in LEVEL_BITS or len(weights.counts) != len(sizes) or (weights.counts > sizes).any():
        raise LocalWireError(f"kept values that do not fit {len(sizes)} tensors or codec {codec.name}")
    width = LEVEL_BITS[codec]
    levels = np.ones(weights.kept, dtype=np.int64) if weights.levels is None else weights.levels
    if weights.kept and (levels.min() < 1 or levels.max() > 1 << width):
        raise LocalWireError(f"levels {levels.min()} to {levels.max()} do not fit {width} bits")
    table = bytearray()
    for k, scale in zip(weights.counts.tolist(), weights.scales.tolist(), strict=True):
        table += leb128.encode(k)
        if k:
            table += _SCALE.pack(scale)
    gaps, parameters = places.gaps(weights.indices, weights.counts, sizes)
    streams = np.packbits(weights.negative).tobytes()
    streams += bits.pack_fixed(levels - 1, np.full(len(levels), width, dtype=np.int64)) if width else b""
    streams += bits.pack_fixed(gaps & ((1 << parameters) - 1), parameters)
    return bytes(table), streams + bits.pack_unary(gaps >> parameters)


def _read_sparse(
    body: memoryview, counts: Ints, scales: npt.NDArray[np.float64], sizes: Ints, width: int
) -> Sparse:
    total = int(counts.sum())
    parameters = places.parameters(counts, sizes)
    lengths = [(n + 7) // 8 for n in (total, total * width, int(parameters.sum()))]
    edges = np.cumsum([0, *lengths]).tolist()
    if edges[-1] > len(body):
        raise RemoteWireError("bad_stream", "the update ends inside its streams")
    signs, levels, remainders = (body[a:b] for a, b in pairwise(edges))
    negative = bits.unpack_flags(signs, total)
    level = bits.unpack_fixed(levels, np.full(total, width, dtype=np.int64)) + 1 if width else None
    gaps = bits.unpack_unary(body[edges[-1] :], len(parameters)) << parameters
    gaps |= bits.unpack_fixed(remainders, parameters)
    return Sparse(counts, scales, places.indices(gaps, counts, sizes), negative, level)


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


def _read_table(body: memoryview, sizes: Sequence[int]) -> tuple[Ints, npt.NDArray[np.float64], int]:
    counts, scales = [], []
    at = _HEAD.size
    for size in sizes:
        k, at = leb128.read(body, at)
        if k > size:
            raise RemoteWireError("bad_tensors", f"{k} values for a tensor of {size}")
        scale = 0.0
        if k:
            if at + _SCALE.size > len(body):
                raise RemoteWireError("bad_frame", "the update ends inside its tensor table")
            (scale,) = _SCALE.unpack_from(body, at)
            at += _SCALE.size
            if not 0.0 <= scale < np.inf:
                raise RemoteWireError("not_finite", f"scale {scale} of a tensor is not a finite magnitude")
        counts.append(k)
        scales.append(scale)
    return np.array(counts, dtype=np.int64), np.array(scales, dtype=np.float64), at
