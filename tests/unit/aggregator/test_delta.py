"""Deltas by their bytes: all is sent when that is no more than a share would take, or next to nothing."""

import numpy as np
import pytest

from aggregator.delta import DELTA_BYTES_MIN, least
from aggregator.hidden import FINE_BITS, follow
from edge_client.wire import grid

SIZE = 20_000
STEPS = (-16,)
BEFORE = (np.zeros(SIZE, dtype=np.int32),)


def made(values, density):
    exact = [np.asarray(values, dtype=np.int64) << FINE_BITS]
    delta = least(4, exact, BEFORE, STEPS, density)
    whole = grid.encode_delta(4, 3, follow(exact, BEFORE, STEPS, 1.0).model, BEFORE)
    frame = grid.decode(delta.data, (SIZE,))
    assert (frame.version, frame.base_version, frame.model_hash) == (4, 3, grid.model_hash(delta.state.model))
    return delta, whole


def test_a_dense_step_sends_its_share():
    """Many values of all sizes cost more than the share's places and signs."""
    delta, whole = made(np.random.default_rng(1).integers(-9000, 9000, SIZE), 0.1)

    assert (delta.density, delta.state.lossless) == (0.1, False)
    assert len(delta.data) < len(whole) / 4


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_a_step_of_few_values_is_not_whole_for_being_few(share):
    """Fewer values than the share still cost magnitudes when whole: the bytes decide, not the count."""
    rng = np.random.default_rng(2)
    values = np.where(rng.random(SIZE) < 0.08, rng.integers(-9000, 9000, SIZE), 0)

    delta, whole = made(values, share)

    assert delta.density == share
    assert len(delta.data) < len(whole) / 2


def test_equal_steps_are_sent_whole():
    """Values that all moved by one amount cost no magnitudes, so nothing is left out."""
    rng = np.random.default_rng(3)
    delta, whole = made(np.where(rng.random(SIZE) < 0.08, -64, 0), 0.1)

    assert (delta.density, delta.data, delta.state.lossless) == (1.0, whole, True)


def test_next_to_nothing_is_sent_whole():
    """A delta smaller than what surrounds it is not worth leaving values out of."""
    rng = np.random.default_rng(4)
    values = np.zeros(SIZE, dtype=np.int64)
    values[rng.choice(SIZE, 25, replace=False)] = rng.integers(1, 9000, 25)

    delta, whole = made(values, 0.001)

    assert len(whole) <= DELTA_BYTES_MIN
    assert (delta.density, delta.data) == (1.0, whole)
