"""The uplink codec: round trips, and bytes that are not an update."""

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.wire import frame, sparse
from edge_client.wire.errors import LocalWireError, RemoteWireError
from edge_client.wire.sparse import SparseTensor, Update


@st.composite
def updates(draw):
    """(update, sizes) with any densities, empty tensors included."""
    sizes, tensors = draw(st.lists(st.integers(1, 400), min_size=1, max_size=6)), []
    for size in sizes:
        chosen = np.array(sorted(draw(st.sets(st.integers(0, size - 1), max_size=40))), dtype=np.int64)
        negative = np.array(
            draw(st.lists(st.booleans(), min_size=len(chosen), max_size=len(chosen))), dtype=bool
        )
        scale = draw(st.floats(0, 65504, width=16)) if len(chosen) else 0.0
        tensors.append(SparseTensor(chosen, negative, scale))
    words = st.integers(0, 2**32 - 1)
    return (
        Update(draw(words), draw(st.binary(min_size=8, max_size=8)), draw(words), draw(st.integers(0, 2**20)),
               tuple(tensors)),
        sizes,
    )  # fmt: skip


def example():
    tensors = (
        SparseTensor(np.array([0, 5, 99]), np.array([True, False, True]), 0.5),
        SparseTensor(np.array([], dtype=np.int64), np.array([], dtype=bool), 0.0),
        SparseTensor(np.arange(7), np.zeros(7, dtype=bool), 2.0),
    )
    return Update(3, b"12345678", 9, 40, tensors), (100, 4, 7)


def sealed(body, kind=frame.Kind.UPDATE, codec=sparse.CODEC_TERNARY):
    """A frame with a right CRC around any body."""
    return frame.encode(kind, bytes(body), codec)


@given(updates())
def test_updates_round_trip(pair):
    """Every field comes back; n_samples saturates."""
    update, sizes = pair
    got = sparse.decode(sparse.encode(update), sizes)

    assert (got.base_version, got.base_hash, got.tag) == (update.base_version, update.base_hash, update.tag)
    assert got.n_samples == min(update.n_samples, 65535)
    for ours, theirs in zip(got.tensors, update.tensors, strict=True):
        assert ours.indices.tolist() == theirs.indices.tolist()
        assert ours.negative.tolist() == theirs.negative.tolist()
        assert ours.scale == theirs.scale
    assert got.norm() == update.norm()


def observed():
    """An update of a model whose last two tensors are statistics of 2 and 1 values."""
    update, sizes = example()
    changes = np.array([0.5, -65504.0, 2.0**-24], dtype=np.float16)
    return (
        Update(update.base_version, update.base_hash, update.tag, 40, update.tensors, changes),
        (*sizes, 2, 1),
    )


def test_statistics_travel_dense_behind_the_weights():
    """Changes of statistics come back exactly as float16, two bytes each, and are no part of the norm."""
    update, sizes = observed()
    data = sparse.encode(update)

    got = sparse.decode(data, sizes, statistics=2)

    assert got.statistics.tolist() == update.statistics.tolist()
    assert len(data) == len(sparse.encode(example()[0])) + 6
    assert got.norm() == example()[0].norm()


def test_a_change_of_a_statistic_must_be_finite():
    """I11: an infinite or undefined change is refused before anything is folded."""
    update, sizes = observed()
    for bad in (np.inf, -np.inf, np.nan):
        update.statistics[1] = bad
        with pytest.raises(RemoteWireError) as caught:
            sparse.decode(sparse.encode(update), sizes, statistics=2)

        assert caught.value.code == "not_finite"


def test_statistics_a_model_does_not_have_are_refused():
    """I11: an update with more or fewer statistics than the model's table is no update of that model."""
    (update, sizes), (plain, weights) = observed(), example()
    for data, table, count in (
        (sparse.encode(update), weights, 0),
        (sparse.encode(plain), sizes, 2),
        (sparse.encode(update), (*weights, 2, 1, 9), 3),
    ):
        with pytest.raises(RemoteWireError):
            sparse.decode(data, table, statistics=count)


def test_dense_form_is_sign_times_scale():
    """Values lie at their indices, zeros elsewhere."""
    tensor = example()[0].tensors[0]
    dense = tensor.dense(100)

    assert (dense[0], dense[5], dense[99], np.count_nonzero(dense)) == (-0.5, 0.5, -0.5, 3)


