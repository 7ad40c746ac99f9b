"""Defences of a buffer: a bound on norms and a cap on a device's share, as whole gains."""

from hypothesis import given
from hypothesis import strategies as st

from aggregator.bounds import (
    GAIN_ONE,
    NORMS_MIN,
    Bounds,
    device_updates,
    norm_bin,
    norm_bound,
    upper_edge,
)


@given(st.floats(1e-30, 1e30))
def test_a_norm_lies_in_its_bin(norm):
    """Each bin reaches from the upper edge of the one below to its own, a quarter of an octave."""
    number = norm_bin(norm)

    assert upper_edge(number - 1) <= norm < upper_edge(number) * (1 + 1e-15)


def test_the_bound_follows_the_quantile():
    """Three times the median of recent norms, up to the width of a bin; a few huge norms do not move it."""
    histogram = {norm_bin(1.0): 60, norm_bin(1000.0): 20}

    bound = norm_bound([histogram, {norm_bin(1.0): 10}], 0.5, 3.0)

    assert 3.0 <= bound <= 3.0 * 2**0.25
    assert norm_bound([{norm_bin(1.0): NORMS_MIN - 1}], 0.5, 3.0) is None


@given(st.floats(1e-3, 1e6), st.floats(1e-3, 1e3))
def test_a_clipped_update_is_within_the_bound(norm, bound):
    """Gains are whole 256ths, rounded down: never above the bound, and below it untouched."""
    gain = Bounds(norm=bound).gain(norm, 0)

    assert gain == GAIN_ONE if norm <= bound else gain / GAIN_ONE * norm <= bound


def test_a_device_counts_a_few_times_in_a_buffer():
    """What a device sends beyond its share of a buffer weighs nothing."""
    bounds = Bounds(device_updates=2)

    assert [bounds.gain(1.0, before) for before in range(4)] == [GAIN_ONE, GAIN_ONE, 0, 0]


def test_a_share_is_capped_once_there_are_devices_to_share_it():
    """A few devices may fill a buffer of ten between them; among twenty nobody has more than a fifth."""
    assert device_updates(0.2, 10, participants=9) is None
    assert device_updates(0.2, 10, participants=20) == 2
    assert device_updates(0.2, 1, participants=20) == 1
