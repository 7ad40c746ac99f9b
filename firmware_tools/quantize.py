"""Weight-only INT8: symmetric, one scale per output channel, the same in training and in the exported model.

scale = max(|w|, 2^-40) / 127 over each output channel, q = round-half-even(w / scale). The scheme is the
per-channel symmetric one of Krishnamoorthi 2018 (arXiv:1806.08342 §2.2).
"""

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, helper

from firmware_tools.autodiff.graph import Array, Graph

LEVELS = np.float32(127)  # of each sign; -128 stays unused so that the scale is symmetric
MAGNITUDE_MIN = np.float32(2.0**-40)  # an all-zero channel would otherwise divide by zero


def weight_axis(node: NodeProto, weight: str, rank: int) -> int | None:
    """Output-channel axis if `weight` is this node's weight matrix or kernel, else None."""
    if rank < 2 or len(node.input) < 2 or node.input[1] != weight:
        return None
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        transposed = any(a.name == "transB" and helper.get_attribute_value(a) for a in node.attribute)
        return 0 if transposed else 1
    return rank - 1 if node.op_type == "MatMul" else None


def fake_quantize(graph: Graph, weight: str, shape: tuple[int, ...], axis: int) -> str:
    """Append nodes that round `weight` to its int8 grid and back; returns the rounded tensor's name."""
    others = [i for i in range(len(shape)) if i != axis]
    top = graph.add("ReduceMax", graph.add("Abs", weight), graph.ints(*others), keepdims=0)
    guarded = graph.add("Max", top, graph.constant(np.asarray(MAGNITUDE_MIN)))
    scale = graph.add("Div", guarded, graph.constant(np.asarray(LEVELS)))
    zero = graph.constant(np.zeros(shape[axis], dtype=np.int8))
    quantized = graph.add("QuantizeLinear", weight, scale, zero, axis=axis)
    return graph.add("DequantizeLinear", quantized, scale, zero, axis=axis)


def quantize(weight: Array, axis: int) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Int8 values and float32 scales [channels]: bit for bit what the nodes of `fake_quantize` compute."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    values = weight.astype(np.float32)
    scale = np.maximum(np.abs(values).max(axis=others), MAGNITUDE_MIN) / LEVELS
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    return np.rint(values / scale.reshape(shape)).astype(np.int8), scale
