"""Gradient rules over random shapes, attributes and broadcasts, against central differences in float64."""

import pytest
from firmware_test_derivatives import check
from firmware_test_random_cases import STRATEGIES
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.mark.parametrize("name", STRATEGIES)
@settings(max_examples=25)
@given(st.data())
def test_random_gradients_agree_with_finite_differences(name, data):
    """Each input's gradient has its shape, and is the slope of the operator in random directions."""
    check(data.draw(STRATEGIES[name]), data.draw(st.integers(0, 999)))
