"""Gradient rules of reductions."""

import math

import numpy as np

from firmware_tools.autodiff.graph import DYNAMIC
from firmware_tools.autodiff.registry import Call, Gradients, gradient


@gradient("ReduceMean")
def reduce_mean(call: Call) -> Gradients:
    """Each of the n reduced values gets dy / n; the reduced extents must be static."""
    shape = call.shape(call.x)
    axes = call.ints("axes", 1)
    if axes is None:
        axes = () if call.attribute("noop_with_empty_axes", 0) else tuple(range(len(shape)))
    axes = tuple(sorted(a % len(shape) for a in axes))
    return [_spread(call, axes, keepdims=bool(call.attribute("keepdims", 1)))]


@gradient("GlobalAveragePool")
def global_average_pool(call: Call) -> Gradients:
    """The mean over all spatial axes."""
    return [_spread(call, tuple(range(2, len(call.shape(call.x)))), keepdims=True)]


def _spread(call: Call, axes: tuple[int, ...], *, keepdims: bool) -> str:
    shape, g, dy = call.shape(call.x), call.graph, call.dy
    if any(shape[a] == DYNAMIC for a in axes):
        raise call.refused("it averages over the batch")
    if not axes:
        return dy
    if not keepdims:
        dy = g.add("Unsqueeze", dy, g.ints(*axes))
    # A broadcast product: Expand takes 50 times as long on the stock CPU kernels.
    extents = [shape[i] if i in axes else 1 for i in range(len(shape))]
    share = np.full(extents, 1.0 / math.prod(shape[a] for a in axes), dtype=np.float32)
    return g.add("Mul", dy, g.constant(share))
