"""The hidden state: what C leaves out is kept, comes later, and is the same for whoever computes it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.commit import EXACT_MAX
from aggregator.hidden import FINE_BITS, LAG_MAX, follow
from edge_client.wire import grid
from edge_client.wire.grid import GRID_MAX

STEP_EXPS = (-16, -14, -17)
HALF = 2 ** (FINE_BITS - 1)
TENSOR = st.lists(st.integers(-(2**20), 2**20), min_size=1, max_size=40)
MODEL = st.tuples(TENSOR, TENSOR, TENSOR)
DENSITY = st.floats(0.01, 1.0)


def fine(model):
    """x̂ = 0 and x at these fine steps."""
    exact = [np.array(t, dtype=np.int64) for t in model]
    return exact, [np.zeros(len(t), dtype=np.int32) for t in model]


def norm(exact, model):
    behind = [
        np.ldexp(x - (m.astype(np.int64) << FINE_BITS), step).astype(float)
        for x, m, step in zip(exact, model, STEP_EXPS, strict=True)
    ]
    return float(np.linalg.norm(np.concatenate(behind)))


@given(MODEL, DENSITY)
def test_what_is_left_out_is_kept(model, density):
    """The new x̂ and the lag together are x, to the last bit, whatever was left out."""
    exact, before = fine(model)

    state = follow(exact, before, STEP_EXPS, density)

    assert all(np.array_equal(a, b) for a, b in zip(state.exact(), exact, strict=True))
    assert norm(exact, state.model) <= norm(exact, before) + 1e-9
    assert {t.dtype for t in (*state.model, *state.lag)} == {np.dtype(np.int32)}


@given(MODEL)
def test_the_whole_density_rounds_to_the_grid(model):
    """At density 1 devices have x rounded to the nearest grid point, so nothing but that is left."""
    exact, before = fine(model)

    state = follow(exact, before, STEP_EXPS, 1.0)

    assert state.lossless
    for x, values in zip(exact, state.model, strict=True):
        assert values.tolist() == np.rint(x / 2**FINE_BITS).tolist()


@given(MODEL, st.floats(0.05, 0.5))
def test_without_updates_the_devices_catch_up(model, density):
    """Commits that change nothing bring x̂ nearer with each version, until it is x rounded to the grid."""
    exact, values = fine(model)
    norms = [norm(exact, values)]
    for _ in range(2000):
        state = follow(exact, values, STEP_EXPS, density)
        values = state.model
        norms.append(norm(exact, values))
        if state.lossless:
            break
        assert norms[-1] < norms[-2]

    assert state.lossless
    assert max(int(np.abs(lag).max()) for lag in state.lag) <= HALF


def test_the_largest_differences_move_by_one_power_of_two_a_tensor():
    """C counts in the model's own units, sends the share asked for, and each tensor has one scale."""
    unit = 2**FINE_BITS
    exact = [np.array([9, -7, 100, 0, 6, -90]) * unit, np.array([30, 1, -2, 60]) * unit]
    before = [np.zeros(6, np.int32), np.zeros(4, np.int32)]

    # A step of the second tensor is four of the first: its 30 and 60 are the largest, then 100 and -90.
    state = follow(exact, before, (-16, -14), 0.4)

    assert state.model[0].tolist() == [0, 0, 64, 0, 0, -64]
    assert state.model[1].tolist() == [32, 0, 0, 32]


def test_equal_differences_are_chosen_from_the_front():
    """I2: of equals the first are taken, not those that this machine's partitioning happens to leave there."""
    exact, before = fine([[500 * 2**FINE_BITS] * 1000])

    state = follow(exact, before, (-16,), 0.1)

    assert np.flatnonzero(state.model[0]).tolist() == list(range(100))


def test_only_what_differs_moves():
    """When fewer values differ than the share asked for, only they move, by one power of two."""
    exact, before = fine([[0] * 50])
    exact[0][[3, 20]] = np.array([7, -1000]) << FINE_BITS

    state = follow(exact, before, (-16,), 0.5)

    assert np.flatnonzero(state.model[0]).tolist() == [3, 20]
    assert state.model[0][[3, 20]].tolist() == [512, -512]


def test_statistics_arrive_whole():
    """The table's tail is observed, not learned: none of it is left for a later version."""
    exact, before = fine([list(range(0, 60000, 600)), [123456, -77777], [5]])

    state = follow(exact, before, STEP_EXPS, 0.05, statistics=2)

    assert not state.lossless
    for x, lag in zip(exact[1:], state.lag[1:], strict=True):
        assert int(np.abs(lag).max()) <= HALF
        assert np.array_equal(np.rint(x / 2**FINE_BITS) * 2**FINE_BITS + lag, x)


def test_a_lag_that_cannot_be_stored_is_not_left():
    """A model that runs away is followed at once where the lag would not fit, and saturates at the grid's edge."""
    exact = [np.array([EXACT_MAX, -EXACT_MAX, LAG_MAX + 2**20, *range(1000, 9000, 1000)], dtype=np.int64)]
    before = [np.zeros(11, np.int32)]

    state = follow(exact, before, (-16,), 0.1)

    assert state.model[0][:2].tolist() == [GRID_MAX, -GRID_MAX]
    assert np.array_equal(state.exact()[0], exact[0])


@pytest.mark.parametrize("density", [0.1, 1.0])
def test_a_version_costs_what_was_left_in(density):
    """A ternary delta needs positions and signs only, within a byte or two of their entropy."""
    rng = np.random.default_rng(3)
    size = 20_000
    exact, before = fine([(rng.standard_normal(size) * 2**14).astype(np.int64)])

    state = follow(exact, before, (-16,), density)

    data = grid.encode_delta(1, 0, state.model, before)
    if density == 1.0:
        assert len(data) > size * 6 / 8
        return
    entropy = -(0.1 * np.log2(0.1) + 0.9 * np.log2(0.9)) + 0.1
    assert entropy * size / 8 <= len(data) <= 1.02 * entropy * size / 8 + 34
