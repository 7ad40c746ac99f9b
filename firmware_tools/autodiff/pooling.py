"""Gradient rules of pooling."""

import itertools
import math

import numpy as np

from firmware_tools.autodiff.elementwise import mask
from firmware_tools.autodiff.graph import Graph
from firmware_tools.autodiff.registry import Call, Gradients, expansion, gradient
from firmware_tools.autodiff.window import Window, window_of


@expansion("MaxPool")
def pairs(call: Call) -> None:
    """Windows of 2 that tile the input become the larger of neighbours, along one axis after the other.

    The gradient then goes to where the larger one came from, for two fifths of the time of comparing the input
    with its maxima spread out again: 0.11 and 0.27 ms on [32, 32, 100].
    """
    g, rank = call.graph, len(call.shape(call.x)) - 2
    window = _pool_window(call)
    if not window.tiles or not set(window.kernel) <= {1, 2} or len(call.node.output) > 1:
        g.nodes.append(call.node)
        return
    whole = [m * s for m, s in zip(window.result, window.strides, strict=True)]
    value = call.x
    if whole != list(window.source):
        value = g.add("Slice", value, *_crop(g, window))
    for axis in (i for i in range(rank) if window.kernel[i] == 2):
        inner = math.prod(whole[axis + 1 :])
        both = g.add("Reshape", value, g.ints(-1, 2, inner))
        first, second = g.add_many("Split", both, outputs=("", ""), axis=1, num_outputs=2)
        value = g.add("Where", g.add("GreaterOrEqual", first, second), first, second)
    g.add("Reshape", value, g.ints(-1, call.shape(call.x)[1], *window.result), output=call.y)


@gradient("MaxPool")
def max_pool(call: Call) -> Gradients:
    """The gradient goes to the maximum of each window.

    A constant background under a convolution gives exact ties, and letting each take the whole would multiply
    the gradient: of equal maxima one takes it, or where windows of more than 2 tile the input all share it evenly
    (both are valid subgradients).
    """
    window = _pool_window(call)
    if not window.tiles:
        return [_scattered(call)]
    g, x = call.graph, call.x
    rest = [n - m * s for n, m, s in zip(window.source, window.result, window.strides, strict=True)]
    if any(rest):  # values after the last whole window belong to none
        x = g.add("Slice", x, *_crop(g, window))
    dx = _shared(call, x, window)
    return [g.add("Pad", dx, g.ints(*[0] * (len(rest) + 4), *rest)) if any(rest) else dx]


@gradient("AveragePool")
def average_pool(call: Call) -> Gradients:
    """Each value of a window gets an equal share; paddings count with `count_include_pad`, `ceil_mode`'s never."""
    window = _pool_window(call)
    g = call.graph
    size = math.prod(window.kernel)
    exact = all(n == m * s for n, m, s in zip(window.source, window.result, window.strides, strict=True))
    if window.tiles and exact:
        return [upsample(g, g.add("Mul", call.dy, g.scalar(1.0 / size)), window.kernel)]
    counts = _counts(window, padded=bool(call.attribute("count_include_pad", 0)))
    share = g.add("Div", call.dy, g.constant(counts))
    channels = call.shape(call.x)[1]
    ones = g.constant(np.ones((channels, 1, *window.kernel), dtype=np.float32))
    missing = [
        n - ((m - 1) * s - b - e + d * (k - 1) + 1)
        for n, m, s, b, e, d, k in zip(
            window.source, window.result, window.strides, window.begin, window.end, window.dilations,
            window.kernel, strict=True,
        )
    ]  # fmt: skip
    # Where ceil_mode lets the last window end outside, what lies there is cut off like a padding.
    end = [e + max(-m, 0) for e, m in zip(window.end, missing, strict=True)]
    spread = g.add(
        "ConvTranspose", share, ones, group=channels, strides=list(window.strides), pads=[*window.begin, *end],
        dilations=list(window.dilations), output_padding=[max(m, 0) for m in missing],
    )  # fmt: skip
    return [spread]


def upsample(graph: Graph, tensor: str, factors: tuple[int, ...]) -> str:
    """Repeat each value `factors` times along the spatial axes."""
    scales = graph.constant(np.asarray([1.0, 1.0, *factors], dtype=np.float32))
    return graph.add(
        "Resize", tensor, "", scales, mode="nearest", nearest_mode="floor",
        coordinate_transformation_mode="asymmetric",
    )  # fmt: skip


def _shared(call: Call, x: str, window: Window) -> str:
    g, size = call.graph, float(math.prod(window.kernel))
    hit = mask(g, "Equal", x, upsample(g, call.y, window.kernel))
    share = g.add("AveragePool", hit, kernel_shape=list(window.kernel), strides=list(window.strides))
    dy = g.add("Div", call.dy, g.add("Mul", share, g.scalar(size)))
    return g.add("Mul", hit, upsample(g, dy, window.kernel))


def _pool_window(call: Call) -> Window:
    window = window_of(call, tuple(call.attribute("kernel_shape", ())))
    geometry = zip(window.result, window.strides, window.source, window.begin, strict=True)
    if call.attribute("ceil_mode", 0) and any((m - 1) * s >= n + b for m, s, n, b in geometry):
        raise call.refused("with ceil_mode its last window lies in the padding, where runtimes disagree")
    return window


def _scattered(call: Call) -> str:
    """Overlapping windows: add each gradient at the index of its maximum."""
    g = call.graph
    given = {a.name: call.attribute(a.name, None) for a in call.node.attribute}
    _, where = g.add_many("MaxPool", call.x, outputs=("", ""), **given)
    shape = g.add("Shape", call.x)
    flat = g.ints(-1)
    zeros = g.add("ConstantOfShape", g.add("Reshape", g.add("Size", call.x), flat))
    parts = (g.add("Reshape", where, flat), g.add("Reshape", call.dy, flat))
    return g.add("Reshape", g.add("ScatterElements", zeros, *parts, axis=0, reduction="add"), shape)


def _crop(graph: Graph, window: Window) -> tuple[str, str, str]:
    rank = len(window.kernel)
    whole = [m * s for m, s in zip(window.result, window.strides, strict=True)]
    return graph.ints(*[0] * rank), graph.ints(*whole), graph.ints(*range(2, rank + 2))


def _counts(window: Window, *, padded: bool) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """How many values of each window lie inside the input, or the padded input, [1, 1, *result]."""
    per_axis = [
        [sum(-b * padded <= i * s - b + d * j < n + e * padded for j in range(k)) for i in range(m)]
        for n, m, s, b, e, d, k in zip(
            window.source, window.result, window.strides, window.begin, window.end, window.dilations,
            window.kernel, strict=True,
        )
    ]  # fmt: skip
    values = [math.prod(counts) for counts in itertools.product(*per_axis)]
    return np.asarray(values, dtype=np.float32).reshape(1, 1, *window.result)
