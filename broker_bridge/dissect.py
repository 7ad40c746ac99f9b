"""Takes any binary message apart for people: what lies at which byte, and what it says. Pure.

Frames and log entries are told apart by their first byte. What is damaged is shown as far as it can be read, with the
error the decoder gives. Sizes come from a bundle: without one the streams of a frame are a single part.
"""

import struct
from dataclasses import dataclass, field

import msgspec
import numpy as np

from broker_bridge.records import EvaluationRecord, EventRecord, RejectionRecord, UpdateRecord
from edge_client.bundle import Manifest
from edge_client.wire import chunks, frame, grid, leb128, nested, places, sparse
from edge_client.wire.errors import RemoteWireError
from edge_client.wire.weights import Sparse

RECORDS = (UpdateRecord, EventRecord, EvaluationRecord, RejectionRecord)
_HEAD = struct.Struct("<II8sH")  # of an update
_MODEL_HEAD = struct.Struct("<II8sH")
_CHUNK_HEAD = struct.Struct("<III8s")


@dataclass(frozen=True, slots=True)
class Part:
    """`size` bytes from `offset` on are `name`, and mean `value`."""

    offset: int
    size: int
    name: str
    value: str


@dataclass
class Dissection:
    """What a message is: the bytes that `parts` tile in order, figures by name, why it would be refused if it would.

    Of a log entry that holds an update, `data` is the update's frame.
    """

    kind: str
    data: bytes
    parts: list[Part] = field(default_factory=list)
    figures: dict[str, float | int | str] = field(default_factory=dict)
    error: str = ""

    def add(self, size: int, name: str, value: object) -> None:
        """The next part."""
        at = self.parts[-1].offset + self.parts[-1].size if self.parts else 0
        self.parts.append(Part(at, size, name, str(value)))


def dissect(data: bytes, bundle: Manifest | None = None) -> Dissection:
    """Take a frame or log entry apart; `bundle` is the manifest of the model that a frame is of."""
    if data[:1] == bytes([frame.MAGIC]):
        return _frame(data, bundle)
    for kind in RECORDS:
        try:
            record = msgspec.msgpack.decode(data, type=kind)
        except msgspec.DecodeError:
            continue
        return _record(record, data, bundle)
    found = Dissection(
        "unknown", data, error="neither a frame (which begins with ff) nor an entry of the log"
    )
    found.add(len(data), "bytes", "")
    return found


def _record(record: msgspec.Struct, data: bytes, bundle: Manifest | None) -> Dissection:
    found = Dissection(f"log entry: {type(record).__name__}", data)
    if isinstance(record, UpdateRecord):
        found = _frame(record.frame, bundle)
        found.kind = f"log entry with an {found.kind}"
    else:
        found.add(len(data), "entry", type(record).__name__)
    for name in record.__struct_fields__:
        value = getattr(record, name)
        if name != "frame":
            found.figures[name] = value.decode(errors="replace") if isinstance(value, bytes) else value
    return found


def _frame(data: bytes, bundle: Manifest | None) -> Dissection:
    kind = {k.value: k.name for k in frame.Kind}.get(data[2] if len(data) > 2 else -1, "unknown kind")
    found = Dissection(f"{kind} frame", data)
    for size, name in (
        (1, "magic"),
        (1, "envelope version"),
        (1, "kind"),
        (1, "codec"),
        (4, "length of the body"),
    ):
        at = sum(p.size for p in found.parts)
        found.add(size, name, int.from_bytes(data[at : at + size], "little"))
    try:
        _, codec, body = frame.decode(data)
    except RemoteWireError as error:
        found.error = f"{error.code}: {error}"
        return found
    try:
        read = {"UPDATE": _update, "CHUNK": _chunk}.get(kind, _model)
        read(found, data, body, bundle, codec)
    except (RemoteWireError, struct.error) as error:
        found.error = f"{getattr(error, 'code', 'bad_frame')}: {error}"
    rest = len(body) + frame.HEAD_BYTES - sum(p.size for p in found.parts)
    if rest:
        found.add(rest, "streams", "give --bundle to take them apart" if bundle is None else "not read")
    skipped = len(data) - frame.OVERHEAD_BYTES - len(body)
    if skipped:
        found.add(skipped, "extensions", "skipped")
    found.add(4, "CRC-32", f"{int.from_bytes(data[-4:], 'little'):08x}, right")
    return found


def _chunk(found: Dissection, _data: bytes, body: memoryview, _bundle: Manifest | None, _codec: int) -> None:
    chunk = chunks.decode(body)
    for size, name, value in (
        (4, "index", chunk.index), (4, "count", chunk.count), (4, "size of the whole", chunk.size),
        (8, "SHA-256 of the whole begins", chunk.digest.hex()), (len(chunk.data), "bytes of the whole", ""),
    ):  # fmt: skip
        found.add(size, name, value)


