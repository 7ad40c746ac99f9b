"""The uplink codec: top-k ternary updates, one Rice parameter and one scale per tensor (docs/wire.md §7).

Body of an UPDATE frame with codec 1, little-endian:

     0  u32  base version
     4  u32  tag of the uid (topics.Uid.tag)
     8  8 B  hash of the base model
    16  u16  n_samples, saturating
    18  u16  tensors of weights
    20  …    per tensor: LEB128 count k; when k > 0 also u8 Rice parameter and f16 scale
     …  f16  changes of the statistics, all tensors concatenated
     …  …    signs, one bit per value (1 is negative), padded to a byte
     …  …    Rice remainders of the index gaps, padded to a byte
     …  …    Rice quotients of the index gaps, padded to a byte

A value is sign * scale. The last tensors of a model may be statistics, which are few and travel dense: their
number is not in the frame but known to whoever knows the model's table. Sources: STC (Sattler et al. 2019,
alg. 1) for the ternary form; Rice & Plaunt 1971.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edge_client.wire import frame, rice
from edge_client.wire.errors import LocalWireError, RemoteWireError
from edge_client.wire.limits import SAMPLES_MAX, TENSOR_COUNT_MAX

CODEC_TERNARY = 1
_HEAD = struct.Struct("<II8sHH")
_ENTRY = struct.Struct("<Be")
_HALF_BYTES = 2
_LEB_BYTES_MAX = 5  # a count is below 2**32


Halves = npt.NDArray[np.float16]


def no_statistics() -> Halves:
    """The statistics of a model that has none."""
    return np.zeros(0, dtype=np.float16)


@dataclass(frozen=True, slots=True)
class SparseTensor:
    """The non-zero part of one tensor's update, flattened in C order.

    `indices` int64, strictly increasing; `negative` bool of the same length; `scale` a non-negative float
    that float16 holds exactly.
    """

    indices: npt.NDArray[np.int64]
    negative: npt.NDArray[np.bool_]
    scale: float

    def dense(self, size: int) -> npt.NDArray[np.float32]:
        """The update as a flat float32 array of `size` values."""
        out = np.zeros(size, dtype=np.float32)
        out[self.indices] = np.where(self.negative, -self.scale, self.scale)
        return out


@dataclass(frozen=True, slots=True)
class Update:
    """One device's update: a sparse tensor for each tensor of weights in the model's table, in its order.

    `statistics` float16, flat: the changes of the tensors behind the weights in the table.
    """

    base_version: int
    base_hash: bytes
    tag: int
    n_samples: int
    tensors: tuple[SparseTensor, ...]
    statistics: Halves = field(default_factory=no_statistics)

    def norm(self) -> float:
        """L2 norm over all tensors of weights."""
        return float(np.sqrt(sum(t.scale * t.scale * len(t.indices) for t in self.tensors)))


def encode(update: Update) -> bytes:
    """Encode as an UPDATE frame; raise LocalWireError when a field does not fit the format."""
    if len(update.base_hash) != 8 or len(update.tensors) > TENSOR_COUNT_MAX:
        raise LocalWireError("an update needs an 8-byte base hash and at most TENSOR_COUNT_MAX tensors")
    table = bytearray()
    signs, quotients, remainders = [], [], []
    for tensor in update.tensors:
        k = len(tensor.indices)
        table += _leb(k)
        if k == 0:
            continue
        gaps = np.diff(tensor.indices, prepend=-1) - 1
        if int(gaps.min()) < 0:
            raise LocalWireError("indices of an update must increase")
        r = rice.parameter(float(gaps.mean()))
        table += _ENTRY.pack(r, tensor.scale)
        signs.append(tensor.negative.astype(np.uint8))
        quotients.append(rice.quotient_bits(gaps, r))
        remainders.append(rice.remainder_bits(gaps, r))
    head = _HEAD.pack(
        update.base_version,
        update.tag,
        update.base_hash,
        min(update.n_samples, SAMPLES_MAX),
        len(update.tensors),
    )
    dense = update.statistics.astype("<f2").tobytes()
    body = head + bytes(table) + dense + pack(signs) + pack(remainders) + pack(quotients)
    return frame.encode(frame.Kind.UPDATE, body, CODEC_TERNARY)


def decode(data: bytes, sizes: Sequence[int], statistics: int = 0) -> Update:
    """Decode an UPDATE frame against the sizes of the model's tensors, the last `statistics` of them dense.

    Raises RemoteWireError: the codes of `frame.decode`, `bad_codec`, `bad_tensors` (not this model's table),
    `bad_stream`, `bad_index` (outside its tensor) or `not_finite`.
    """
    kind, codec, body = frame.decode(data)
    if kind is not frame.Kind.UPDATE:
        raise RemoteWireError("bad_frame", f"a {kind.name} frame where an UPDATE was expected")
    if codec != CODEC_TERNARY:
        raise RemoteWireError("bad_codec", f"unknown update codec {codec}; known: {CODEC_TERNARY} (ternary)")
    if len(body) < _HEAD.size:
        raise RemoteWireError("bad_frame", "the update ends inside its header")
    version, tag, base_hash, n_samples, count = _HEAD.unpack_from(body)
    weights = sizes[: len(sizes) - statistics]
    if count != len(weights):
        raise RemoteWireError("bad_tensors", f"{count} tensors where the model has {len(weights)}")
    entries, at = _read_table(body, weights)
    changes, at = _read_statistics(body, at, sum(sizes) - sum(weights))
    total = sum(k for k, _, _ in entries)
    signs_end = at + (total + 7) // 8
    remainders_end = signs_end + (sum(k * r for k, r, _ in entries) + 7) // 8
    if remainders_end > len(body):
        raise RemoteWireError("bad_stream", "the update ends inside its streams")
    signs = rice.BitReader(body[at:signs_end])
    remainders = rice.BitReader(body[signs_end:remainders_end])
    quotients = rice.UnaryReader(body[remainders_end:], total)
    tensors = []
    for (k, r, scale), size in zip(entries, weights, strict=True):
        gaps = rice.decode(quotients.take(k), remainders.take(k * r), r)
        # A hostile quotient could overflow the running sum, so each gap is bounded before it is added.
        if k and int(gaps.max()) >= size:
            raise RemoteWireError("bad_index", f"a gap of {int(gaps.max())} in a tensor of {size} values")
        indices = np.cumsum(gaps + 1) - 1
        if k and int(indices[-1]) >= size:
            raise RemoteWireError("bad_index", f"index {int(indices[-1])} in a tensor of {size} values")
        tensors.append(SparseTensor(indices, signs.take(k).astype(np.bool_), scale))
    signs.finish()
    remainders.finish()
    return Update(version, base_hash, tag, n_samples, tuple(tensors), changes)


def _read_statistics(body: memoryview, at: int, count: int) -> tuple[Halves, int]:
    end = at + count * _HALF_BYTES
    if end > len(body):
        raise RemoteWireError("bad_stream", "the update ends inside its statistics")
    changes = np.frombuffer(body[at:end], dtype="<f2").astype(np.float16)
    if not np.isfinite(changes).all():
        raise RemoteWireError("not_finite", "a change of a statistic is not finite")
    return changes, end


def _read_table(body: memoryview, sizes: Sequence[int]) -> tuple[list[tuple[int, int, float]], int]:
    entries = []
    at = _HEAD.size
    for size in sizes:
        k, at = _read_leb(body, at)
        if k > size:
            raise RemoteWireError("bad_tensors", f"{k} values for a tensor of {size}")
        r, scale = 0, 0.0
        if k:
            if at + _ENTRY.size > len(body):
                raise RemoteWireError("bad_frame", "the update ends inside its tensor table")
            r, scale = _ENTRY.unpack_from(body, at)
            at += _ENTRY.size
            if r > rice.R_MAX:
                raise RemoteWireError("bad_stream", f"Rice parameter {r} is over {rice.R_MAX}")
            if not 0.0 <= scale < np.inf:
                raise RemoteWireError("not_finite", f"scale {scale} of a tensor is not a finite magnitude")
        entries.append((k, r, scale))
    return entries, at


def pack(runs: Sequence[rice.Bits]) -> bytes:
    """Concatenate bit runs and pack them into bytes, padding with zeros."""
    return np.packbits(np.concatenate(runs)).tobytes() if runs else b""


def _leb(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_leb(body: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for i in range(_LEB_BYTES_MAX):
        if at + i >= len(body):
            break
        value |= (body[at + i] & 0x7F) << (7 * i)
        if not body[at + i] & 0x80:
            return value, at + i + 1
    raise RemoteWireError("bad_frame", "a tensor count is not a LEB128 number below 2**32")
