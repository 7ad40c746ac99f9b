"""Models on an integer grid (I5), as key-frames and as deltas between two versions (docs/wire.md §7).

A tensor is int32 values times a step 2**step_exp fixed in the bundle, so that deltas add exactly in any
grouping. Body of a KEYFRAME or DELTA frame, little-endian:

     0  u32  version that this leads to
     4  u32  version it starts from (a key-frame: the same as above)
     8  8 B  hash of the model that this leads to
    16  u16  tensors
    18  …    per tensor: u32 count k of non-zero values, u8 Rice parameter of gaps, u8 of magnitudes
     …  …    signs | remainders of gaps | remainders of magnitudes - 1 | quotients of gaps | of magnitudes - 1

each stream padded to a byte; a u32 length precedes the quotients of gaps. When k equals the tensor's size no
gaps are sent (their Rice parameter is 255), so a dense key-frame pays nothing for indices.
"""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge_client.wire import frame, rice
from edge_client.wire.errors import LocalWireError, RemoteWireError
from edge_client.wire.limits import TENSOR_COUNT_MAX
from edge_client.wire.sparse import pack

Grid = npt.NDArray[np.int32]
GRID_MAX = 2**31 - 1  # saturation bound of a grid value
HASH_BYTES = 8
_HEAD = struct.Struct("<II8sH")
_ENTRY = struct.Struct("<IBB")
_LENGTH = struct.Struct("<I")
_DENSE = 255


@dataclass(frozen=True, slots=True)
class GridFrame:
    """A decoded key-frame or delta; `values` are flat int32 arrays in the order of the model's table."""

    version: int
    base_version: int
    model_hash: bytes
    keyframe: bool
    values: tuple[Grid, ...]


def model_hash(values: Sequence[Grid]) -> bytes:
    """First 8 bytes of SHA-256 over all tensors as little-endian int32 in table order."""
    digest = hashlib.sha256()
    for tensor in values:
        digest.update(np.ascontiguousarray(tensor, dtype="<i4").tobytes())
    return digest.digest()[:HASH_BYTES]


def step_exponent(magnitude_max: float, bits: int) -> int:
    """Exponent of the grid step that gives values up to `magnitude_max` this many bits; 0.0 counts as 1.0."""
    top = magnitude_max if magnitude_max > 0 else 1.0
    return int(np.ceil(np.log2(top))) - bits


def to_grid(values: npt.NDArray[np.float32], step_exp: int) -> Grid:
    """Round to the grid, ties to even, saturating; flat int32."""
    scaled = np.rint(np.ldexp(values.astype(np.float64).ravel(), -step_exp))
    return np.clip(scaled, -GRID_MAX, GRID_MAX).astype(np.int32)


def from_grid(values: Grid, step_exp: int) -> npt.NDArray[np.float32]:
    """Float32 values of grid points; flat."""
    return np.ldexp(values.astype(np.float64), step_exp).astype(np.float32)


def encode_keyframe(version: int, values: Sequence[Grid]) -> bytes:
    """Encode a whole model."""
    return _encode(frame.Kind.KEYFRAME, version, version, model_hash(values), values)


def encode_delta(version: int, base_version: int, new: Sequence[Grid], old: Sequence[Grid]) -> bytes:
    """Encode the difference that leads from `old` (base_version) to `new` (version)."""
    wide = [n.astype(np.int64) - o for n, o in zip(new, old, strict=True)]
    return _encode(frame.Kind.DELTA, version, base_version, model_hash(new), wide)


def decode(data: bytes, sizes: Sequence[int]) -> GridFrame:
    """Decode a KEYFRAME or DELTA against the sizes of the model's tensors.

    Raises RemoteWireError: the codes of `frame.decode`, `bad_tensors`, `bad_stream` or `bad_index`.
    """
    kind, _, body = frame.decode(data)
    if kind not in (frame.Kind.KEYFRAME, frame.Kind.DELTA):
        raise RemoteWireError("bad_frame", f"a {kind.name} frame where a model was expected")
    if len(body) < _HEAD.size:
        raise RemoteWireError("bad_frame", "the model ends inside its header")
    version, base, digest, count = _HEAD.unpack_from(body)
    if count != len(sizes) or len(body) < _HEAD.size + count * _ENTRY.size:
        raise RemoteWireError("bad_tensors", f"{count} tensors where the model has {len(sizes)}")
    entries = [_ENTRY.unpack_from(body, _HEAD.size + i * _ENTRY.size) for i in range(count)]
    _check_entries(entries, sizes)
    values = _decode_streams(body[_HEAD.size + count * _ENTRY.size :], entries, sizes)
    return GridFrame(version, base, digest, kind is frame.Kind.KEYFRAME, values)


def apply(grid: Sequence[Grid] | None, step: GridFrame, version: int | None) -> tuple[Grid, ...]:
    """The model after a key-frame or delta, its hash verified.

    Raises RemoteWireError (`resync`) when a delta does not start at `version` or the result's hash is not the
    one the frame names: the caller then asks for a key-frame.
    """
    if step.keyframe:
        result = step.values
    else:
        if grid is None or version != step.base_version:
            raise RemoteWireError("resync", f"a delta from version {step.base_version} on version {version}")
        result = tuple((g + s).astype(np.int32) for g, s in zip(grid, step.values, strict=True))
    if model_hash(result) != step.model_hash:
        raise RemoteWireError(
            "resync", f"version {step.version} does not have the hash it was published with"
        )
    return result


