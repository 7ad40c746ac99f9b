"""Fake quantisation: the rounding of an INT8 model, in float32, in all graphs of a bundle.

Weights: symmetric int8, one scale max(|w|, 2^-40) / 127 per output channel, recomputed at every step (Krishnamoorthi
2018, arXiv:1806.08342 §2.2). Activations: uint8 with a zero point, one scale per tensor, from a range that
training observes (Jacob et al. 2018, arXiv:1712.05877 §3). q = round-half-even(value / scale) + zero point.
"""

import numpy as np
from onnx import NodeProto, TensorProto, helper

from firmware_tools.autodiff.graph import Graph

STEPS = 255  # between the ends of uint8
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


def fake_quantize_within(graph: Graph, tensor: str, span: str) -> str:
    """Append nodes that round `tensor` to the uint8 grid of `span`, [low, high] widened to hold 0, and back.

    Zero is a grid point, so that paddings and ReLU's zeros stay exact. The Clip changes no value, because
    quantisation saturates at the same edges, but its gradient stops what lies outside.
    """
    zero, levels = graph.scalar(0.0), graph.scalar(float(STEPS))
    low, high = (graph.add("Squeeze", part, graph.ints(0)) for part in _edges(graph, span, zero))
    guarded = graph.add("Max", graph.add("Sub", high, low), graph.scalar(float(MAGNITUDE_MIN)))
    scale = graph.add("Div", guarded, levels)
    below = graph.add("Round", graph.add("Neg", graph.add("Div", low, scale)))
    point = graph.add("Cast", below, to=TensorProto.UINT8)
    bottom = graph.add("Neg", graph.add("Mul", below, scale))
    top = graph.add("Mul", graph.add("Sub", levels, below), scale)
    inside = graph.add("Clip", tensor, bottom, top)
    return graph.add("DequantizeLinear", graph.add("QuantizeLinear", inside, scale, point), scale, point)


def _edges(graph: Graph, span: str, zero: str) -> tuple[str, str]:
    low, high = graph.add_many("Split", span, outputs=("", ""), num_outputs=2)
    return graph.add("Min", low, zero), graph.add("Max", high, zero)
