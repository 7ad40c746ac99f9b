"""Gradient rules of operators that join, cut, pick and repeat values."""

import math
from collections.abc import Sequence

import numpy as np

from firmware_tools.autodiff.elementwise import reduce_to
from firmware_tools.autodiff.graph import DYNAMIC, FLOAT, INT64, Graph
from firmware_tools.autodiff.registry import Call, Gradients, expansion, gradient

INDEX_MAX = 2**31 - 1  # an end from here on means up to the last value


@gradient("Concat")
def concat(call: Call) -> Gradients:
    """The gradient is split where the inputs were joined."""
    g, axis = call.graph, call.axis(0)
    extents = [call.shape(name)[axis] for name in call.node.input]
    if len(extents) == 1:
        return [call.dy]
    if DYNAMIC in extents:
        lengths = [g.add("Shape", name, start=axis, end=axis + 1) for name in call.node.input]
        sizes = g.add("Concat", *lengths, axis=0)
    else:
        sizes = g.ints(*extents)
    return g.add_many("Split", call.dy, sizes, outputs=[""] * len(extents), axis=axis)


@gradient("Split", every_output=True)
def split(call: Call) -> Gradients:
    """The parts' gradients are joined; a part that nothing reads counts as zeros."""
    g = call.graph
    parts = [
        dy or g.add("ConstantOfShape", g.add("Shape", name))
        for dy, name in zip(call.dys, call.node.output, strict=True)
    ]
    return [g.add("Concat", *parts, axis=call.axis(0))]


@gradient("Slice")
def slice_(call: Call) -> Gradients:
    """The gradient is put back among zeros; steps may be negative, bounds must be constant."""
    shape, dx = call.shape(call.x), call.dy
    starts, ends = call.ints("starts", 1) or (), call.ints("ends", 2) or ()
    axes = call.ints("axes", 3) or tuple(range(len(starts)))
    steps = call.ints("steps", 4) or (1,) * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        extent = shape[axis % len(shape)]
        if extent != DYNAMIC:
            positions = range(*slice(start, end, step).indices(extent))
            dx = placed(call.graph, dx, axis % len(shape), positions, extent)
        elif (start, step) != (0, 1) or end < INDEX_MAX:
            raise call.refused("it cuts the batch")
    return [dx]


@gradient("Gather")
def gather(call: Call) -> Gradients:
    """Each picked slice's gradient is added where it was picked."""
    shape, axis = call.shape(call.x), call.axis(0)
    picked = call.constant(1)
    if shape[axis] == DYNAMIC:
        raise call.refused("it picks from the batch")
    if picked is None:
        return [_scattered(call, axis), None]
    positions = [int(i) % shape[axis] for i in picked.ravel()]
    if len(set(positions)) < len(positions) or shape.count(DYNAMIC) > 1:
        return [_scattered(call, axis), None]
    g, dx = call.graph, call.dy
    if picked.ndim == 0:
        dx = g.add("Unsqueeze", dx, g.ints(axis))
    elif picked.ndim > 1:
        dx = g.add("Reshape", dx, g.ints(*shape[:axis], len(positions), *shape[axis + 1 :]))
    return [placed(g, dx, axis, positions, shape[axis]), None]


@gradient("GatherElements")
def gather_elements(call: Call) -> Gradients:
    """Each picked value's gradient is added where it was picked."""
    g = call.graph
    zeros = g.add("ConstantOfShape", g.add("Shape", call.x))
    dx = g.add("ScatterElements", zeros, call.input(1), call.dy, axis=call.axis(0), reduction="add")
    return [dx, None]


@gradient("Expand")
def expand(call: Call) -> Gradients:
    """The gradient is summed over the axes that were repeated."""
    return [reduce_to(call.graph, call.dy, call.shape(call.y), call.shape(call.x)), None]


@gradient("Tile")
def tile(call: Call) -> Gradients:
    """The gradients of all copies are added; the repeats must be constant."""
    g, shape, repeats = call.graph, call.shape(call.x), call.ints("repeats", 1) or ()
    dims: list[int] = []
    copies = []
    for extent, times in zip(shape, repeats, strict=True):
        if times != 1:
            copies.append(len(dims))
            dims.append(times)
        dims.append(extent)
    if not copies:
        return [call.dy, None]
    if dims.count(DYNAMIC) > 1:
        raise call.refused("more than one extent follows the batch")
    return [g.add("ReduceSum", g.add("Reshape", call.dy, g.ints(*dims)), g.ints(*copies), keepdims=0), None]


