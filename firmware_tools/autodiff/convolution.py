"""Gradient rules of convolutions in any number of spatial dimensions."""

import math
from dataclasses import replace

from firmware_tools.autodiff import depthwise, patches
from firmware_tools.autodiff.correlation import (
    in_kernel_order,
    input_gradient,
    layout_of,
    moved,
    product,
    spread,
    swapped,
    weight_gradient,
)
from firmware_tools.autodiff.depthwise import narrow
from firmware_tools.autodiff.graph import Graph, Shape
from firmware_tools.autodiff.registry import Call, Gradients, gradient, lowering
from firmware_tools.autodiff.window import Window, window_of

# Where the copies that the weight gradient takes serve the input gradient faster than a convolution of its own: on
# small maps, along one axis or to few channels ([32, 32, 14, 14] to 16, 3x3: 0.9 and 1.3 ms; to 32 it is slower).
CHANNELS_MAX = 31
POSITIONS_MAX = 256


@gradient("Conv")
def conv(call: Call) -> Gradients:
    """Gradients of input, weight and bias; all groups, strides, dilations and paddings."""
    shape = call.shape(call.input(1))
    window = window_of(call, shape[2:])
    groups = call.attribute("group", 1)
    together = call.wanted[0] and call.wanted[1] and _small(window, shape, groups)
    if narrow(window, shape, groups):
        return _depthwise(call, window, shape)
    g = call.graph
    dx = dw = db = None
    if call.wants(2):
        db = g.add("ReduceSum", call.dy, g.ints(0, *range(2, len(shape))), keepdims=0)
    if together:
        layout, rank = layout_of(window, shape, groups, both=True), len(window.kernel)
        rows = moved(g, layout, spread(g, layout, swapped(g, call.dy, rank)))
        dw = in_kernel_order(g, layout, product(g, layout, swapped(g, call.x, rank), rows))
        dx = input_gradient(g, layout, call.input(1), rows)
    elif call.wanted[1]:
        dw = _weight_gradient(call, window, shape, call.x, call.dy)
    if call.wanted[0] and dx is None:
        dx = _input_gradient(call, window, groups)
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
        dw = _weight_gradient(call, window, shape, call.dy, call.x)
    if call.wants(2):
        db = g.add("ReduceSum", call.dy, g.ints(0, *range(2, rank)), keepdims=0)
    return [dx, dw, db]


def _depthwise(call: Call, window: Window, shape: Shape) -> Gradients:
    g, back = call.graph, depthwise.adjoint(window)
    dx = dw = db = None
    if call.wanted[0] and back:
        dx = _swap(g, depthwise.convolved(g, call.dy, call.input(1), back), len(shape))
    elif call.wanted[0]:
        dx = _input_gradient(call, window, shape[0])
    if call.wanted[1]:
        dw = depthwise.weight_gradient(g, call.x, call.dy, depthwise.Blocks(window), shape)
    if call.wants(2):
        db = g.add("ReduceSum", call.dy, g.ints(0, 2, 3), keepdims=0)
    return [dx, dw, db]


@lowering("Conv")
def forward(call: Call) -> bool:
    """Depthwise convolutions over narrow maps become matrix products."""
    shape = call.shape(call.input(1))
    window = window_of(call, shape[2:])
    if not narrow(window, shape, call.attribute("group", 1)):
        return False
    g = call.graph
    maps = depthwise.convolved(g, call.x, call.input(1), depthwise.Blocks(window))
    if call.input(2):
        maps = g.add("Add", maps, g.add("Reshape", call.input(2), g.ints(-1, 1, 1, 1)))
    g.add("Transpose", maps, perm=[1, 0, 2, 3], output=call.y)
    return True


def _small(window: Window, shape: Shape, groups: int) -> bool:
    """Whether the copies that the weight gradient takes serve the input gradient faster than a convolution does."""
    axes = sum(k > 1 for k in window.kernel)
    if groups > 1 or set(window.strides) != {1} or not axes or math.prod(window.source) > POSITIONS_MAX:
        return False
    return axes == 1 or shape[1] <= CHANNELS_MAX


def _transposed_window(call: Call, kernel: tuple[int, ...]) -> Window:
    """The window of the Conv that leads from the output's shape back to the input's."""
    rank, auto = len(kernel), call.attribute("auto_pad", "NOTSET")
    ones, zeros = [1] * rank, [0] * (2 * rank)
    pads = call.attribute("pads", zeros) if auto == "NOTSET" else zeros
    window = Window(
        kernel=kernel,
        strides=tuple(call.attribute("strides", ones)),
        dilations=tuple(call.attribute("dilations", ones)),
        begin=tuple(pads[:rank]),
        end=tuple(pads[rank:]),
        source=call.spatial(call.y),
        result=call.spatial(call.x),
    )
    if auto in ("NOTSET", "VALID") and not call.attribute("output_shape", ()):
        return window
    # The paddings follow from the output's extents (ONNX, ConvTranspose: total_padding).
    spans = zip(window.result, window.strides, kernel, window.dilations, window.source, strict=True)
    extra = call.attribute("output_padding", zeros[:rank])
    total = [
        max((m - 1) * s + (k - 1) * d + 1 + o - n, 0) for (m, s, k, d, n), o in zip(spans, extra, strict=True)
    ]
    small, large = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
    begin, end = (small, large) if auto == "SAME_UPPER" else (large, small)
    return replace(window, begin=begin, end=end)


def _swap(graph: Graph, tensor: str, rank: int) -> str:
    return graph.add("Transpose", tensor, perm=[1, 0, *range(2, rank)])


def _weight_gradient(call: Call, window: Window, shape: Shape, source: str, gradient: str) -> str:
    """Gradient of a kernel of `shape`, which leads from `source` to where `gradient` is known."""
    g, groups = call.graph, call.attribute("group", 1)
    if patches.suits(window, shape, groups):
        return patches.weight_gradient(g, window, shape, source, gradient)
    return weight_gradient(g, layout_of(window, shape, groups), source, gradient)


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
