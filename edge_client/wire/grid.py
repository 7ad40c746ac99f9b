"""Models on an integer grid (I5), as key-frames and as deltas between two versions (docs/wire.md §8).

A tensor is int32 values times a step 2**step_exp fixed in the bundle, so that deltas add exactly in any
grouping. Body of a KEYFRAME or DELTA frame, little-endian:

     0  u32  version that this leads to
     4  u32  version it starts from (a key-frame: the same as above)
     8  8 B  hash of the model that this leads to
    16  u16  tensors
    18  …    per tensor: LEB128 count k of non-zero values; when k > 0 also a u16: Rice parameter of the magnitudes
             (bits 0 to 4), exponent of their unit (5 to 9)
     …  …    signs | remainders of gaps | remainders of magnitudes | quotients of gaps, then of magnitudes

each stream padded to a byte, gaps as in an update. A magnitude is n units of 2**exponent and coded as n - 1; a tensor
whose magnitudes are all one unit has parameter 31 and sends none, so a ternary delta costs positions and signs
only. A tensor without zeros sends no gaps, so a key-frame pays next to nothing for places.
"""

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from edge_client.wire import bits, frame, leb128, places
from edge_client.wire.errors import LocalWireError, RemoteWireError
from edge_client.wire.limits import TENSOR_COUNT_MAX

Grid = npt.NDArray[np.int32]
Ints = npt.NDArray[np.int64]
GRID_MAX = 2**31 - 1  # saturation bound of a grid value
HASH_BYTES = 8
_HEAD = struct.Struct("<II8sH")
_ENTRY = struct.Struct("<H")
_FIELD_BITS = 5  # of each of the two fields of an entry
_ONE_UNIT = 2**_FIELD_BITS - 1  # in place of the magnitudes' Rice parameter: each is one unit


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

    Memory is bounded by 100 bytes a non-zero value, of which there are no more than the model has, 4 bytes a value, and
    8 times the frame. Raises RemoteWireError: the codes of `frame.decode`, `bad_tensors`, `bad_stream` or `bad_index`.
    """
    kind, _, body = frame.decode(data)
    if kind not in (frame.Kind.KEYFRAME, frame.Kind.DELTA):
        raise RemoteWireError("bad_frame", f"a {kind.name} frame where a model was expected")
    if len(body) < _HEAD.size:
        raise RemoteWireError("bad_frame", "the model ends inside its header")
    version, base, digest, count = _HEAD.unpack_from(body)
    if count != len(sizes):
        raise RemoteWireError("bad_tensors", f"{count} tensors where the model has {len(sizes)}")
    table, at = _read_table(body, sizes)
    values = _decode_streams(body[at:], table)
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
    sizes = np.array([len(tensor) for tensor in values], dtype=np.int64)
    flat = np.concatenate([np.zeros(0, dtype=np.int64), *values])
    where = np.flatnonzero(flat)
    counts = np.diff(np.searchsorted(where, np.cumsum([0, *sizes])))
    nonzero = flat[where]
    table, magnitudes, widths = _units(np.abs(nonzero), counts)
    gaps, parameters = places.gaps(where - np.repeat(places.starts(sizes), counts), counts, sizes)
    body = _HEAD.pack(version, base, digest, len(values)) + table + bits.pack_flags(nonzero < 0)
    body += bits.pack_fixed(gaps & ((1 << parameters) - 1), parameters)
    body += bits.pack_fixed(magnitudes & ((1 << widths) - 1), widths)
    body += bits.pack_unary(np.concatenate([gaps >> parameters, magnitudes >> widths]))
    return frame.encode(kind, body)


def _units(magnitudes: Ints, counts: Ints) -> tuple[bytes, Ints, Ints]:
    """The table; of the tensors that send magnitudes, all of them in units, less one; the Rice parameter of each."""
    table, sent, widths = bytearray(), [magnitudes[:0]], [magnitudes[:0]]
    for begin, k in zip(places.starts(counts).tolist(), counts.tolist(), strict=True):
        table += leb128.encode(k)
        if not k:
            continue
        mine = magnitudes[begin : begin + k]
        together = int(np.bitwise_or.reduce(mine))
        unit = (together & -together).bit_length() - 1  # the largest power of two that divides all
        r = _ONE_UNIT
        if together >> unit != 1:
            units = (mine >> unit) - 1
            r = min(bits.parameter(float(units.mean())), _ONE_UNIT - 1)
            sent.append(units)
            widths.append(np.full(k, r, dtype=np.int64))
        table += _ENTRY.pack(r | unit << _FIELD_BITS)
    return bytes(table), np.concatenate(sent), np.concatenate(widths)


@dataclass(frozen=True, slots=True)
class _Table:
    """By tensor, int64: values that are not zero, Rice parameter of their magnitudes, exponent of their unit."""

    sizes: Ints
    counts: Ints
    parameters: Ints
    units: Ints


def _read_table(body: memoryview, sizes: Sequence[int]) -> tuple[_Table, int]:
    rows, at = [], _HEAD.size
    for size in sizes:
        k, at = leb128.read(body, at)
        if k > size:
            raise RemoteWireError("bad_tensors", f"{k} values for a tensor of {size}")
        fields = _ONE_UNIT
        if k:
            if at + _ENTRY.size > len(body):
                raise RemoteWireError("bad_frame", "the model ends inside its tensor table")
            (fields,) = _ENTRY.unpack_from(body, at)
            at += _ENTRY.size
        if fields >> 2 * _FIELD_BITS:
            raise RemoteWireError("bad_stream", f"an entry of the tensor table is {fields:#06x}")
        rows.append((size, k, fields & _ONE_UNIT, fields >> _FIELD_BITS))
    return _Table(*np.array(rows, dtype=np.int64).reshape(-1, 4).T), at


def _decode_streams(body: memoryview, table: _Table) -> tuple[Grid, ...]:
    total = int(table.counts.sum())
    parameters = places.parameters(table.counts, table.sizes)
    told = np.where(table.parameters != _ONE_UNIT, table.counts, 0)
    widths = np.repeat(table.parameters, told)
    lengths = [(n + 7) // 8 for n in (total, int(parameters.sum()), int(widths.sum()))]
    edges = np.cumsum([0, *lengths]).tolist()
    if edges[-1] > len(body):
        raise RemoteWireError("bad_stream", "the model ends inside its streams")
    signs, gap_rest, size_rest = (body[a:b] for a, b in pairwise(edges))
    quotients = bits.unpack_unary(body[edges[-1] :], len(parameters) + len(widths))
    gaps = quotients[: len(parameters)] << parameters | bits.unpack_fixed(gap_rest, parameters)
    magnitudes = np.ones(total, dtype=np.int64)
    magnitudes[np.repeat(told > 0, table.counts)] += quotients[len(parameters) :] << widths | (
        bits.unpack_fixed(size_rest, widths)
    )
    del quotients
    units = np.repeat(table.units, table.counts)
    if (magnitudes > GRID_MAX >> units).any():
        raise RemoteWireError("bad_index", "a grid value does not fit 32 bits")
    magnitudes <<= units
    np.negative(magnitudes, out=magnitudes, where=bits.unpack_flags(signs, total))
    del units, widths
    where = places.indices(gaps, table.counts, table.sizes)
    where += np.repeat(places.starts(table.sizes), table.counts)
    flat = np.zeros(int(table.sizes.sum()), dtype=np.int32)
    flat[where] = magnitudes
    return tuple(np.split(flat, np.cumsum(table.sizes)[:-1]))
