"""Nested places: binary interpolative coding by levels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.wire import bits, nested
from edge_client.wire.errors import RemoteWireError


@st.composite
def sets(draw):
    """(strictly increasing places, number of all), scattered, in a run, none or all."""
    size = draw(st.integers(0, 500))
    taken = draw(st.one_of(st.sets(st.integers(0, max(size - 1, 0)), max_size=60), st.just(range(size))))
    run = draw(st.integers(0, size))
    taken = set(taken) | set(range(run, min(run + draw(st.integers(0, 40)), size)))
    return np.array(sorted(taken if size else ()), dtype=np.int64), size


def pack(places, size):
    return bits.pack_fixed(*nested.fields(places, size))


def reference(places, size):
    """The bits one by one, as text, as docs/wire.md §6 has them."""
    count, out = len(places), ""
    known = {0: 0, count + 1: size - count}
    step = 1 << (count.bit_length() - 1) if count and count < size else 0
    while step:
        tails = ""
        for i in range(step, count + 1, 2 * step):
            low, high = known[i - step], known[min(i + step, count + 1)]
            known[i] = int(places[i - 1]) - (i - 1)
            possible = high - low + 1
            width = possible.bit_length() - 1
            short = 2 ** (width + 1) - possible
            value = (known[i] - low + short // 2) % possible
            if value >= short:
                value += short
                tails += str(value & 1)
                value >>= 1
            out += f"{value:0{width}b}" if width else ""
        out += tails
        step >>= 1
    return out


@given(sets(), st.binary(max_size=9))
def test_places_round_trip_with_anything_behind_them(made, rest):
    """Any set of places comes back, with its length, whatever follows; its bits are those of the specification."""
    places, size = made
    data = pack(places, size)
    text = reference(places, size)
    got, length = nested.read(memoryview(data + rest), len(places), size)

    assert "".join(f"{byte:08b}" for byte in data) == text + "0" * (-len(text) % 8)
    assert (got.tolist(), length) == (places.tolist(), len(data))


@given(st.binary(max_size=80), st.integers(0, 200), st.integers(0, 200))
def test_any_bits_are_places_or_the_wire_error(data, count, more):
    """I11: whatever arrives is `count` increasing places inside, in just these bits, or is refused."""
    size = count + more
    try:
        places, length = nested.read(memoryview(data), count, size)
    except RemoteWireError:
        return
    assert len(places) == count
    assert (np.diff(places) > 0).all()
    assert all(0 <= p < size for p in places)
    assert pack(places, size) == data[:length]


def test_padding_must_be_zero():
    """A set has one encoding."""
    with pytest.raises(RemoteWireError, match="padded"):
        nested.read(memoryview(b"\x01"), 1, 8)


def test_places_of_many_blocks_round_trip():
    """A level of more fields than are unpacked at a time is read like the rest."""
    size = 8 * bits.BLOCK
    places = np.flatnonzero(np.random.default_rng(0).random(size) < 0.4)
    data = pack(places, size)

    assert np.array_equal(nested.read(memoryview(data), len(places), size)[0], places)


@pytest.mark.parametrize("density", [0.001, 0.01, 0.1, 0.4])
def test_places_without_structure_cost_at_most_a_seventh_more_than_their_entropy(density):
    """The price of the code where there is nothing to make use of."""
    size = 500_000
    places = np.flatnonzero(np.random.default_rng(0).random(size) < density)
    share = len(places) / size
    entropy = -size * (share * np.log2(share) + (1 - share) * np.log2(1 - share))

    assert nested.fields(places, size)[1].sum() <= 8 / 7 * entropy


def test_runs_take_next_to_nothing():
    """A thousand places in a row cost their two ends, a few bits more than twenty each."""
    places = 300_000 + np.arange(1000)

    assert nested.fields(places, 1_000_000)[1].sum() < 300
