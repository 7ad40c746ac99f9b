"""Gradient rules over random shapes, axes and broadcasts."""

import numpy as np
from firmware_test_derivatives import case, check
from hypothesis import given, settings
from hypothesis import strategies as st

EXTENTS = st.integers(1, 4)
SEEDS = st.integers(0, 999)
EFFORT = settings(max_examples=25, deadline=None)


@st.composite
def broadcast(draw):
    """Two shapes that broadcast against each other, and one that both lead to."""
    whole = draw(st.lists(EXTENTS, min_size=1, max_size=4))

    def cut():
        start = draw(st.integers(0, len(whole) - 1))
        return tuple(draw(st.sampled_from([1, extent])) for extent in whole[start:])

    return cut(), cut()


@EFFORT
@given(st.sampled_from(["Add", "Sub", "Mul", "Div", "Pow", "Max", "Min"]), broadcast(), SEEDS)
def test_binary_operators_under_any_broadcast(op, shapes, seed):
    """Both operands of a binary operator get gradients of their own shapes."""
    check(case(op, op, *shapes, positive=True), seed)


@EFFORT
@given(
    st.sampled_from(["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2"]),
    st.data(),
    st.booleans(),
)
def test_reductions_over_any_axes(op, data, keepdims):
    """Reductions over any set of axes, counted from either end, kept or dropped."""
    shape = tuple(data.draw(st.lists(EXTENTS, min_size=1, max_size=4)))
    axes = data.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))
    signed = tuple(a - len(shape) if data.draw(st.booleans()) else a for a in sorted(axes))
    check(case(op, op, shape, constants=(signed,), keepdims=int(keepdims)), data.draw(SEEDS))


@EFFORT
@given(st.data())
def test_slices_with_any_bounds_and_steps(data):
    """Slices with bounds before, inside and beyond the tensor, and steps of both signs."""
    extent = data.draw(st.integers(1, 7))
    step = data.draw(st.sampled_from([-3, -2, -1, 1, 2, 3]))
    start, end = (data.draw(st.integers(-extent - 2, extent + 2)) for _ in range(2))
    if len(range(*slice(start, end, step).indices(extent))) == 0:
        start, end = (0, 2**31 - 1) if step > 0 else (-1, -(2**31))
    check(case("slice", "Slice", (2, extent), constants=((start,), (end,), (1,), (step,))), data.draw(SEEDS))


@EFFORT
@given(st.data())
def test_gathers_of_any_indices(data):
    """Gathers of scalars, vectors and matrices of indices, repeated and negative, along any axis."""
    shape = tuple(data.draw(st.lists(EXTENTS, min_size=1, max_size=3)))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    form = tuple(data.draw(st.lists(st.integers(1, 3), max_size=2)))
    count = int(np.prod(form, dtype=int))
    picks = st.lists(st.integers(-shape[axis], shape[axis] - 1), min_size=count, max_size=count)
    indices = np.array(data.draw(picks), dtype=np.int64).reshape(form)
    check(case("gather", "Gather", shape, constants=(indices,), axis=axis), data.draw(SEEDS))


@EFFORT
@given(st.data())
def test_convolutions_of_any_geometry(data):
    """Convolutions in one dimension over strides, dilations, paddings and groups."""
    kernel, stride, dilation, groups, inner, outer = (data.draw(st.integers(1, 3)) for _ in range(6))
    pads = [data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2))]
    length = data.draw(st.integers((kernel - 1) * dilation + 1, 9))
    shapes = (2, groups * inner, length), (groups * outer, inner, kernel), (groups * outer,)
    geometry = {"strides": [stride], "dilations": [dilation], "pads": pads, "group": groups}
    check(case("conv", "Conv", *shapes, **geometry), data.draw(SEEDS))