def test_any_changed_byte_is_detected():
    """Each single-byte change of a frame is refused."""
    update, sizes = example()
    data = sparse.encode(update)
    for at in range(len(data)):
        for flip in (0x01, 0x80, 0xFF):
            broken = bytearray(data)
            broken[at] ^= flip
            with pytest.raises(RemoteWireError):
                sparse.decode(bytes(broken), sizes)


def test_any_truncation_is_detected():
    """Every proper prefix of a frame is refused, and so is every prefix of its body under a right CRC."""
    for (update, sizes), count in ((example(), 0), (observed(), 2)):
        data = sparse.encode(update)
        _, _, body = frame.decode(data)
        for end in range(len(data)):
            with pytest.raises(RemoteWireError):
                sparse.decode(data[:end], sizes, count)
        for end in range(len(body)):
            with pytest.raises(RemoteWireError):
                sparse.decode(sealed(body[:end]), sizes, count)


@given(st.binary(max_size=300))
def test_any_bytes_raise_only_the_wire_error(data):
    """Whatever arrives, bare or framed, decodes or is a RemoteWireError."""
    for candidate in (data, sealed(data)):
        try:
            sparse.decode(candidate, (100, 4, 7))
        except RemoteWireError:
            continue


@given(st.data())
def test_hostile_bodies_raise_only_the_wire_error(data):
    """A sound body with bytes replaced decodes to indices inside their tensors, or is a RemoteWireError."""
    update, sizes = example()
    body = bytearray(frame.decode(sparse.encode(update))[2])
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        got = sparse.decode(sealed(body), sizes)
    except RemoteWireError:
        return
    for tensor, size in zip(got.tensors, sizes, strict=True):
        assert (np.diff(tensor.indices) > 0).all()
        assert all(0 <= i < size for i in tensor.indices)
        assert np.isfinite(tensor.scale)


def with_table(*entries, tail=b""):
    head = sparse._HEAD.pack(0, 0, bytes(8), 1, 1)
    return sealed(head + b"".join(entries) + tail)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (with_table(b"\x05"), "bad_tensors"),  # 5 values for a tensor of 4
        (with_table(b"\x01\x20\x00\x3c"), "bad_stream"),  # Rice parameter 32
        (with_table(b"\x01\x00\x00\x7c"), "not_finite"),  # infinite scale
        (with_table(b"\x01\x00\x00\xfc"), "not_finite"),
        (with_table(b"\x01\x00\x00\x7e"), "not_finite"),  # NaN
        (with_table(b"\x01\x00\x00\xbc"), "not_finite"),  # negative scale
        (with_table(b"\xff\xff\xff\xff\xff"), "bad_frame"),  # endless LEB128
        (with_table(b"\x01\x1f\x00\x3c", tail=b"\x00" + b"\xff" * 4 + b"\x80"), "bad_index"),
        (with_table(b"\x01\x00\x00\x3c", tail=b"\x00\x08"), "bad_index"),  # index 4 of 4
        (sealed(b"", codec=9), "bad_codec"),
        (sealed(b"", kind=frame.Kind.DELTA), "bad_frame"),
        (sealed(b"short"), "bad_frame"),
    ],
)
def test_hostile_fields_have_their_codes(data, code):
    """Each field out of range is refused with the code of its reason."""
    with pytest.raises(RemoteWireError) as caught:
        sparse.decode(data, (4,))

    assert caught.value.code == code


def test_another_tensor_table_is_bad_tensors():
    """An update for a model with more tensors is refused before its table is read."""
    update, sizes = example()
    with pytest.raises(RemoteWireError) as caught:
        sparse.decode(sparse.encode(update), (*sizes, 3))

    assert caught.value.code == "bad_tensors"


def test_local_mistakes_are_local_errors():
    """Indices that do not increase and a hash of the wrong length never reach the wire."""
    update, _ = example()
    twice = SparseTensor(np.array([3, 3]), np.zeros(2, dtype=bool), 1.0)
    for wrong in (Update(0, bytes(8), 0, 0, (twice,)), Update(0, b"short", 0, 0, update.tensors)):
        with pytest.raises(LocalWireError):
            sparse.encode(wrong)


def test_crc_is_the_standard_one():
    """The trailer is zlib's CRC-32 of all bytes before it, little-endian."""
    data = sparse.encode(example()[0])

    assert zlib.crc32(data[:-4]) == int.from_bytes(data[-4:], "little")
