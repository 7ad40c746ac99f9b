"""The uplink codecs: round trips, and bytes that are not an update."""

import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_client.wire import bits, frame, messages, nested, sparse, together
from edge_client.wire.errors import LocalWireError, RemoteWireError
from edge_client.wire.limits import FRACTION_BITS
from edge_client.wire.sparse import Codec, Update
from edge_client.wire.weights import Dense, Sparse, SparseTensor

WORDS = st.integers(0, 2**32 - 1)
SIZES = (100, 4, 7)


@st.composite
def updates(draw):
    """(update, sizes, number of statistics, codec) of any codec and densities, empty and full tensors included."""
    sizes = draw(st.lists(st.integers(1, 400), min_size=1, max_size=6))
    codec = draw(st.sampled_from(list(Codec)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    if codec in sparse.LEVEL_BITS:
        weights = Sparse.of([kept(draw, rng, size, codec) for size in sizes])
    else:
        kind = np.float16 if codec is Codec.DENSE_FP16 else np.float32
        weights = Dense(rng.standard_normal(sum(sizes)).astype(kind))
    observed = draw(st.lists(st.integers(1, 5), max_size=2))
    head = draw(WORDS), draw(st.binary(min_size=8, max_size=8)), draw(WORDS), draw(st.integers(0, 2**20))
    changes = rng.standard_normal(sum(observed)).astype(np.float16)
    return Update(*head, weights, changes), (*sizes, *observed), len(observed), codec


def kept(draw, rng, size, codec):
    count = draw(st.sampled_from([0, 1, size // 3, size]))
    indices = np.sort(rng.choice(size, min(count, size), replace=False)).astype(np.int64)
    if draw(st.booleans()):  # in one cluster
        indices = np.arange(len(indices)) + rng.integers(0, size - len(indices) + 1)
    levels = (
        rng.integers(1, 2 ** sparse.LEVEL_BITS[codec] + 1, len(indices)) if sparse.LEVEL_BITS[codec] else None
    )
    scale = draw(st.floats(0, 65504, width=16)) if len(indices) else 0.0
    return SparseTensor(indices, rng.random(len(indices)) < draw(st.sampled_from([0, 0.5])), scale, levels)


def example(codec=Codec.TERNARY):
    """An update of three tensors: one sparse, one with nothing, one with everything."""
    levels = [np.array([1, 2, 8]), np.zeros(0, np.int64), np.arange(1, 8)]
    if codec is Codec.TERNARY:
        levels = [None, None, None]
    parts = (
        SparseTensor(np.array([0, 5, 99]), np.array([True, False, True]), 0.5, levels[0]),
        SparseTensor(np.array([], dtype=np.int64), np.array([], dtype=bool), 0.0, levels[1]),
        SparseTensor(np.arange(7), np.zeros(7, dtype=bool), 2.0, levels[2]),
    )
    return Update(3, b"12345678", 9, 40, Sparse.of(parts))


def observed():
    """An update of a model whose last two tensors are statistics of 2 and 1 values."""
    changes = np.array([0.5, -65504.0, 2.0**-24], dtype=np.float16)
    return Update(3, b"12345678", 9, 40, example().weights, changes), (*SIZES, 2, 1)


def dense(kind=np.float16):
    """An update that sends every value."""
    return Update(3, b"12345678", 9, 40, Dense(np.linspace(-2, 2, sum(SIZES)).astype(kind)))


ALL = [
    (example(), Codec.TERNARY),
    (example(Codec.Q4), Codec.Q4),
    (example(Codec.Q4), Codec.Q8),
    (dense(), Codec.DENSE_FP16),
    (dense(np.float32), Codec.DENSE_FP32),
]


def sealed(body, kind=frame.Kind.UPDATE, codec=Codec.TERNARY):
    """A frame with a right CRC around any body."""
    return frame.encode(kind, bytes(body), codec)


def same(one, other):
    if isinstance(one, Dense):
        return one.values.tolist() == other.values.tolist()
    levels = [np.ones(w.kept) if w.levels is None else w.levels for w in (one, other)]
    return all(
        np.array_equal(getattr(one, n), getattr(other, n))
        for n in ("counts", "scales", "indices", "negative")
    ) and np.array_equal(*levels)


@given(updates())
def test_updates_round_trip(made):
    """Every field of every codec comes back; n_samples saturates."""
    update, sizes, statistics, codec = made
    data = sparse.encode(update, sizes[: len(sizes) - statistics], codec)
    got = sparse.decode(data, sizes, statistics)

    assert (got.base_version, got.base_hash, got.tag) == (update.base_version, update.base_hash, update.tag)
    assert got.n_samples == min(update.n_samples, 65535)
    assert same(got.weights, update.weights)
    assert got.statistics.tolist() == update.statistics.tolist()
    assert got.norm() == update.norm()


@given(updates(), st.integers(1, 65535))
def test_what_is_folded_is_what_was_sent(made, weight):
    """Sums in units of 2^-24 are exact for every codec, and equal to the dense values times the weight."""
    update, sizes, statistics, _ = made
    own = np.array(sizes[: len(sizes) - statistics])
    sums = np.zeros(own.sum(), dtype=np.int64)
    positions, values = update.weights.units(np.cumsum(own) - own)
    sums[positions] += values * weight
    if isinstance(update.weights, Dense):
        values = update.weights.values.astype(np.float64)
    else:
        tensors = zip(update.weights.tensors, own, strict=True)
        values = np.concatenate([t.dense(n).astype(np.float64) for t, n in tensors])

    assert sums.tolist() == [int(v) * weight for v in np.rint(np.ldexp(values, FRACTION_BITS))]


def test_statistics_travel_dense_behind_the_weights():
    """Changes of statistics come back exactly as float16, two bytes each, and are no part of the norm."""
    update, sizes = observed()
    data = sparse.encode(update, SIZES)
    got = sparse.decode(data, sizes, statistics=2)

    assert got.statistics.tolist() == update.statistics.tolist()
    assert len(data) == len(sparse.encode(example(), SIZES)) + 6
    assert got.norm() == example().norm()


def test_a_change_of_a_statistic_must_be_finite():
    """I11: an infinite or undefined change is refused before anything is folded."""
    update, sizes = observed()
    for bad in (np.inf, -np.inf, np.nan):
        update.statistics[1] = bad
        with pytest.raises(RemoteWireError) as caught:
            sparse.decode(sparse.encode(update, SIZES), sizes, statistics=2)

        assert caught.value.code == "not_finite"


def test_statistics_a_model_does_not_have_are_refused():
    """I11: an update with more or fewer statistics than the model's table is no update of that model."""
    update, sizes = observed()
    for data, table, count in (
        (sparse.encode(update, SIZES), SIZES, 0),
        (sparse.encode(example(), SIZES), sizes, 2),
        (sparse.encode(update, SIZES), (*SIZES, 2, 1, 9), 3),
    ):
        with pytest.raises(RemoteWireError):
            sparse.decode(data, table, statistics=count)


def test_dense_form_is_sign_times_level_times_scale():
    """Values lie at their indices, zeros elsewhere."""
    values = example().weights.tensors[0].dense(100)
    stepped = example(Codec.Q4).weights.tensors[0].dense(100)

    assert (values[0], values[5], values[99], np.count_nonzero(values)) == (-0.5, 0.5, -0.5, 3)
    assert (stepped[0], stepped[5], stepped[99]) == (-0.5, 1.0, -4.0)


@pytest.mark.parametrize(("update", "codec"), ALL, ids=lambda v: getattr(v, "name", ""))
def test_any_changed_byte_is_detected(update, codec):
    """Each single-byte change of a frame is refused."""
    data = sparse.encode(update, SIZES, codec)
    for at in range(len(data)):
        for flip in (0x01, 0x80, 0xFF):
            broken = bytearray(data)
            broken[at] ^= flip
            with pytest.raises(RemoteWireError):
                sparse.decode(bytes(broken), SIZES)


@pytest.mark.parametrize(("update", "codec"), ALL, ids=lambda v: getattr(v, "name", ""))
def test_any_truncation_is_detected(update, codec):
    """Every proper prefix of a frame is refused, and so is every prefix of its body under a right CRC."""
    data = sparse.encode(update, SIZES, codec)
    _, _, body = frame.decode(data)
    for end in range(len(data)):
        with pytest.raises(RemoteWireError):
            sparse.decode(data[:end], SIZES)
    for end in range(len(body)):
        with pytest.raises(RemoteWireError):
            sparse.decode(sealed(body[:end], codec=codec), SIZES)


@given(st.binary(max_size=300), st.sampled_from([0, *Codec]))
def test_any_bytes_raise_only_the_wire_error(data, codec):
    """Whatever arrives, bare or framed, decodes or is a RemoteWireError."""
    for candidate in (data, sealed(data, codec=codec)):
        try:
            sparse.decode(candidate, SIZES)
        except RemoteWireError:
            continue


@given(st.data(), st.sampled_from(ALL))
def test_hostile_bodies_raise_only_the_wire_error(data, pair):
    """A sound body with bytes replaced decodes to finite values inside their tensors, or is a RemoteWireError."""
    update, codec = pair
    body = bytearray(frame.decode(sparse.encode(update, SIZES, codec))[2])
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        got = sparse.decode(sealed(body, codec=codec), SIZES)
    except RemoteWireError:
        return
    assert np.isfinite(got.norm())
    if isinstance(got.weights, Sparse):
        for tensor, size in zip(got.weights.tensors, SIZES, strict=True):
            assert (np.diff(tensor.indices) > 0).all()
            assert all(0 <= i < size for i in tensor.indices)


def with_body(body, codec=Codec.TERNARY, gaps=True):
    return sealed(sparse._HEAD.pack(0, 0, bytes(8), 1) + body, codec=codec | sparse.GAPS * gaps)


ONE = b"\x00\x3c"  # a scale of 1


def both_signs():
    """Count and nested places of a tensor of 4 whose value 2 is sent as positive and as negative."""
    return b"\x02" + bits.pack_fixed(*nested.fields(np.array([2, 4 + 2]), 8))


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (with_body(b"\x05"), "bad_tensors"),  # 5 values for a tensor of 4
        (with_body(b"\x05", gaps=False), "bad_tensors"),
        (with_body(b"\x01\x00\x80\x00\x7c"), "not_finite"),  # infinite scale
        (with_body(b"\x01\x00\x80\x00\xfc"), "not_finite"),
        (with_body(b"\x01\x00\x80\x00\x7e"), "not_finite"),  # NaN
        (with_body(b"\x01\x00\x80\x00\xbc"), "not_finite"),  # negative scale
        (with_body(b"\x01\x20\x00\x7c", gaps=False), "not_finite"),
        (with_body(b"\xff\xff\xff\xff\xff"), "bad_frame"),  # endless LEB128
        (with_body(b"\xff\xff\xff\xff\xff", gaps=False), "bad_frame"),
        (with_body(b"\x01\x3c"), "bad_stream"),  # half a scale
        (with_body(b"\x01\x20\x3c", gaps=False), "bad_stream"),
        (with_body(b"\x01\x20" + ONE + b"\x3c", gaps=False), "bad_stream"),  # a scale and a half
        (with_body(b"\x01\x00\x08" + ONE), "bad_index"),  # index 4 of 4
        (with_body(b"\x01\x00" + bytes(40) + b"\x80" + ONE), "bad_index"),  # a gap of 320
        (with_body(b"\x02\x00\x28" + ONE), "bad_index"),  # indices 2 and 4 of 4
        (with_body(both_signs() + ONE, gaps=False), "bad_index"),
        (with_body(b"\x01\x01\x80" + ONE), "bad_stream"),  # padding of the signs that is not zero
        (with_body(b"\x01\x21" + ONE, gaps=False), "bad_stream"),
        (with_body(b"\x01\x00\xc0" + ONE), "bad_stream"),  # two codes where one was expected
        (with_body(b"\x04\x00\x80" + ONE), "bad_stream"),  # gaps of a tensor that sends everything
        (with_body(b"\x01\x00" + ONE, Codec.Q4), "bad_stream"),  # no levels
        (with_body(b"\x01\x20", Codec.Q4, gaps=False), "bad_stream"),
        (with_body(b"\x01", gaps=False), "bad_stream"),  # no places
        (with_body(bytes(7), Codec.DENSE_FP16, gaps=False), "bad_stream"),  # 3.5 values of 4
        (with_body(bytes(6) + b"\x00\x7e", Codec.DENSE_FP16, gaps=False), "not_finite"),
        (with_body(bytes(12) + b"\x00\x00\x80\x7f", Codec.DENSE_FP32, gaps=False), "not_finite"),
        (with_body(bytes(8), Codec.DENSE_FP16), "bad_codec"),  # dense values have no gaps
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


def test_a_short_frame_cannot_ask_for_much_memory():
    """I6: a frame that claims more values than it has bits is refused, however few bits they would take."""
    size = 1 << 24
    for gaps in (False, True):
        with pytest.raises(RemoteWireError, match="less than a bit for each"):
            sparse.decode(with_body(b"\x80\x80\x80\x08" + ONE, gaps=gaps), (size,))


def test_a_frame_of_another_model_is_refused():
    """A sparse update for a model with fewer or more values does not decode as one of this model."""
    for sizes in ((*SIZES, 300), SIZES[:2], (3, *SIZES)):
        with pytest.raises(RemoteWireError):
            sparse.decode(sparse.encode(example(), SIZES), sizes)


def test_local_mistakes_are_local_errors():
    """What the format cannot say never reaches the wire."""
    one = example().weights
    twice = Sparse.of([SparseTensor(np.array([3, 3]), np.zeros(2, dtype=bool), 1.0)])
    high = Sparse.of([SparseTensor(np.array([3]), np.zeros(1, dtype=bool), 1.0, np.array([9]))])
    for wrong, sizes, codec in (
        (Update(0, bytes(8), 0, 0, twice), (9,), Codec.TERNARY),
        (Update(0, b"short", 0, 0, one), SIZES, Codec.TERNARY),
        (Update(0, bytes(8), 0, 0, one), (100, 4), Codec.TERNARY),
        (Update(0, bytes(8), 0, 0, one), (100, 4, 6), Codec.TERNARY),
        (Update(0, bytes(8), 0, 0, one), SIZES, Codec.DENSE_FP16),
        (Update(0, bytes(8), 0, 0, high), (9,), Codec.Q4),
        (dense(), (1, 2), Codec.DENSE_FP16),
        (dense(), SIZES, Codec.TERNARY),
    ):
        with pytest.raises(LocalWireError):
            sparse.encode(wrong, sizes, codec)


def scattered(rng, size, count):
    """An update of one tensor without structure."""
    indices = np.sort(rng.choice(size, count, replace=False)).astype(np.int64)
    return Update(0, bytes(8), 0, 0, Sparse.of([SparseTensor(indices, rng.random(count) < 0.5, 1.0)]))


def clustered(rng, size, count):
    """An update of one tensor whose values lie in runs of ten of one sign."""
    rows = np.sort(rng.choice(size // 10, count // 10, replace=False)).astype(np.int64)
    indices = np.repeat(10 * rows, 10) + np.tile(np.arange(10), len(rows))
    negative = np.repeat(rng.random(len(rows)) < 0.5, 10)
    return Update(0, bytes(8), 0, 0, Sparse.of([SparseTensor(indices, negative, 1.0)]))


def test_an_update_is_sent_in_the_form_that_is_less():
    """Values in clusters are sent nested, values without structure as gaps; the codec byte says which."""
    size, count = 60_000, 3_000
    scatter = sparse.encode(scattered(np.random.default_rng(0), size, count), (size,))
    cluster = sparse.encode(clustered(np.random.default_rng(0), size, count), (size,))

    assert sparse.split(scatter[3]) == (Codec.TERNARY, True)
    assert sparse.split(cluster[3]) == (Codec.TERNARY, False)
    assert len(cluster) < 0.6 * len(scatter)


def test_an_update_never_has_fewer_bits_than_values():
    """One value everywhere would take no bits nested, which a decoder refuses: it is sent as gaps."""
    size = 4000
    every = Update(0, bytes(8), 0, 0, Sparse.of([SparseTensor(np.arange(size), np.zeros(size, bool), 1.0)]))
    data = sparse.encode(every, (size,))

    assert sparse.split(data[3]) == (Codec.TERNARY, True)
    assert sparse.decode(data, (size,)).weights.kept == size


@pytest.mark.parametrize("make", [scattered, clustered])
@pytest.mark.parametrize("count", [16_000, 16_400])  # on either side of a power of two
def test_memory_of_decoding_follows_what_was_sent(make, count):
    """I6: decoding takes at most 64 bytes a value sent and ten times the frame, in either form."""
    size = 400_000
    update = make(np.random.default_rng(0), size, count)
    data = sparse.encode(update, (size,))
    sparse.decode(data, (size,))
    tracemalloc.start()
    sparse.decode(data, (size,))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak <= 64 * count + 10 * len(data)


def test_header_and_table_are_small():
    """An update costs 30 bytes beside its streams, and a tensor a scale, as gaps also a count."""
    empty = Update(0, bytes(8), 0, 0, Sparse.of([SparseTensor(np.arange(0), np.zeros(0, bool), 0.0)]))
    size, count = 70_000, 700
    update = scattered(np.random.default_rng(0), size, count)
    (tensor,) = update.weights.tensors
    (r,) = bits.parameters(np.array([count]), np.array([size])).tolist()
    gaps = np.diff(tensor.indices, prepend=-1) - 1
    streams = (count + 7) // 8 + (r * count + 7) // 8 + len(bits.pack_unary(gaps >> r))
    in_runs = clustered(np.random.default_rng(0), size, count)
    places = np.where(in_runs.weights.negative, size, 0) + in_runs.weights.indices
    _, widths = nested.fields(np.sort(places), 2 * size)

    assert len(sparse.encode(empty, (9,))) == 30 + 1
    assert len(sparse.encode(update, (size,))) == 30 + 2 + 2 + streams
    assert len(sparse.encode(in_runs, (size,))) == 30 + 2 + 2 + (widths.sum() + 7) // 8


def test_names_and_codecs_agree():
    """Every name that a plan may carry has a codec, and every codec a name."""
    assert tuple(sparse.CODECS) == messages.CODECS
    assert set(sparse.CODECS.values()) == set(Codec)


def test_crc_is_the_standard_one():
    """The trailer is zlib's CRC-32 of all bytes before it, little-endian."""
    data = sparse.encode(example(), SIZES)

    assert zlib.crc32(data[:-4]) == int.from_bytes(data[-4:], "little")


@settings(max_examples=200)
@given(st.lists(updates(), min_size=1, max_size=2), st.integers(2, 6), st.data())
def test_frames_decoded_together_are_what_each_is_alone(kinds, copies, data):
    """Whatever frames come, whole or damaged behind a right CRC, together they give what `decode` gives or raises."""
    for update, sizes, statistics, codec in kinds:
        whole = sparse.encode(update, sizes[: len(sizes) - statistics], codec)
        frames = [whole] * copies
        for _ in range(data.draw(st.integers(0, copies))):
            frames.append(resealed(bytearray(whole), data))
        frames = data.draw(st.permutations(frames))

        for got, one in zip(together.decode(frames, sizes, statistics), frames, strict=True):
            expected = alone(one, sizes, statistics)
            assert type(got) is type(expected)
            if isinstance(expected, RemoteWireError):
                assert (got.code, str(got)) == (expected.code, str(expected))
                continue
            head = ("base_version", "base_hash", "tag", "n_samples")
            assert [getattr(got, name) for name in head] == [getattr(expected, name) for name in head]
            assert got.statistics.tobytes() == expected.statistics.tobytes()
            assert same(got.weights, expected.weights)


def alone(data, sizes, statistics):
    try:
        return sparse.decode(data, sizes, statistics)
    except RemoteWireError as error:
        return error


def resealed(body, data):
    """The frame with some bytes of its body changed, and the CRC that belongs to them."""
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(8, len(body) - 5))] = data.draw(st.integers(0, 255))
    return bytes(body[:-4]) + zlib.crc32(body[:-4]).to_bytes(4, "little")
