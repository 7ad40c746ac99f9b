"""Gradient rules of pooling."""

import itertools
import math

import numpy as np

from firmware_tools.autodiff.elementwise import mask
from firmware_tools.autodiff.graph import FLOAT, Graph
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
        return [_picked(call, window)]
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


def _picked(call: Call, window: Window) -> str:
    """Windows that overlap, leave gaps or are padded: along one axis after the other, the first maximum takes it."""
    g, value, stages = call.graph, call.x, []
    for axis in range(len(window.kernel)):
        if (window.kernel[axis], window.strides[axis]) == (1, 1) and window.source[axis] == window.result[
            axis
        ]:
            continue
        values = _neighbours(g, value, window, axis)
        value = g.add("Max", *values) if len(values) > 1 else values[0]
        stages.append((axis, values, value))
    dy = call.dy
    for axis, values, largest in reversed(stages):
        dy = _given_back(call, window, axis, (values, largest, dy))
    return dy


def _phase_length(window: Window, axis: int) -> int:
    """How many values of one phase of the input, of as many as the stride, the windows along an axis read."""
    return window.result[axis] + window.dilations[axis] * (window.kernel[axis] - 1) // window.strides[axis]


def _neighbours(graph: Graph, x: str, window: Window, axis: int) -> list[str]:
    """For each position of the windows along one axis, the values under it."""
    w, over = window, graph.ints(axis + 2)
    stride, begin = w.strides[axis], w.begin[axis]
    after = _phase_length(w, axis) * stride - begin - w.source[axis]
    if begin or after:
        x = graph.add("Pad", x, graph.ints(begin, after), graph.scalar(-np.inf), over)
    starts = [p * w.dilations[axis] for p in range(w.kernel[axis])]
    ends = [start + (w.result[axis] - 1) * stride + 1 for start in starts]
    step = graph.ints(stride)
    return [
        graph.add("Slice", x, graph.ints(a), graph.ints(b), over, step)
        for a, b in zip(starts, ends, strict=True)
    ]


def _given_back(call: Call, window: Window, axis: int, stage: tuple[list[str], str, str]) -> str:
    """The gradient before one axis was pooled; where windows advance by more than 1, phase by phase."""
    (values, largest, dy), g, w = stage, call.graph, window
    stride, length = w.strides[axis], _phase_length(window, axis)
    phases: list[list[str]] = [[] for _ in range(stride)]
    free = ""  # where no position has been picked yet
    for position, value in enumerate(values):
        hit = same = g.add("Equal", value, largest)
        if free:
            hit = g.add("And", same, free)
        if position < len(values) - 1:
            other = g.add("Not", same)
            free = g.add("And", free, other) if free else other
        share = g.add("Mul", dy, g.add("Cast", hit, to=FLOAT))
        front, phase = divmod(position * w.dilations[axis], stride)
        ends = g.ints(front, length - w.result[axis] - front)
        phases[phase].append(g.add("Pad", share, ends, "", g.ints(axis + 2)))
    sums = [g.add("Sum", *parts) if len(parts) > 1 else "".join(parts) for parts in phases]
    whole = sums[0]
    if stride > 1:
        nothing = "" if all(sums) else g.add("ConstantOfShape", g.add("Shape", next(filter(None, sums))))
        stacked = [g.add("Unsqueeze", s or nothing, g.ints(axis + 3)) for s in sums]
        extents = (*w.result[:axis], length * stride, *w.source[axis + 1 :])
        joined = g.add("Concat", *stacked, axis=axis + 3)
        whole = g.add("Reshape", joined, g.ints(-1, call.shape(call.x)[1], *extents))
    n, begin = w.source[axis], w.begin[axis]
    missing = n + begin - length * stride
    if begin or missing < 0:
        whole = g.add("Slice", whole, g.ints(begin), g.ints(begin + n), g.ints(axis + 2))
    return g.add("Pad", whole, g.ints(0, missing), "", g.ints(axis + 2)) if missing > 0 else whole


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
