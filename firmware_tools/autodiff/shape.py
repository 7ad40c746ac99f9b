"""Gradient rules of operators that only rearrange values."""

import numpy as np

from firmware_tools.autodiff.graph import DYNAMIC
from firmware_tools.autodiff.registry import Call, Gradients, gradient


@gradient("Flatten", "Reshape", "Squeeze", "Unsqueeze")
def rearranged(call: Call) -> Gradients:
    """The values keep their order, so the gradient only takes back the input's shape."""
    shape = call.shape(call.x)
    g = call.graph
    # In a constant shape -1 stands for the one dynamic extent.
    target = g.ints(*shape) if shape.count(DYNAMIC) <= 1 else g.add("Shape", call.x)
    return [g.add("Reshape", call.dy, target)]


@gradient("Transpose")
def transpose(call: Call) -> Gradients:
    """The inverse permutation."""
    rank = len(call.shape(call.x))
    perm = call.attribute("perm", list(range(rank))[::-1])
    return [call.graph.add("Transpose", call.dy, perm=[int(i) for i in np.argsort(perm)])]
