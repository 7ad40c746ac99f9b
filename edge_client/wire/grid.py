"""Models on an integer grid (I5), as key-frames and as deltas between two versions (docs/wire.md §8).

A tensor is int32 values times a step 2**step_exp fixed in the bundle, so that deltas add exactly in any
grouping. Body of a KEYFRAME or DELTA frame, little-endian:

     0  u32  version that this leads to
     4  u32  version it starts from (a key-frame: the same as above)
     8  8 B  hash of the model that this leads to
    16  u16  tensors
    18  …    per tensor: LEB128 count k of non-zero values; when k > 0 also a u16: Rice parameter of the gaps
             (bits 0 to 4), of the magnitudes (5 to 9), exponent of their unit (10 to 14)
     …  …    signs | remainders of gaps | remainders of magnitudes | quotients of gaps, then of magnitudes

each stream padded to a byte. A magnitude is n units of 2**exponent and coded as n - 1; a tensor whose magnitudes
are all one unit has parameter 31 and sends none, so a ternary delta costs positions and signs only. When k
equals the tensor's size no gaps are sent (their parameter is 0), so a dense key-frame pays nothing for indices.
"""

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge_client.wire import frame, leb128, rice
from edge_client.wire.errors import LocalWireError, RemoteWireError
from edge_client.wire.limits import TENSOR_COUNT_MAX
from edge_client.wire.sparse import pack

Grid = npt.NDArray[np.int32]
GRID_MAX = 2**31 - 1  # saturation bound of a grid value
HASH_BYTES = 8
_HEAD = struct.Struct("<II8sH")
_ENTRY = struct.Struct("<H")
_FIELD_BITS = 5  # of each of the three fields of an entry
_FIELD_MAX = 2**_FIELD_BITS - 1
_ONE_UNIT = 31  # in place of the magnitudes' Rice parameter: each is one unit


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


def merge(steps: Iterable[GridFrame]) -> bytes:
    """One delta that leads where these lead one after another; grid values are added, so it is exact.

    Takes one step at a time, so that an iterator needs no memory for all of them. Raises ValueError when they do
    not follow each other, one is a key-frame, or there is none.
    """
    total: list[npt.NDArray[np.int64]] = []
    start, last = 0, None
    for step in steps:
        if step.keyframe or (last is not None and step.base_version != last.version):
            raise ValueError(f"no delta from version {step.base_version if last is None else last.version}")
        if last is None:
            start = step.base_version
            total = [np.zeros(len(values), dtype=np.int64) for values in step.values]
        for i, values in enumerate(step.values):
            total[i] += values
        last = step
    if last is None:
        raise ValueError("no delta to merge")
    return _encode(frame.Kind.DELTA, last.version, start, last.model_hash, total)


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
    if count != len(sizes):
        raise RemoteWireError("bad_tensors", f"{count} tensors where the model has {len(sizes)}")
    entries, at = _read_table(body, sizes)
    values = _decode_streams(body[at:], entries)
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
        table += leb128.encode(len(where))
        if not len(where):
            continue
        nonzero = flat[where]
        signs.append((nonzero < 0).astype(np.uint8))
        r_gap = 0
        if len(where) < len(flat):
            gaps = np.diff(where, prepend=-1) - 1
            r_gap = rice.parameter(float(gaps.mean()))
            gap_q.append(rice.quotient_bits(gaps, r_gap))
            gap_r.append(rice.remainder_bits(gaps, r_gap))
        unit, counts = _units(np.abs(nonzero))
        r_size = _ONE_UNIT
        if counts.any():
            r_size = min(rice.parameter(float(counts.mean())), _ONE_UNIT - 1)
            size_q.append(rice.quotient_bits(counts, r_size))
            size_r.append(rice.remainder_bits(counts, r_size))
        table += _ENTRY.pack(r_gap | r_size << _FIELD_BITS | unit << 2 * _FIELD_BITS)
    body = _HEAD.pack(version, base, digest, len(values)) + bytes(table)
    body += pack(signs) + pack(gap_r) + pack(size_r) + pack([*gap_q, *size_q])
    return frame.encode(kind, body)


