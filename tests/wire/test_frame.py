"""The envelope and chunks: damage is found, lengths are checked before anything is allocated."""

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.wire import chunks, frame
from edge_client.wire.errors import LocalWireError, RemoteWireError
from edge_client.wire.limits import CHUNK_BYTES


def sealed(head):
    return head + struct.pack("<I", zlib.crc32(head))


def refused(data):
    with pytest.raises(RemoteWireError) as caught:
        frame.decode(data)
    return caught.value.code


@given(st.sampled_from(frame.Kind), st.integers(0, 255), st.binary(max_size=300))
def test_a_frame_round_trips(kind, codec, body):
    """What is wrapped comes out again."""
    assert frame.decode(frame.encode(kind, body, codec)) == (kind, codec, body)


@given(st.binary(max_size=60), st.data())
def test_any_flipped_bit_is_found(body, data):
    """I11: damage on the way is a refusal."""
    good = bytearray(frame.encode(frame.Kind.UPDATE, body))
    bit = data.draw(st.integers(0, 8 * len(good) - 1))
    good[bit // 8] ^= 1 << bit % 8

    assert refused(bytes(good)) in {"bad_frame", "bad_version", "bad_crc"}


@given(st.binary(max_size=60))
def test_any_bytes_decode_or_are_refused(data):
    """I11: garbage is never a crash."""
    try:
        frame.decode(data)
    except RemoteWireError:
        pass
    else:
        raise AssertionError("random bytes carried a valid CRC")


def test_each_fault_has_its_code():
    """The refusal says what is wrong with a frame."""
    good = frame.encode(frame.Kind.UPDATE, b"body")

    assert refused(b"") == refused(good[:11]) == "bad_frame"
    assert refused(good[:-1]) == "bad_frame"
    assert refused(good + b"x") == "bad_crc"  # one byte could be the begin of an extension
    assert refused(sealed(b"\xfe" + good[1:-4])) == "bad_frame"
    assert refused(sealed(good[:1] + b"\x02" + good[2:-4])) == "bad_version"
    assert refused(sealed(good[:2] + b"\x63" + good[3:-4])) == "bad_frame"
    assert refused(good[:-4] + b"\0\0\0\0") == "bad_crc"


EXTENSION = st.tuples(st.integers(0, 255), st.binary(max_size=40)).map(
    lambda e: struct.pack("<BH", e[0], len(e[1])) + e[1]
)


def extended(body, extensions):
    """A frame of a newer writer."""
    good = frame.encode(frame.Kind.DELTA, body, 3)
    return sealed(good[:-4] + extensions)


@given(st.binary(max_size=60), st.lists(EXTENSION, min_size=1, max_size=5))
def test_unknown_extensions_are_skipped(body, extensions):
    """What a newer writer adds behind the body does not keep an older reader from the body."""
    assert frame.decode(extended(body, b"".join(extensions))) == (frame.Kind.DELTA, 3, body)


def test_extensions_that_are_cut_off_or_too_long_are_refused():
    """I6: extensions fill their room exactly, and there is a bound to them."""
    assert refused(extended(b"body", b"\1")) == refused(extended(b"body", b"\1\2\0x")) == "bad_frame"
    most = frame.EXTENSIONS_BYTES_MAX - 3
    assert frame.decode(extended(b"", struct.pack("<BH", 9, most) + bytes(most)))[2] == b""
    assert refused(extended(b"", struct.pack("<BH", 9, most + 1) + bytes(most + 1))) == "bad_frame"


def test_an_unknown_version_is_refused_by_name():
    """A frame of another major version is refused, and the refusal says which version is known."""
    good = frame.encode(frame.Kind.UPDATE, b"body")
    with pytest.raises(RemoteWireError, match="frame version 2 is not 1") as caught:
        frame.decode(sealed(good[:1] + b"\x02" + good[2:-4]))
    assert caught.value.code == "bad_version"


@given(st.binary(min_size=1, max_size=500), st.integers(1, 200))
def test_chunks_put_together_are_the_message(data, size):
    """A message cut at any size is whole again, and each chunk says how many there are."""
    total = chunks.count(len(data), size)
    parts = [chunks.decode(frame.decode(chunks.cut(data, i, size).encode())[2]) for i in range(total)]

    assert b"".join(part.data for part in parts) == data
    assert {(part.count, part.size, part.digest) for part in parts} == {(total, len(data), parts[0].digest)}


def test_chunk_size_follows_the_broker():
    """I9: a chunk and its overhead fit the broker's Maximum Packet Size."""
    assert chunks.chunk_bytes(None) == CHUNK_BYTES
    assert chunks.chunk_bytes(10_000) + chunks.OVERHEAD_BYTES + 1024 == 10_000
    with pytest.raises(LocalWireError, match="at least 4096"):
        chunks.chunk_bytes(2000)


@pytest.mark.parametrize(
    "head",
    [
        struct.pack("<III8s", 3, 3, 10, b"\0" * 8),
        struct.pack("<III8s", 0, 0, 10, b"\0" * 8),
        struct.pack("<III8s", 0, 2**31, 10, b"\0" * 8),
        struct.pack("<III8s", 0, 1, 2**31, b"\0" * 8),
        b"\0" * 10,
    ],
)
def test_impossible_chunks_are_refused(head):
    """I6: counts and sizes are checked before anything is allocated for them."""
    with pytest.raises(RemoteWireError):
        chunks.decode(memoryview(head))
