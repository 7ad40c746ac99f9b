"""Gradient rules of convolutions in any number of spatial dimensions."""

import itertools
import math

from firmware_tools.autodiff.graph import Graph
from firmware_tools.autodiff.registry import Call, Gradients, gradient
from firmware_tools.autodiff.window import Window, window_of


@gradient("Conv")
def conv(call: Call) -> Gradients:
    """Gradients of input, weight and bias; all groups, strides, dilations and paddings."""
    shape = call.shape(call.input(1))
    window = window_of(call, shape[2:])
    groups = call.attribute("group", 1)
    dx = _input_gradient(call, window, groups) if call.wanted[0] else None
    dw = db = None
    if call.wanted[1] or (len(call.wanted) > 2 and call.wanted[2]):
        # [M, N*spatial]: channels first, so that weight and bias gradients are one product and one row sum.
        g = call.graph
        rows = g.add("Reshape", _swap(g, call.dy, len(shape)), g.ints(shape[0], -1))
        dw = _weight_gradient(call, window, rows, groups) if call.wanted[1] else None
        if len(call.wanted) > 2 and call.wanted[2]:
            db = g.add("ReduceSum", rows, g.ints(1), keepdims=0)
    return [dx, dw, db]


def _swap(graph: Graph, tensor: str, rank: int) -> str:
    return graph.add("Transpose", tensor, perm=[1, 0, *range(2, rank)])


def _input_gradient(call: Call, window: Window, groups: int) -> str:
    g, weight = call.graph, call.input(1)
    rank = len(window.kernel)
    reach = [d * (k - 1) for d, k in zip(window.dilations, window.kernel, strict=True)]
    begin = [r - p for r, p in zip(reach, window.begin, strict=True)]
    end = [r - p for r, p in zip(reach, window.end, strict=True)]
    if groups == 1 and set(window.strides) == {1} and min(begin + end) >= 0:
        # A convolution with the flipped kernel: the stock Conv kernel outruns ConvTranspose.
        flipped = weight
        if math.prod(window.kernel) > 1:
            axes = range(2, rank + 2)
            flipped = g.add(
                "Slice", weight, g.ints(*[-1] * rank), g.ints(*[-(2**31)] * rank), g.ints(*axes),
                g.ints(*[-1] * rank),
            )  # fmt: skip
        swapped = _swap(g, flipped, rank + 2)
        return g.add("Conv", call.dy, swapped, pads=begin + end, dilations=list(window.dilations))
    missing = [
        n - ((m - 1) * s - b - e + r + 1)
        for n, m, s, b, e, r in zip(
            window.source, window.result, window.strides, window.begin, window.end, reach, strict=True
        )
    ]
    return g.add(
        "ConvTranspose", call.dy, weight, strides=list(window.strides), dilations=list(window.dilations),
        pads=window.pads, output_padding=missing, group=groups,
    )  # fmt: skip


def _weight_gradient(call: Call, window: Window, rows: str, groups: int) -> str:
    """Product of the output gradient with the input's columns, one column block per kernel position.

    Blocks lie as [C, kernel, N*spatial], so the product already has the weight's layout.
    """
    g = call.graph
    shape = call.shape(call.input(1))
    columns = _columns(call, window)
    if groups == 1:
        flat = g.add("Reshape", columns, g.ints(math.prod(shape[1:]), -1))
        return g.add("Reshape", g.add("Gemm", rows, flat, transB=1), g.ints(*shape))
    left = g.add("Reshape", rows, g.ints(groups, shape[0] // groups, -1))
    right = g.add("Reshape", columns, g.ints(groups, math.prod(shape[1:]), -1))
    product = g.add("MatMul", left, g.add("Transpose", right, perm=[0, 2, 1]))
    return g.add("Reshape", product, g.ints(*shape))


def _columns(call: Call, window: Window) -> str:
    """The input under each kernel position, [C, positions, N, *result]."""
    g, rank = call.graph, len(window.kernel)
    source = _swap(g, call.x, rank + 2)
    if window.padded:
        source = g.add("Pad", source, g.ints(0, 0, *window.begin, 0, 0, *window.end))
    axes = g.ints(*range(2, rank + 2))
    blocks = []
    for position in itertools.product(*(range(k) for k in window.kernel)):
        start = [p * d for p, d in zip(position, window.dilations, strict=True)]
        stop = [a + (m - 1) * s + 1 for a, m, s in zip(start, window.result, window.strides, strict=True)]
        block = g.add("Slice", source, g.ints(*start), g.ints(*stop), axes, g.ints(*window.strides))
        blocks.append(g.add("Unsqueeze", block, g.ints(1)))
    return blocks[0] if len(blocks) == 1 else g.add("Concat", *blocks, axis=1)