def _units(magnitudes: rice.Ints) -> tuple[int, rice.Ints]:
    """Exponent of the largest power of two that divides all, and how many units each is, less one."""
    together = int(np.bitwise_or.reduce(magnitudes))
    exponent = (together & -together).bit_length() - 1
    return exponent, (magnitudes >> exponent) - 1


@dataclass(frozen=True, slots=True)
class _Entry:
    """A tensor's line in the table."""

    size: int
    k: int
    r_gap: int = 0
    r_size: int = _ONE_UNIT
    unit: int = 0

    @property
    def gaps(self) -> int:
        """Gaps that are sent."""
        return self.k if self.k < self.size else 0

    @property
    def counts(self) -> int:
        """Magnitudes that are sent."""
        return self.k if self.r_size != _ONE_UNIT else 0


def _read_table(body: memoryview, sizes: Sequence[int]) -> tuple[list[_Entry], int]:
    entries, at = [], _HEAD.size
    for size in sizes:
        k, at = leb128.read(body, at)
        if k > size:
            raise RemoteWireError("bad_tensors", f"{k} values for a tensor of {size}")
        if k == 0:
            entries.append(_Entry(size, 0))
            continue
        if at + _ENTRY.size > len(body):
            raise RemoteWireError("bad_frame", "the model ends inside its tensor table")
        (fields,) = _ENTRY.unpack_from(body, at)
        at += _ENTRY.size
        parts = [fields >> shift & _FIELD_MAX for shift in range(0, 3 * _FIELD_BITS, _FIELD_BITS)]
        if fields >> 3 * _FIELD_BITS or (k == size and parts[0]):
            raise RemoteWireError("bad_stream", f"an entry of the tensor table is {fields:#06x}")
        entries.append(_Entry(size, k, *parts))
    return entries, at


def _decode_streams(body: memoryview, entries: Sequence[_Entry]) -> tuple[Grid, ...]:
    ends = np.cumsum(
        [
            (sum(e.k for e in entries) + 7) // 8,
            (sum(e.gaps * e.r_gap for e in entries) + 7) // 8,
            (sum(e.counts * e.r_size for e in entries) + 7) // 8,
        ]
    )
    if int(ends[-1]) > len(body):
        raise RemoteWireError("bad_stream", "the model ends inside its streams")
    signs = rice.BitReader(body[: ends[0]])
    gap_r = rice.BitReader(body[ends[0] : ends[1]])
    size_r = rice.BitReader(body[ends[1] : ends[2]])
    quotients = rice.UnaryReader(body[ends[2] :], sum(e.gaps + e.counts for e in entries))
    places = [_places(entry, quotients, gap_r) for entry in entries]
    out = []
    for entry, where in zip(entries, places, strict=True):
        magnitudes = _magnitudes(entry, quotients, size_r)
        dense = np.zeros(entry.size, dtype=np.int32)
        dense[where] = np.where(signs.take(entry.k).astype(np.bool_), -magnitudes, magnitudes)
        out.append(dense)
    for reader in (signs, gap_r, size_r):
        reader.finish()
    return tuple(out)


def _places(entry: _Entry, quotients: rice.UnaryReader, remainders: rice.BitReader) -> rice.Ints:
    if not entry.gaps:
        return np.arange(entry.k, dtype=np.int64)
    gaps = rice.decode(quotients.take(entry.k), remainders.take(entry.k * entry.r_gap), entry.r_gap)
    # A hostile quotient could overflow the running sum, so each gap is bounded before it is added.
    if int(gaps.max()) >= entry.size:
        raise RemoteWireError("bad_index", f"a gap of {int(gaps.max())} in a tensor of {entry.size} values")
    where = np.cumsum(gaps + 1) - 1
    if int(where[-1]) >= entry.size:
        raise RemoteWireError("bad_index", f"index {int(where[-1])} in a tensor of {entry.size} values")
    return where


def _magnitudes(entry: _Entry, quotients: rice.UnaryReader, remainders: rice.BitReader) -> rice.Ints:
    counts = np.ones(entry.k, dtype=np.int64)
    if entry.counts:
        r = entry.r_size
        counts += rice.decode(quotients.take(entry.k), remainders.take(entry.k * r), r)
    if entry.k and int(counts.max()) > GRID_MAX >> entry.unit:
        raise RemoteWireError("bad_index", "a grid value does not fit 32 bits")
    return counts << entry.unit