def _update(found: Dissection, data: bytes, body: memoryview, bundle: Manifest | None, codec: int) -> None:
    version, tag, digest, n_samples = _HEAD.unpack_from(body)
    for size, name, value in (
        (4, "base version", version), (4, "tag of the uid", f"{tag:08x}"), (8, "hash of the base", digest.hex()),
        (2, "samples", n_samples),
    ):  # fmt: skip
        found.add(size, name, value)
    kind, gaps = sparse.split(codec)
    if bundle is None:
        return
    update = sparse.decode(data, bundle.sizes, len(bundle.statistics))
    found.add(2 * len(update.statistics), "changes of the statistics", f"{len(update.statistics)} x f16")
    sizes = np.array([t.size for t in bundle.tensors])
    least = sparse.bound_bytes(update.weights, sizes, kind)
    found.figures |= {
        "codec": kind.name.lower().replace("_", "-"), "parameters": int(sizes.sum()),
        "values sent": update.weights.kept, "L2 norm": update.norm(), "bits per parameter": 8 * len(data) / sizes.sum(),
        "entropy bound, bytes": least,
    }  # fmt: skip
    if least:
        found.figures["bytes to the bound"] = len(data) / least
    if not isinstance(update.weights, Sparse):
        item = update.weights.values.dtype.itemsize
        found.add(item * update.weights.kept, "values", f"{update.weights.kept} x f{8 * item}")
        return
    found.figures["form"] = "gaps" if gaps else "nested"
    (_gaps if gaps else _nested)(found, update.weights, bundle, sparse.LEVEL_BITS[kind])
    for tensor, k, scale in zip(bundle.tensors, update.weights.counts, update.weights.scales, strict=True):
        if k:
            found.add(2, tensor.name, f"scale {scale:g} of {k} values")


def _gaps(found: Dissection, weights: Sparse, bundle: Manifest, width: int) -> None:
    for tensor, k in zip(bundle.tensors, weights.counts.tolist(), strict=True):
        found.add(len(leb128.encode(k)), tensor.name, f"{k} values")
    sizes = np.array([t.size for t in bundle.tensors])
    parameters = places.parameters(weights.counts, sizes)
    quotients = places.gaps(weights.indices, weights.counts, sizes)[0] >> parameters
    found.add((weights.kept + 7) // 8, "signs", f"{weights.kept} bits")
    _levels(found, weights.kept, width)
    found.add((int(parameters.sum()) + 7) // 8, "remainders of the gaps", f"{parameters.sum()} bits")
    length = (int(quotients.sum()) + len(quotients) + 7) // 8
    found.add(length, "quotients of the gaps", f"{len(quotients)} unary codes")


def _nested(found: Dissection, weights: Sparse, bundle: Manifest, width: int) -> None:
    size = 2 * sum(t.size for t in bundle.tensors)
    found.add(len(leb128.encode(weights.kept)), "values kept", weights.kept)
    begin = sum(p.size for p in found.parts)
    _, length = nested.read(memoryview(found.data)[begin:], weights.kept, size)
    found.add(
        length, "nested places", f"{weights.kept} of {size}, of each tensor those of positive values first"
    )
    _levels(found, weights.kept, width)


def _levels(found: Dissection, kept: int, width: int) -> None:
    if width:
        found.add((kept * width + 7) // 8, "levels less one", f"{kept} x {width} bits")


def _model(found: Dissection, data: bytes, body: memoryview, bundle: Manifest | None, _codec: int) -> None:
    version, base, digest, count = _MODEL_HEAD.unpack_from(body)
    for size, name, value in (
        (4, "version", version), (4, "starts from version", base), (8, "hash of the model", digest.hex()),
        (2, "tensors", count),
    ):  # fmt: skip
        found.add(size, name, value)
    at, counts, widths = _MODEL_HEAD.size, [], []
    for i in range(count):
        name = bundle.table[i].name if bundle and i < len(bundle.table) else f"tensor {i}"
        k, end = leb128.read(body, at)
        meaning, width = f"{k} values", 0
        if k:
            (fields,) = struct.unpack_from("<H", body, end)
            width, unit = fields & 31, fields >> 5
            meaning += f", units of 2^{unit}" + (", one each" if width == 31 else f", r = {width}")
            end += 2
        found.add(end - at, name, meaning)
        at = end
        counts.append(k)
        widths.append(width)
    if bundle is not None:
        values = grid.decode(data, bundle.sizes).values
        found.figures |= {
            "parameters": sum(bundle.sizes), "non-zero": sum(int(np.count_nonzero(v)) for v in values),
            "bits per parameter": 8 * len(data) / sum(bundle.sizes),
        }  # fmt: skip
        _model_streams(
            found,
            np.array(counts),
            np.array(bundle.sizes),
            np.array(widths),
            frame.OVERHEAD_BYTES + len(body),
        )


def _model_streams(
    found: Dissection, counts: sparse.Ints, sizes: sparse.Ints, widths: sparse.Ints, total: int
) -> None:
    sent, told = int(counts.sum()), np.where(widths != 31, counts, 0)
    gaps = places.parameters(counts, sizes)
    magnitudes = int((told * widths).sum())
    found.add((sent + 7) // 8, "signs", f"{sent} bits")
    found.add((int(gaps.sum()) + 7) // 8, "remainders of the gaps", f"{gaps.sum()} bits")
    found.add((magnitudes + 7) // 8, "remainders of the magnitudes", f"{magnitudes} bits")
    used = sum(p.size for p in found.parts)
    found.add(total - 4 - used, "quotients", f"{len(gaps)} of gaps, {told.sum()} of magnitudes")
