"""Runs of Rice codes, coded together."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.wire import bits
from edge_client.wire.errors import RemoteWireError

FIELDS = st.lists(
    st.integers(0, 31).flatmap(lambda w: st.tuples(st.integers(0, 2**w - 1), st.just(w))), max_size=120
)


def arrays(fields):
    values, widths = zip(*fields, strict=True) if fields else ((), ())
    return np.array(values, dtype=np.int64), np.array(widths, dtype=np.int64)


@given(FIELDS)
def test_fields_of_any_widths_round_trip(fields):
    """Values of mixed widths are packed most significant bit first without a gap, and come back."""
    values, widths = arrays(fields)
    data = bits.pack_fixed(values, widths)
    text = "".join(f"{v:0{w}b}" for v, w in fields if w)

    assert "".join(f"{byte:08b}" for byte in data) == text + "0" * (-len(text) % 8)
    assert bits.unpack_fixed(memoryview(data), widths).tolist() == values.tolist()


def test_fields_of_many_blocks_round_trip():
    """What lies across the edge between two blocks of fields is read like the rest."""
    rng = np.random.default_rng(1)
    widths = rng.integers(0, 32, 3 * bits.BLOCK + 17)
    values = rng.integers(0, 2**31, len(widths)) & ((1 << widths) - 1)

    assert np.array_equal(bits.unpack_fixed(memoryview(bits.pack_fixed(values, widths)), widths), values)


@given(st.lists(st.integers(0, 300), max_size=60))
def test_unary_codes_round_trip(values):
    """Quotients come back from as many zeros and a one each."""
    data = bits.pack_unary(np.array(values, dtype=np.int64))

    assert bits.unpack_unary(memoryview(data), len(values)).tolist() == values


@given(st.binary(max_size=60), FIELDS, st.integers(0, 60))
def test_any_bytes_decode_or_are_the_wire_error(data, fields, count):
    """Streams of the wrong length or number of codes are refused, and nothing else is raised."""
    for read in (
        lambda: bits.unpack_fixed(memoryview(data), arrays(fields)[1]),
        lambda: bits.unpack_unary(memoryview(data), count),
        lambda: bits.unpack_flags(memoryview(data), count),
    ):
        try:
            read()
        except RemoteWireError:
            continue


def test_padding_must_be_zero():
    """One value has one encoding: a stream with other padding is refused."""
    with pytest.raises(RemoteWireError, match="padded"):
        bits.unpack_fixed(memoryview(b"\xff"), np.array([3]))
    with pytest.raises(RemoteWireError, match="padded"):
        bits.unpack_flags(memoryview(b"\xff"), 3)


@given(st.lists(st.booleans(), max_size=60))
def test_flags_round_trip(flags):
    """One bit a value, and a stream that is too long or too short for them is refused."""
    data = bits.pack_flags(np.array(flags, dtype=bool))

    assert bits.unpack_flags(memoryview(data), len(flags)).tolist() == flags
    for other in (data + b"\0", data[:-1]):
        if other != data:
            with pytest.raises(RemoteWireError):
                bits.unpack_flags(memoryview(other), len(flags))


@pytest.mark.parametrize("mean", [0.0, 0.3, 1.0, 7.0, 99.0, 1e4])
def test_the_parameter_of_a_mean_is_near_the_best(mean):
    """The parameter costs at most 3 % more than the best one on geometric values."""
    values = np.random.default_rng(0).geometric(1 / (mean + 1), 20_000) - 1

    def cost(r):
        return int((values >> r).sum()) + (1 + r) * len(values)

    chosen = bits.parameter(float(values.mean()))
    assert cost(chosen) <= 1.03 * min(cost(r) for r in range(max(chosen - 3, 0), chosen + 4))
    assert bits.parameter(2.0**60) == bits.WIDTH_MAX


@pytest.mark.parametrize("density", [0.001, 0.01, 0.05, 0.1, 0.3, 0.7])
def test_derived_parameters_cost_at_most_a_hundredth_more_than_the_best(density):
    """The parameter that both sides derive from count and size is as good as one chosen from the gaps."""
    size = 200_000
    where = np.flatnonzero(np.random.default_rng(0).random(size) < density)
    gaps = np.diff(where, prepend=-1) - 1

    def cost(r):
        return int((gaps >> r).sum()) + (1 + r) * len(gaps)

    (chosen,) = bits.parameters(np.array([len(where)]), np.array([size])).tolist()
    assert cost(chosen) <= 1.01 * min(cost(r) for r in range(max(chosen - 3, 0), chosen + 4))


def test_derived_parameters_stay_in_range():
    """Nothing kept, everything kept and one value of a huge tensor all have a parameter of 0 to 31."""
    counts, sizes = np.array([0, 1, 5, 1]), np.array([10, 1, 5, 2**32 - 1])

    assert bits.parameters(counts, sizes).tolist() == [3, 0, 0, 30]
