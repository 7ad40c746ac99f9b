"""Depthwise convolutions over narrow maps, as matrix products.

The stock kernel takes a depthwise convolution apart into a copy and a product for each image and channel, whose
rows are the map's: on [32, 64, 25, 5] it runs at 2 GFLOP/s. Here a map is cut into blocks of a few rows with the
rows around them that they read, and each channel multiplies all its blocks with one matrix: the (Toeplitz) matrix
of the convolution from a block to its outputs. Most of that matrix is zero, and it is still three times as fast.
"""

import math
from dataclasses import dataclass

import numpy as np

from firmware_tools.autodiff.graph import Array, Graph, Shape
from firmware_tools.autodiff.window import Window

BLOCK_ROWS = 6  # more rows make more zeros in the matrix, fewer make more copies of the rows around
ROW_MAX = 12  # values of a row; from here on the stock kernels win ([32, 32, 24, 24]: 1.4 ms, here 2.5)


@dataclass(frozen=True)
class Blocks:
    """How a map is cut for one convolution: `count` blocks of `rows` output rows, which read `taken` input rows.

    With `flipped`, kernel positions count from the end, as for the adjoint of a convolution.
    """

    window: Window
    flipped: bool = False

    @property
    def count(self) -> int:
        """Number of blocks."""
        return -(-self.window.result[0] // BLOCK_ROWS)

    @property
    def rows(self) -> int:
        """Output rows of a block."""
        return -(-self.window.result[0] // self.count)

    @property
    def advance(self) -> int:
        """Input rows from one block to the next."""
        return self.rows * self.window.strides[0]

    @property
    def taken(self) -> int:
        """Input rows that a block reads."""
        w = self.window
        return (self.rows - 1) * w.strides[0] + (w.kernel[0] - 1) * w.dilations[0] + 1

    @property
    def before(self) -> int:
        """Values of a block."""
        return self.taken * self.window.source[1]

    @property
    def after(self) -> int:
        """Output values of a block."""
        return self.rows * self.window.result[1]


def narrow(window: Window, shape: Shape, groups: int) -> bool:
    """Whether a convolution with a kernel of `shape` is a depthwise one over narrow maps."""
    rows = window.source[-1], window.result[-1]
    return len(shape) == 4 and shape[0] == groups > 1 == shape[1] and max(rows) <= ROW_MAX


def convolved(graph: Graph, x: str, weight: str, blocks: Blocks) -> str:
    """The convolution without bias, [C, N, *result]; `x` is [N, C, *source]."""
    w = blocks.window
    matrices = graph.add("Gemm", graph.add("Flatten", weight), _positions(graph, blocks))
    matrices = graph.add("Reshape", matrices, graph.ints(0, blocks.before, blocks.after))
    product = graph.add("MatMul", cut(graph, x, blocks), matrices)
    high = blocks.count * blocks.rows
    maps = graph.add("Reshape", product, graph.ints(0, -1, high, w.result[1]))
    if high > w.result[0]:
        maps = graph.add("Slice", maps, graph.ints(0), graph.ints(w.result[0]), graph.ints(2))
    return maps


def weight_gradient(graph: Graph, x: str, dy: str, blocks: Blocks, shape: Shape) -> str:
    """Gradient of the kernel of `shape` [C, 1, *kernel]."""
    w = blocks.window
    maps = graph.add("Transpose", dy, perm=[1, 0, 2, 3])
    missing = blocks.count * blocks.rows - w.result[0]
    if missing:
        maps = graph.add("Pad", maps, graph.ints(0, 0, 0, 0, 0, 0, missing, 0))
    outputs = graph.add("Reshape", maps, graph.ints(shape[0], -1, blocks.after))
    inputs = graph.add("Transpose", cut(graph, x, blocks), perm=[0, 2, 1])
    matrices = graph.add("Flatten", graph.add("MatMul", inputs, outputs))
    return graph.add(
        "Reshape", graph.add("Gemm", matrices, _positions(graph, blocks), transB=1), graph.ints(*shape)
    )


def adjoint(window: Window) -> Blocks | None:
    """The blocks of the convolution that gives a convolution's input gradient; None where that is none."""
    reach = [d * (k - 1) for d, k in zip(window.dilations, window.kernel, strict=True)]
    begin, end = (
        tuple(r - p for r, p in zip(reach, pads, strict=True)) for pads in (window.begin, window.end)
    )
    if set(window.strides) != {1} or min(begin + end) < 0:
        return None
    turned = Window(
        window.kernel,
        window.strides,
        window.dilations,
        begin,
        end,
        source=window.result,
        result=window.source,
    )
    return Blocks(turned, flipped=True)


def cut(graph: Graph, x: str, blocks: Blocks) -> str:
    """[N, C, *source] as [C, N * count, before]: the blocks with the rows around them."""
    w = blocks.window
    maps = graph.add("Transpose", x, perm=[1, 0, 2, 3])
    high = (blocks.count - 1) * blocks.advance + blocks.taken
    ends = w.begin[0], max(high - w.begin[0] - w.source[0], 0)
    if any(ends):
        maps = graph.add("Pad", maps, graph.ints(0, 0, ends[0], 0, 0, 0, ends[1], 0))
    parts = []
    for i in range(blocks.count):
        start = i * blocks.advance
        part = graph.add("Slice", maps, graph.ints(start), graph.ints(start + blocks.taken), graph.ints(2))
        parts.append(part)
    whole = graph.add("Concat", *parts, axis=2) if len(parts) > 1 else parts[0]
    return graph.add("Reshape", whole, graph.ints(0, -1, blocks.before))


def _positions(graph: Graph, blocks: Blocks) -> str:
    """[kernel, before * after]: 1 where a kernel position joins an input of a block to an output.

    The runtime multiplies it together from one small factor for each axis when it loads the graph.
    """
    w = blocks.window
    high = _joined(w, 0, (blocks.taken, blocks.rows), begin=0, flipped=blocks.flipped)
    wide = _joined(w, 1, (w.source[1], w.result[1]), begin=w.begin[1], flipped=blocks.flipped)
    whole = graph.add(
        "Mul",
        graph.constant(high[:, None, :, None, :, None]),
        graph.constant(wide[None, :, None, :, None, :]),
    )
    return graph.add("Reshape", whole, graph.ints(math.prod(w.kernel), -1))


def _joined(window: Window, axis: int, extents: tuple[int, int], *, begin: int, flipped: bool) -> Array:
    """[kernel, source, result] along one axis, float32."""
    positions = np.arange(window.kernel[axis])
    inputs, outputs = (np.arange(extent) for extent in extents)
    read = outputs * window.strides[axis] - begin + positions[:, None] * window.dilations[axis]
    joined = (inputs[:, None] == read[:, None, :]).astype(np.float32)
    return np.ascontiguousarray(joined[::-1] if flipped else joined)
