"""The weight gradient of a convolution as a product with the patches of the input that its outputs read.

One sample after another. With channels last a value of a patch is one copy of all its channels, so that where they
are many, or where strides leave no long runs to shift (`correlation`), gathering patches is the fastest way:
3x3 kernels with stride 2 from [32, 16, 32, 32] to 32 channels take 1.9 instead of 3.7 ms, those with stride 1
over [32, 64, 8, 8] 2.1 instead of 2.5, and over [32, 32, 16, 16] as long as shifted.
"""

import math

import numpy as np

from firmware_tools.autodiff.graph import Graph, Shape
from firmware_tools.autodiff.scan import summed
from firmware_tools.autodiff.window import Window

CHANNELS_MIN = 64  # without strides
CHANNELS_STRIDED_MIN = 8  # from 3 channels with stride 2 the patches take 3.0 ms where shifting takes 2.1


def suits(window: Window, shape: Shape, groups: int) -> bool:
    """Whether patches are the fastest way to the gradient of a kernel of `shape` [O, C / groups, *kernel]."""
    least = CHANNELS_MIN if set(window.strides) == {1} else CHANNELS_STRIDED_MIN
    return groups == 1 and shape[1] >= least and math.prod(window.kernel) * max(window.strides) > 1


def weight_gradient(graph: Graph, window: Window, shape: Shape, source: str, gradient: str) -> str:
    """Gradient of the kernel; `source` is the input [N, C, *source], `gradient` that of the output [N, O, *result]."""
    outputs, channels = shape[:2]
    values, positions, taps = (math.prod(e) for e in (window.source, window.result, window.kernel))

    def part(body: Graph, total: str, x: str, dy: str) -> str:
        rows = body.add("Transpose", x, perm=[1, 0])
        if window.padded:
            rows = body.add("Concat", rows, body.add("ConstantOfShape", body.ints(1, channels)), axis=0)
        patches = body.add("Gather", rows, _places(body, window), axis=0)
        return body.add("Gemm", dy, body.add("Reshape", patches, body.ints(positions, -1)), total)

    samples = {source: (channels, values), gradient: (outputs, positions)}
    product = summed(graph, samples, (outputs, taps * channels), part)
    product = graph.add("Reshape", product, graph.ints(outputs, taps, channels))
    return graph.add("Reshape", graph.add("Transpose", product, perm=[0, 2, 1]), graph.ints(*shape))


def _places(graph: Graph, window: Window) -> str:
    """Where each output finds the values of its patch, [positions, taps]; behind the last value in the paddings.

    The runtime adds them up from one small table for each axis when it loads the graph.
    """
    rank, behind = len(window.kernel), math.prod(window.source)
    axes = zip(
        window.source,
        window.result,
        window.kernel,
        window.strides,
        window.dilations,
        window.begin,
        strict=True,
    )
    places = ""
    for axis, (n, m, k, stride, dilation, begin) in enumerate(axes):
        along = np.arange(m)[:, None] * stride + np.arange(k) * dilation - begin
        pitch = math.prod(window.source[axis + 1 :])
        table = np.where((along >= 0) & (along < n), along * pitch, behind)
        extents = [1] * (2 * rank)
        extents[axis], extents[rank + axis] = m, k
        part = graph.constant(table.reshape(extents))
        places = graph.add("Add", places, part) if places else part
    places = graph.add("Min", places, graph.constant(np.asarray(behind)))
    return graph.add("Reshape", places, graph.ints(math.prod(window.result), -1))
