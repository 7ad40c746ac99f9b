"""Counts as LEB128: seven bits a byte, least significant first, the top bit set in all bytes but the last."""

from edge_client.wire.errors import RemoteWireError

BYTES_MAX = 5  # a count is below 2**32


def encode(value: int) -> bytes:
    """The bytes of a count from 0 to 2**32 - 1."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read(body: memoryview, at: int) -> tuple[int, int]:
    """The count at `at` and where the next field begins; raise RemoteWireError (`bad_frame`)."""
    value = 0
    for i in range(BYTES_MAX):
        if at + i >= len(body):
            break
        value |= (body[at + i] & 0x7F) << (7 * i)
        if not body[at + i] & 0x80:
            return value, at + i + 1
    raise RemoteWireError("bad_frame", "a tensor count is not a LEB128 number below 2**32")
