"""Gradient rules of convolutions in any number of spatial dimensions."""

import itertools
import math

from firmware_tools.autodiff.graph import Graph, Shape
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
    if call.wanted[1] or call.wants(2):
        g = call.graph
        rows = _rows(g, call.dy, shape[0], len(shape))
        dw = _weight_gradient(g, window, (call.x, rows), shape, groups) if call.wanted[1] else None
        db = g.add("ReduceSum", rows, g.ints(1), keepdims=0) if call.wants(2) else None
    return [dx, dw, db]


@gradient("ConvTranspose")
def conv_transpose(call: Call) -> Gradients:
    """The adjoint of Conv: its input gradient is a Conv of dy, its weight gradient that of a Conv from dy to x."""
    g, shape = call.graph, call.shape(call.input(1))
    rank, groups = len(shape), call.attribute("group", 1)
    window = _transposed_window(call, shape[2:])
    dx = dw = db = None
    if call.wanted[0]:
        dx = g.add(
            "Conv", call.dy, call.input(1), strides=list(window.strides), pads=window.pads,
            dilations=list(window.dilations), group=groups,
        )  # fmt: skip
    if call.wanted[1]:
        rows = _rows(g, call.x, shape[0], rank)
        dw = _weight_gradient(g, window, (call.dy, rows), shape, groups)
    if call.wants(2):
        db = g.add("ReduceSum", call.dy, g.ints(0, *range(2, rank)), keepdims=0)
    return [dx, dw, db]


def _transposed_window(call: Call, kernel: tuple[int, ...]) -> Window:
    """The window of the Conv that leads from the output's shape back to the input's."""
    if call.attribute("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or call.attribute("output_shape", ()):
        raise call.refused("give its paddings as pads and output_padding")
    rank = len(kernel)
    ones, pads = [1] * rank, call.attribute("pads", [0] * (2 * rank))
    return Window(
        kernel=kernel,
        strides=tuple(call.attribute("strides", ones)),
        dilations=tuple(call.attribute("dilations", ones)),
        begin=tuple(pads[:rank]),
        end=tuple(pads[rank:]),
        source=call.spatial(call.y),
        result=call.spatial(call.x),
    )


def _rows(graph: Graph, tensor: str, channels: int, rank: int) -> str:
    """[channels, N*spatial]: channels first, so that weight and bias gradients are one product and one row sum."""
    return graph.add("Reshape", _swap(graph, tensor, rank), graph.ints(channels, -1))


def _swap(graph: Graph, tensor: str, rank: int) -> str:
    return graph.add("Transpose", tensor, perm=[1, 0, *range(2, rank)])


def _input_gradient(call: Call, window: Window, groups: int) -> str:
    g, weight = call.graph, call.input(1)
    rank = len(window.kernel)
    reach = [d * (k - 1) for d, k in zip(window.dilations, window.kernel, strict=True)]
    begin = [r - p for r, p in zip(reach, window.begin, strict=True)]
    end = [r - p for r, p in zip(reach, window.end, strict=True)]
    if groups == 1 and set(window.strides) == {1} and min(begin + end) >= 0:
        # A convolution with the flipped kernel: the stock Conv kernel outruns ConvTranspose,
        # except on depthwise kernels (0.38 against 0.22 ms on [32, 16, 25, 5]).
        flipped = weight
        if math.prod(window.kernel) > 1:
            axes = range(2, rank + 2)
            flipped = g.add(
                "Slice", weight, g.ints(*[-1] * rank), g.ints(*[-(2**31)] * rank), g.ints(*axes),
                g.ints(*[-1] * rank),
            )  # fmt: skip
        swapped = _swap(g, flipped, rank + 2)
        return g.add(
            "Conv", call.dy, swapped, pads=begin + end, dilations=list(window.dilations), group=groups
        )
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


def _weight_gradient(
    graph: Graph, window: Window, operands: tuple[str, str], shape: Shape, groups: int
) -> str:
    """Product of the output gradient's rows with the input's columns, one column block per kernel position.

    `operands` are the input and the rows. Blocks lie as [C, kernel, N*spatial], so the product already has the
    weight's layout.
    """
    source, rows = operands
    columns = _columns(graph, source, window)
    if groups == 1:
        flat = graph.add("Reshape", columns, graph.ints(math.prod(shape[1:]), -1))
        return graph.add("Reshape", graph.add("Gemm", rows, flat, transB=1), graph.ints(*shape))
    left = graph.add("Reshape", rows, graph.ints(groups, shape[0] // groups, -1))
    right = graph.add("Reshape", columns, graph.ints(groups, math.prod(shape[1:]), -1))
    product = graph.add("MatMul", left, graph.add("Transpose", right, perm=[0, 2, 1]))
    return graph.add("Reshape", product, graph.ints(*shape))


def _columns(graph: Graph, source: str, window: Window) -> str:
    """The input under each kernel position, [C, positions, N, *result]."""
    g, rank = graph, len(window.kernel)
    swapped = _swap(g, source, rank + 2)
    if window.padded:
        swapped = g.add("Pad", swapped, g.ints(0, 0, *window.begin, 0, 0, *window.end))
    axes = g.ints(*range(2, rank + 2))
    blocks = []
    for position in itertools.product(*(range(k) for k in window.kernel)):
        start = [p * d for p, d in zip(position, window.dilations, strict=True)]
        stop = [a + (m - 1) * s + 1 for a, m, s in zip(start, window.result, window.strides, strict=True)]
        block = g.add("Slice", swapped, g.ints(*start), g.ints(*stop), axes, g.ints(*window.strides))
        blocks.append(g.add("Unsqueeze", block, g.ints(1)))
    return blocks[0] if len(blocks) == 1 else g.add("Concat", *blocks, axis=1)
