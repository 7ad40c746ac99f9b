"""Server optimisers: two steps of each, by hand from the paper's formula."""

import numpy as np
import pytest

from aggregator.optimizer import SLOTS, OptimizerSpec, rate, step

FIRST, SECOND = np.array([0.5, -0.25]), np.array([0.125, 0.0])
EPS = 1e-3


def two_steps(name):
    spec = OptimizerSpec(name=name, momentum=0.5, beta1=0.9, beta2=0.99, epsilon=EPS)
    one, slots = step(spec, FIRST, {})
    two, slots = step(spec, SECOND, slots)
    return one, two, slots


def test_sgd_steps_along_the_mean():
    """FedBuff's step is the mean update itself, and it keeps nothing."""
    one, two, slots = two_steps("sgd")

    assert (one.tolist(), two.tolist(), slots) == (FIRST.tolist(), SECOND.tolist(), {})


def test_momentum_remembers_half_of_the_step_before():
    """FedAvgM: m ← μ m + Δ."""
    one, two, _ = two_steps("momentum")

    assert one == pytest.approx(FIRST)
    assert two == pytest.approx(0.5 * FIRST + SECOND)


@pytest.mark.parametrize("name", ["adam", "yogi", "amsgrad"])
def test_adaptive_steps_are_their_papers_formulas(name):
    """FedAdam and FedYogi without bias correction, v from ε²; FADAS divides by the largest v so far."""
    one, two, slots = two_steps(name)

    m, v, largest = np.zeros(2), np.full(2, EPS**2), np.zeros(2)
    for mean, got in ((FIRST, one), (SECOND, two)):
        m = 0.9 * m + 0.1 * mean
        v = v - 0.01 * mean**2 * np.sign(v - mean**2) if name == "yogi" else 0.99 * v + 0.01 * mean**2
        largest = np.maximum(largest, v)
        divisor = largest if name == "amsgrad" else v
        assert got == pytest.approx(m / (np.sqrt(divisor) + EPS), rel=1e-6)
    assert set(slots) == set(SLOTS[name])


def test_state_is_what_float32_holds():
    """I2: a state that was stored and loaded is the very same numbers."""
    for name in SLOTS:
        _, _, slots = two_steps(name)
        for values in slots.values():
            assert values.astype(np.float32).astype(np.float64).tolist() == values.tolist()


def test_the_rate_falls_with_the_delay():
    """FADAS: η up to τ_c, then at most 1 / τ."""
    adaptive, plain = OptimizerSpec(delay_max=4), OptimizerSpec()

    assert [rate(adaptive, 0.2, delay) for delay in (0, 4, 5, 10)] == [0.2, 0.2, 0.2, 0.1]
    assert rate(plain, 0.2, 100) == 0.2
