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
from edge_client.wire import bits, chunks, frame, grid, leb128, places, sparse
from edge_client.wire.errors import RemoteWireError
from edge_client.wire.weights import Sparse

RECORDS = (UpdateRecord, EventRecord, EvaluationRecord, RejectionRecord)
_HEAD = struct.Struct("<II8sHH")  # of an update
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
    version, tag, digest, n_samples, count = _HEAD.unpack_from(body)
    for size, name, value in (
        (4, "base version", version), (4, "tag of the uid", f"{tag:08x}"), (8, "hash of the base", digest.hex()),
        (2, "samples", n_samples), (2, "tensors of weights", count),
    ):  # fmt: skip
        found.add(size, name, value)
    known = {c.value: c for c in sparse.Codec}
    if codec not in known:
        raise RemoteWireError("bad_codec", f"unknown update codec {codec}")
    counts = _table(found, body, count, bundle) if known[codec] in sparse.LEVEL_BITS else []
    if bundle is None:
        return
    update = sparse.decode(data, bundle.sizes, len(bundle.statistics))
    found.add(2 * len(update.statistics), "changes of the statistics", f"{len(update.statistics)} x f16")
    sizes = [t.size for t in bundle.tensors]
    found.figures |= {"parameters": sum(sizes), "values sent": update.weights.kept, "L2 norm": update.norm()}
    found.figures["bits per parameter"] = 8 * len(data) / sum(sizes)
    least = sparse.bound_bytes(update.weights, np.array(sizes), codec)
    found.figures["entropy bound, bytes"] = least
    if least:
        found.figures["bytes to the bound"] = len(data) / least
    if isinstance(update.weights, Sparse):
        width = sparse.LEVEL_BITS[known[codec]]
        _streams(found, np.array(counts), np.array(sizes), width, frame.OVERHEAD_BYTES + len(body))
    else:
        item = update.weights.values.dtype.itemsize
        found.add(item * update.weights.kept, "values", f"{update.weights.kept} x f{8 * item}")


def _table(found: Dissection, body: memoryview, count: int, bundle: Manifest | None) -> list[int]:
    at, counts = _HEAD.size, []
    for i in range(count):
        name = bundle.tensors[i].name if bundle and i < len(bundle.tensors) else f"tensor {i}"
        k, end = leb128.read(body, at)
        scale = ""
        if k:
            scale = f", scale {struct.unpack_from('<e', body, end)[0]:g}"
            end += 2
        found.add(end - at, name, f"{k} values{scale}")
        at = end
        counts.append(k)
    return counts


def _streams(found: Dissection, counts: sparse.Ints, sizes: sparse.Ints, width: int, total: int) -> None:
    coded = np.where(counts < sizes, counts, 0)
    remainders = int((coded * bits.parameters(counts, sizes)).sum())
    sent = int(counts.sum())
    found.add((sent + 7) // 8, "signs", f"{sent} bits")
    if width:
        found.add((sent * width + 7) // 8, "levels less one", f"{sent} x {width} bits")
    found.add((remainders + 7) // 8, "remainders of the gaps", f"{remainders} bits")
    used = sum(p.size for p in found.parts)
    found.add(total - 4 - used, "quotients of the gaps", f"{int(coded.sum())} unary codes")


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
