"""s(τ): the formulas of the papers."""

import pytest

from aggregator.staleness import function

CASES = {
    "constant": [1.0, 1.0, 1.0, 1.0],
    "polynomial": [1.0, 2**-0.5, 5**-0.5, 11**-0.5],  # (1 + τ)^-a
    "hinge": [1.0, 1.0, 1.0, 1 / (0.5 * (10 - 4) + 1)],
    "threshold": [1.0, 1.0, 1.0, 0.2],
}


@pytest.mark.parametrize("name", CASES)
def test_a_function_is_its_papers_formula(name):
    """At τ = 0, 1, 4 and 10 with a = 0.5, b = 4 and a floor of 0.2, computed by hand."""
    weight = function(name, exponent=0.5, start=4, floor=0.2)

    assert [weight(tau) for tau in (0, 1, 4, 10)] == pytest.approx(CASES[name])
