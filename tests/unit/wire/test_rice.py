"""Split-stream Rice codes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.wire import rice
from edge_client.wire.errors import RemoteWireError
from edge_client.wire.sparse import pack

VALUES = st.lists(st.integers(0, 5000), max_size=80).map(lambda v: np.array(v, dtype=np.int64))


@given(st.lists(st.tuples(VALUES, st.integers(0, 14)), max_size=5))
def test_runs_round_trip(runs):
    """Several runs with their own parameters, packed one after another, come back in order."""
    quotients = pack([rice.quotient_bits(v, r) for v, r in runs])
    remainders = pack([rice.remainder_bits(v, r) for v, r in runs])
    unary = rice.UnaryReader(memoryview(quotients), sum(len(v) for v, _ in runs))
    fixed = rice.BitReader(memoryview(remainders))
    for values, r in runs:
        got = rice.decode(unary.take(len(values)), fixed.take(len(values) * r), r)

        assert got.tolist() == values.tolist()
    fixed.finish()


@given(st.lists(st.integers(0, 2**31 - 1), max_size=40), st.just(31))
def test_fixed_bits_round_trip(values, width):
    """Fixed-width values come back."""
    bits = rice.fixed_bits(np.array(values, dtype=np.int64), width)

    assert rice.from_fixed_bits(bits, width).tolist() == values


@pytest.mark.parametrize("mean", [0.0, 0.3, 1.0, 7.0, 99.0, 1e4])
def test_parameter_is_near_the_best(mean):
    """The chosen parameter costs at most 3 % more than the best one on geometric values."""
    values = np.random.default_rng(0).geometric(1 / (mean + 1), 20_000) - 1

    def cost(r):
        return len(rice.quotient_bits(values, r)) + r * len(values)

    chosen = rice.parameter(float(values.mean()))
    assert cost(chosen) <= 1.03 * min(cost(r) for r in range(max(chosen - 3, 0), chosen + 4))


def test_parameter_stays_in_range():
    """However large the mean, a remainder fits its field."""
    assert rice.parameter(2.0**50) == rice.R_MAX


def test_reading_past_the_end_is_bad_stream():
    """A bit stream that ends early is the peer's fault."""
    with pytest.raises(RemoteWireError, match="ends before") as caught:
        rice.BitReader(memoryview(b"\xff")).take(9)

    assert caught.value.code == "bad_stream"


@pytest.mark.parametrize(("data", "taken"), [(b"\x80\x00", 1), (b"\xc0", 1)])
def test_a_stream_that_goes_on_is_bad_stream(data, taken):
    """A whole byte of padding, or padding that is not zero, is refused: one value has one encoding."""
    reader = rice.BitReader(memoryview(data))
    reader.take(taken)
    with pytest.raises(RemoteWireError):
        reader.finish()


@pytest.mark.parametrize(("data", "count"), [(b"\x80", 2), (b"\xff", 2), (b"\x80\x00", 1)])
def test_unary_streams_hold_exactly_their_values(data, count):
    """Too few codes, too many, or a byte beyond the last one are refused."""
    with pytest.raises(RemoteWireError):
        rice.UnaryReader(memoryview(data), count)


def test_values_of_no_width_have_no_count():
    """Asking for zero-width values is a local mistake."""
    with pytest.raises(ValueError, match="zero width"):
        rice.from_fixed_bits(np.zeros(0, np.uint8), 0)
