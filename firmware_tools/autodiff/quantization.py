"""Straight-through gradients of fake quantisation (Bengio, Léonard & Courville 2013, arXiv:1308.3432 §4).

Rounding has gradient zero almost everywhere; the estimator takes it as one inside the range and as zero where
the value saturates (Jacob et al. 2018, arXiv:1712.05877 §3). Scales and zero points are held constant.
"""

import numpy as np

from firmware_tools.autodiff.elementwise import mask
from firmware_tools.autodiff.registry import Call, Gradients, gradient

KINDS = ("int8", "uint8", "int16", "uint16")


@gradient("QuantizeLinear", settings=(1, 2))
def quantize(call: Call) -> Gradients:
    """Straight through where the value rounds into the integer range; a computed scale is taken to cover it."""
    scale, zero = call.constant(1), call.constant(2)
    if scale is None or (zero is None and call.input(2)):
        return [call.dy]
    kind = "uint8" if zero is None else str(zero.dtype)
    if kind not in KINDS or call.attribute("block_size", 0):
        raise call.refused("only 8- and 16-bit integers are known, one scale per tensor or channel")
    limits = np.iinfo(kind)
    offset = np.zeros(()) if zero is None else zero.astype(np.float64)
    factor = scale.astype(np.float64)
    if factor.ndim:
        axis = call.axis(1)
        extents = [-1 if i == axis else 1 for i in range(len(call.shape(call.x)))]
        factor, offset = factor.reshape(extents), offset.reshape(extents if offset.ndim else ())
    # Half a step beyond the range still rounds into it.
    low = ((limits.min - 0.5 - offset) * factor).astype(np.float32)
    high = ((limits.max + 0.5 - offset) * factor).astype(np.float32)
    g = call.graph
    above = mask(g, "GreaterOrEqual", call.x, g.constant(low))
    below = mask(g, "LessOrEqual", call.x, g.constant(high))
    return [g.add("Mul", call.dy, g.add("Mul", above, below))]


@gradient("DequantizeLinear", settings=(1, 2))
def dequantize(call: Call) -> Gradients:
    """Passed on to the quantised value, which is reckoned in real units."""
    return [call.dy]
