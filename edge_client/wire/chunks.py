"""Messages larger than one packet travel as numbered chunks: docs/wire.md §5.

Body of a CHUNK frame, little-endian: u32 index, u32 count, u32 size of the whole, 8 bytes of its SHA-256,
then the chunk's bytes. An update that fits one packet is sent as it is, without this header.
"""

import hashlib
import struct
from dataclasses import dataclass

from edge_client.wire import frame
from edge_client.wire.errors import LocalWireError, RemoteWireError
from edge_client.wire.limits import (
    CHUNK_BYTES,
    CHUNK_COUNT_MAX,
    FRAME_BYTES_MAX,
    PACKET_BYTES_ASSUMED,
    PACKET_OVERHEAD_BYTES,
)

_HEAD = struct.Struct("<III8s")
OVERHEAD_BYTES = frame.OVERHEAD_BYTES + _HEAD.size


@dataclass(frozen=True, slots=True)
class Chunk:
    """Chunk `index` of `count` of a message of `size` bytes whose SHA-256 begins with `digest`."""

    index: int
    count: int
    size: int
    digest: bytes
    data: bytes

    def encode(self) -> bytes:
        """Encode as a CHUNK frame."""
        head = _HEAD.pack(self.index, self.count, self.size, self.digest)
        return frame.encode(frame.Kind.CHUNK, head + self.data)


def chunk_bytes(packet_bytes_max: int | None) -> int:
    """Bytes of payload a chunk may carry under a broker's Maximum Packet Size (None: it states no limit)."""
    if packet_bytes_max is None:
        return CHUNK_BYTES
    room = min(CHUNK_BYTES, packet_bytes_max - PACKET_OVERHEAD_BYTES - OVERHEAD_BYTES)
    if room < 1024:
        raise LocalWireError(f"the broker takes packets of {packet_bytes_max} B; at least 4096 B are needed")
    return room


def fits(payload_bytes: int, packet_bytes_max: int | None) -> bool:
    """True when a broker takes a PUBLISH with this much payload, topic and properties included (I9).

    One that states no limit (None) has one all the same, and ends the connection over a packet beyond it.
    """
    limit = PACKET_BYTES_ASSUMED if packet_bytes_max is None else packet_bytes_max
    return payload_bytes + PACKET_OVERHEAD_BYTES <= limit


def count(size: int, chunk_size: int) -> int:
    """How many chunks of `chunk_size` bytes a message of `size` bytes needs; at least one."""
    return max(1, -(-size // chunk_size))


def cut(data: bytes, index: int, chunk_size: int) -> Chunk:
    """Chunk `index` of `data`; raise LocalWireError when there is no such chunk."""
    total = count(len(data), chunk_size)
    if not 0 <= index < total:
        raise LocalWireError(f"chunk {index} of a message of {total} chunks")
    part = data[index * chunk_size : (index + 1) * chunk_size]
    return Chunk(index, total, len(data), hashlib.sha256(data).digest()[:8], part)


def decode(body: memoryview) -> Chunk:
    """Decode the body of a CHUNK frame; raise RemoteWireError (`bad_chunk`, `too_large`)."""
    if len(body) < _HEAD.size:
        raise RemoteWireError("bad_chunk", f"chunk of {len(body)} B is shorter than its header")
    index, total, size, digest = _HEAD.unpack_from(body)
    if size > FRAME_BYTES_MAX:
        raise RemoteWireError("too_large", f"message of {size} B is over {FRAME_BYTES_MAX} B")
    if not 1 <= total <= CHUNK_COUNT_MAX or index >= total or size < total - 1:
        raise RemoteWireError("bad_chunk", f"chunk {index} of {total} for a message of {size} B")
    return Chunk(index, total, size, digest, bytes(body[_HEAD.size :]))