@expansion("Pad")
def mirrored(call: Call) -> None:
    """The modes that repeat values (reflect, edge, wrap) pick them, so that their gradients are added."""
    mode = call.attribute("mode", "constant")
    if mode == "constant":
        call.graph.nodes.append(call.node)
        return
    g, shape = call.graph, call.shape(call.x)
    pads = call.ints("pads", 1) or ()
    axes = call.ints("axes", 3) or range(len(shape))
    value = call.x
    for axis, begin, end in zip(axes, pads[: len(pads) // 2], pads[len(pads) // 2 :], strict=True):
        if begin or end:
            if shape[axis] == DYNAMIC or min(begin, end) < 0:
                raise call.refused(f"mode {mode} takes no negative pads and none along the batch")
            # The modes' names are numpy's own.
            picks = np.pad(np.arange(shape[axis]), (begin, end), mode=mode)  # type: ignore[call-overload]
            value = g.add("Gather", value, g.constant(picks), axis=axis)
    g.add("Identity", value, output=call.y)


@gradient("Pad", settings=(2,))
def pad(call: Call) -> Gradients:
    """The padding is cut off, what a negative padding cut off gets zero; repeated values add their gradients."""
    g, rank = call.graph, len(call.shape(call.x))
    pads = call.ints("pads", 1) or ()
    axes = [a % rank for a in call.ints("axes", 3) or range(rank)]
    begin, end = pads[: len(axes)], pads[len(axes) :]
    dx = call.dy
    if any(p > 0 for p in pads):
        starts = [max(b, 0) for b in begin]
        ends = [-e if e > 0 else INDEX_MAX for e in end]
        dx = g.add("Slice", dx, g.ints(*starts), g.ints(*ends), g.ints(*axes))
    if any(p < 0 for p in pads):
        dx = g.add("Pad", dx, g.ints(*(max(-p, 0) for p in pads)), "", g.ints(*axes))
    return [dx]


def placed(graph: Graph, tensor: str, axis: int, positions: Sequence[int], extent: int) -> str:
    """Zeros of `extent` along `axis` with the slices of `tensor` at `positions`, which all differ."""
    positions, count = list(positions), len(positions)
    over = graph.ints(axis)
    first = positions[0] if positions else 0
    if positions == list(range(first, first + count)):
        if count == extent:
            return tensor
        return graph.add("Pad", tensor, graph.ints(first, extent - first - count), "", over)
    order = np.full(extent, count, dtype=np.int64)  # a slice of zeros, appended
    order[positions] = np.arange(count)
    padded = graph.add("Pad", tensor, graph.ints(0, 1), "", over)
    return graph.add("Gather", padded, graph.constant(order), axis=axis)


def _scattered(call: Call, axis: int) -> str:
    """Sum of the gradient's slices by index: rows of [picks, rest] added into [extent, rest]."""
    g, shape, picks = call.graph, call.shape(call.x), call.shape(call.input(1))
    rest = shape[:axis] + shape[axis + 1 :]
    if (DYNAMIC in rest and DYNAMIC in picks) or max(rest.count(DYNAMIC), picks.count(DYNAMIC)) > 1:
        raise call.refused("more than one extent follows the batch")
    inner = range(axis, axis + len(picks))
    others = [i for i in range(len(rest) + len(picks)) if i not in inner]
    moved = g.add("Transpose", call.dy, perm=[*inner, *others])
    width = -1 if DYNAMIC in rest else math.prod(rest)
    rows = g.add("Reshape", moved, g.ints(-1 if DYNAMIC in picks else math.prod(picks), width))
    index = g.add("Cast", g.add("Reshape", call.input(1), g.ints(-1, 1)), to=INT64)
    if width >= 0:
        # ScatterElements adds in one thread and in order, which ScatterND does not promise.
        index = g.add("Add", index, g.constant(np.zeros((1, width), dtype=np.int64)))
        zeros = g.add("ConstantOfShape", g.ints(shape[axis], width))
        total = g.add("ScatterElements", zeros, index, rows, axis=0, reduction="add")
    else:
        index = g.add("Mod", g.add("Reshape", index, g.ints(1, -1)), g.ints(shape[axis]))
        every = g.constant(np.arange(shape[axis], dtype=np.int64)[:, None])
        total = g.add("MatMul", g.add("Cast", g.add("Equal", every, index), to=FLOAT), rows)
    back = [*range(1, axis + 1), 0, *range(axis + 1, len(shape))]
    return g.add("Transpose", g.add("Reshape", total, g.ints(shape[axis], *rest)), perm=back)