def _encode(
    kind: frame.Kind, version: int, base: int, digest: bytes, values: Sequence[npt.NDArray[np.signedinteger]]
) -> bytes:
    if len(values) > TENSOR_COUNT_MAX:
        raise LocalWireError(f"{len(values)} tensors are over {TENSOR_COUNT_MAX}")
    table = bytearray()
    signs, gap_q, gap_r, size_q, size_r = [], [], [], [], []
    for tensor in values:
        flat = tensor.astype(np.int64).ravel()
        where = np.flatnonzero(flat)
        nonzero = flat[where]
        magnitudes = np.abs(nonzero) - 1
        r_size = rice.parameter(float(magnitudes.mean())) if len(where) else 0
        r_gap = _DENSE
        if 0 < len(where) < len(flat):
            gaps = np.diff(where, prepend=-1) - 1
            r_gap = rice.parameter(float(gaps.mean()))
            gap_q.append(rice.quotient_bits(gaps, r_gap))
            gap_r.append(rice.remainder_bits(gaps, r_gap))
        table += _ENTRY.pack(len(where), r_gap, r_size)
        if len(where):
            signs.append((nonzero < 0).astype(np.uint8))
            size_q.append(rice.quotient_bits(magnitudes, r_size))
            size_r.append(rice.remainder_bits(magnitudes, r_size))
    packed_gaps = pack(gap_q)
    body = _HEAD.pack(version, base, digest, len(values)) + bytes(table)
    body += pack(signs) + pack(gap_r) + pack(size_r)
    body += _LENGTH.pack(len(packed_gaps)) + packed_gaps + pack(size_q)
    return frame.encode(kind, body)


def _check_entries(entries: Sequence[tuple[int, int, int]], sizes: Sequence[int]) -> None:
    for (k, r_gap, r_size), size in zip(entries, sizes, strict=True):
        if k > size:
            raise RemoteWireError("bad_tensors", f"{k} values for a tensor of {size}")
        if r_size > rice.R_MAX or (r_gap > rice.R_MAX and r_gap != _DENSE):
            raise RemoteWireError("bad_stream", f"Rice parameters {r_gap}, {r_size} are over {rice.R_MAX}")
        if (r_gap == _DENSE) != (k in (0, size)):
            raise RemoteWireError("bad_stream", "gaps are missing or superfluous")


def _decode_streams(
    body: memoryview, entries: Sequence[tuple[int, int, int]], sizes: Sequence[int]
) -> tuple[Grid, ...]:
    total = sum(k for k, _, _ in entries)
    sparse = sum(k for k, r_gap, _ in entries if r_gap != _DENSE)
    lengths = (
        (total + 7) // 8,
        (sum(k * r for k, r, _ in entries if r != _DENSE) + 7) // 8,
        (sum(k * r for k, _, r in entries) + 7) // 8,
    )
    at = sum(lengths)
    if at + _LENGTH.size > len(body):
        raise RemoteWireError("bad_stream", "the model ends inside its streams")
    gaps_end = at + _LENGTH.size + _LENGTH.unpack_from(body, at)[0]
    if gaps_end > len(body):
        raise RemoteWireError("bad_stream", "the model ends inside its streams")
    signs = rice.BitReader(body[: lengths[0]])
    gap_r = rice.BitReader(body[lengths[0] : lengths[0] + lengths[1]])
    size_r = rice.BitReader(body[lengths[0] + lengths[1] : at])
    gap_q = rice.UnaryReader(body[at + _LENGTH.size : gaps_end], sparse)
    size_q = rice.UnaryReader(body[gaps_end:], total)
    out = []
    for (k, r_gap, r_size), size in zip(entries, sizes, strict=True):
        where = np.arange(k, dtype=np.int64)
        if r_gap != _DENSE:
            gaps = rice.decode(gap_q.take(k), gap_r.take(k * r_gap), r_gap)
            if int(gaps.max()) >= size:
                raise RemoteWireError("bad_index", f"a gap of {int(gaps.max())} in a tensor of {size} values")
            where = np.cumsum(gaps + 1) - 1
            if int(where[-1]) >= size:
                raise RemoteWireError("bad_index", f"index {int(where[-1])} in a tensor of {size} values")
        magnitudes = rice.decode(size_q.take(k), size_r.take(k * r_size), r_size) + 1
        if k and int(magnitudes.max()) > GRID_MAX:
            raise RemoteWireError("bad_index", "a grid value does not fit 32 bits")
        dense = np.zeros(size, dtype=np.int32)
        dense[where] = np.where(signs.take(k).astype(np.bool_), -magnitudes, magnitudes)
        out.append(dense)
    for reader in (signs, gap_r, size_r):
        reader.finish()
    return tuple(out)
