"""The envelope of every binary message, little-endian: docs/wire.md §4.

0  u8   magic 0xFF
1  u8   version, 1
2  u8   kind
3  u8   codec of the body, 0 when the kind has only one
4  u32  length of the body in bytes
8  …    body
…  …    extensions: each u8 kind, u16 length, bytes; a reader skips those it does not know
…  u32  CRC-32 (IEEE 802.3, as in zlib) of everything before it
"""

import enum
import struct
import zlib

from edge_client.wire.errors import LocalWireError, RemoteWireError
from edge_client.wire.limits import FRAME_BYTES_MAX

MAGIC = 0xFF
VERSION = 1  # changes when an older reader would misread a frame; what it may skip is an extension
OVERHEAD_BYTES = 12
EXTENSIONS_BYTES_MAX = (
    1024  # of all extensions of a frame: a signature and a few numbers, and soon walked through
)
_EXTENSION = struct.Struct("<BH")
_HEAD = struct.Struct("<BBBBI")
HEAD_BYTES = _HEAD.size
_CRC = struct.Struct("<I")


class Kind(enum.IntEnum):
    """What the body of a frame is."""

    UPDATE = 1  # sparse update of a device (sparse.py)
    CHUNK = 2  # part of a larger message (chunks.py)
    KEYFRAME = 3  # a whole model on its grid (grid.py)
    DELTA = 4  # difference of two models on the grid (grid.py)


def encode(kind: Kind, body: bytes, codec: int = 0) -> bytes:
    """Wrap `body`; raise LocalWireError when it is larger than FRAME_BYTES_MAX."""
    if len(body) + OVERHEAD_BYTES > FRAME_BYTES_MAX:
        raise LocalWireError(f"frame of {len(body)} B is over {FRAME_BYTES_MAX} B")
    data = _HEAD.pack(MAGIC, VERSION, kind, codec, len(body)) + body
    return data + _CRC.pack(zlib.crc32(data))


def decode(data: bytes) -> tuple[Kind, int, memoryview]:
    """Unwrap a frame into (kind, codec, body).

    No extension is known yet, so all are skipped. Raises RemoteWireError with code `too_large`, `bad_frame` (magic,
    length, kind or extensions), `bad_version` (another version of the envelope) or `bad_crc`.
    """
    if len(data) > FRAME_BYTES_MAX:
        raise RemoteWireError("too_large", f"frame of {len(data)} B is over {FRAME_BYTES_MAX} B")
    if len(data) < OVERHEAD_BYTES:
        raise RemoteWireError("bad_frame", f"frame of {len(data)} B is shorter than its envelope")
    magic, version, kind, codec, length = _HEAD.unpack_from(data)
    if magic != MAGIC:
        raise RemoteWireError("bad_frame", f"magic 0x{magic:02x} is not 0x{MAGIC:02x}")
    if version != VERSION:
        raise RemoteWireError("bad_version", f"frame version {version} is not {VERSION}")
    if not 0 <= len(data) - OVERHEAD_BYTES - length <= EXTENSIONS_BYTES_MAX:
        raise RemoteWireError("bad_frame", f"body length {length} does not fit a frame of {len(data)} B")
    if _CRC.unpack_from(data, len(data) - 4)[0] != zlib.crc32(data[:-4]):
        raise RemoteWireError("bad_crc", "CRC-32 does not match: the frame is damaged")
    try:
        known = Kind(kind)
    except ValueError:
        raise RemoteWireError("bad_frame", f"unknown frame kind {kind}") from None
    view = memoryview(data)
    _check_extensions(view[_HEAD.size + length : -_CRC.size])
    return known, codec, view[_HEAD.size : _HEAD.size + length]


def _check_extensions(rest: memoryview) -> None:
    at = 0
    while at < len(rest):
        body = at + _EXTENSION.size
        end = body + _EXTENSION.unpack_from(rest, at)[1] if body <= len(rest) else body
        if end > len(rest):
            raise RemoteWireError("bad_frame", f"an extension at byte {at} of {len(rest)} is cut off")
        at = end
