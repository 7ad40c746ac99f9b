"""Gradient rules of reductions."""

import math

import numpy as np
from onnx import helper

from firmware_tools.autodiff.elementwise import mask
from firmware_tools.autodiff.graph import DYNAMIC, FLOAT
from firmware_tools.autodiff.registry import Call, Gradients, gradient

NORM_MIN = 1e-20  # below it a vector counts as zero, where ReduceL2 gets gradient 0


@gradient("ReduceSum")
def reduce_sum(call: Call) -> Gradients:
    """Each reduced value gets dy."""
    return [_spread(call, _axes(call), mean=False)]


@gradient("ReduceMean")
def reduce_mean(call: Call) -> Gradients:
    """Each of the n reduced values gets dy / n."""
    return [_spread(call, _axes(call), mean=True)]


@gradient("GlobalAveragePool")
def global_average_pool(call: Call) -> Gradients:
    """The mean over all spatial axes."""
    return [_spread(call, _spatial(call), mean=True)]


@gradient("ReduceMax", "ReduceMin")
def reduce_extremum(call: Call) -> Gradients:
    """The gradient goes to the extreme value; equal values share it evenly."""
    return [_extreme(call, _axes(call))]


@gradient("GlobalMaxPool")
def global_max_pool(call: Call) -> Gradients:
    """The maximum over all spatial axes."""
    return [_extreme(call, _spatial(call))]


@gradient("ReduceL2")
def reduce_l2(call: Call) -> Gradients:
    """Slope x / y, 0 where y is 0."""
    g, axes = call.graph, _axes(call)
    if not axes:
        raise call.refused("without axes runtimes disagree on its value")
    norm = g.add("Max", _kept(call, call.y, axes), g.scalar(NORM_MIN))
    return [g.add("Mul", call.x, g.add("Div", _kept(call, call.dy, axes), norm))]


def _axes(call: Call) -> tuple[int, ...]:
    """The reduced axes, sorted; none when the operator is asked to do nothing."""
    rank = len(call.shape(call.x))
    axes = call.ints("axes", 1)
    if not axes:
        return () if call.attribute("noop_with_empty_axes", 0) else tuple(range(rank))
    return tuple(sorted(a % rank for a in axes))


def _spatial(call: Call) -> tuple[int, ...]:
    return tuple(range(2, len(call.shape(call.x))))


def _kept(call: Call, tensor: str, axes: tuple[int, ...]) -> str:
    """A reduced tensor with its reduced axes of extent 1."""
    if not axes or call.node.op_type.startswith("Global") or call.attribute("keepdims", 1):
        return tensor
    return call.graph.add("Unsqueeze", tensor, call.graph.ints(*axes))


def _spread(call: Call, axes: tuple[int, ...], *, mean: bool) -> str:
    shape, g = call.shape(call.x), call.graph
    if not axes:
        return call.dy
    if any(shape[a] == DYNAMIC for a in axes):
        one = helper.make_tensor("one", FLOAT, [1], [1.0])
        ones = g.add("ConstantOfShape", g.add("Shape", call.x), value=one)
        if mean:
            size, kept = (g.add("Cast", g.add("Size", t), to=FLOAT) for t in (call.x, call.y))
            ones = g.add("Div", ones, g.add("Div", size, kept))
        return g.add("Mul", _kept(call, call.dy, axes), ones)
    # A broadcast product: Expand takes 50 times as long on the stock CPU kernels.
    extents = [shape[i] if i in axes else 1 for i in range(len(shape))]
    share = np.full(extents, 1.0 / math.prod(extents) if mean else 1.0, dtype=np.float32)
    return g.add("Mul", _kept(call, call.dy, axes), g.constant(share))


def _extreme(call: Call, axes: tuple[int, ...]) -> str:
    g = call.graph
    if not axes:
        return call.dy
    hit = mask(g, "Equal", call.x, _kept(call, call.y, axes))
    count = g.add("ReduceSum", hit, g.ints(*axes), keepdims=1)
    return g.add("Mul", hit, g.add("Div", _kept(call, call.dy, axes), count))
