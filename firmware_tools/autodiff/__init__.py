"""Reverse-mode differentiation of ONNX graphs into standard ONNX operators (default domain, opset >= 18).

`differentiate` appends gradient nodes to a Graph. Each operator family is one module of gradient rules; a new
operator is a function under `@gradient("Op")`, or under `@expansion("Op")` when it is first written as others.
Speed follows measurements on the stock CPU kernels of ONNX Runtime, which the comments in the rules quote.
"""

from firmware_tools.autodiff import (
    activation,
    convolution,
    elementwise,
    linear,
    normalization,
    pooling,
    quantization,
    recurrent,
    reduction,
    resampling,
    selection,
    shape,
)
from firmware_tools.autodiff.graph import Graph
from firmware_tools.autodiff.loss import binary_cross_entropy, cross_entropy, squared_error
from firmware_tools.autodiff.registry import SETTINGS, gradient, supported
from firmware_tools.autodiff.reverse import differentiate

RULES = (
    activation,
    convolution,
    elementwise,
    linear,
    normalization,
    pooling,
    quantization,
    recurrent,
    reduction,
    resampling,
    selection,
    shape,
)

__all__ = [
    "RULES",
    "SETTINGS",
    "Graph",
    "binary_cross_entropy",
    "cross_entropy",
    "differentiate",
    "gradient",
    "squared_error",
    "supported",
]
