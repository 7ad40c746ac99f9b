"""The INT8 form of a trained model: QDQ nodes whose scales are constants, as runtimes fuse them into integer kernels.

Works on an inference graph whose weights are int8 behind DequantizeLinear nodes and whose activations pass
through QuantizeLinear and DequantizeLinear. Nothing here changes an answer by more than a rounding of float32,
but for biases, which are rounded to a step of the accumulator (Jacob et al. 2018, arXiv:1712.05877 §2.4).
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from onnx import NodeProto, helper

from firmware_tools.autodiff.graph import Array
from firmware_tools.autodiff.normalization import EPSILON
from firmware_tools.quantize import MAGNITUDE_MIN, weight_axis

_INT32_MAX = 2**31 - 1


def fold_batch_norms(nodes: Sequence[NodeProto], constants: dict[str, Array]) -> list[NodeProto]:
    """Move each BatchNormalization into the product before it where nothing else reads that product.

    With one scale per output channel the int8 values stay what they are: only scales change, and signs of
    channels whose factor is negative (-128 is never used, so every value has its negative).
    """
    uses = Counter(name for node in nodes for name in node.input)
    makers = {node.output[0]: node for node in nodes}
    gone = set()
    for norm in nodes:
        product = makers.get(norm.input[0]) if norm.op_type == "BatchNormalization" else None
        if product is None or uses[norm.input[0]] > 1 or not constants.keys() >= set(norm.input[1:]):
            continue
        weight = makers.get(product.input[1]) if product.op_type in ("Conv", "Gemm") else None
        if weight is None or weight.op_type != "DequantizeLinear" or uses[weight.output[0]] > 1:
            continue
        if _rescaled(norm, product, weight, constants):
            product.output[0] = norm.output[0]
            gone.add(norm.output[0])
    return [n for n in nodes if not (n.op_type == "BatchNormalization" and n.output[0] in gone)]


def _rescaled(norm: NodeProto, product: NodeProto, weight: NodeProto, constants: dict[str, Array]) -> bool:
    """Give the product the factor and shift of the normalisation; False where its bias does not allow it."""
    scale, shift, mean, variance = (constants[name].astype(np.float64) for name in norm.input[1:])
    given = constants.get(product.input[2]) if len(product.input) > 2 else np.zeros(1, dtype=np.float32)
    if given is None or given.ndim > 1 or _attribute(product, "beta", 1.0) != 1.0:
        return False
    bias = given.astype(np.float64)
    factor = scale / np.sqrt(variance + _attribute(norm, "epsilon", EPSILON))
    axis = int(_attribute(weight, "axis", 1))
    values, steps = (constants[name].astype(np.float64) for name in weight.input[:2])
    column = [-1 if i == axis else 1 for i in range(values.ndim)]
    stem = product.output[0]
    names = [f"{stem}%int8", f"{stem}%scale", f"{stem}%bias"]
    constants[names[0]] = (values * np.sign(factor).reshape(column)).astype(np.int8)
    constants[names[1]] = np.maximum(np.abs(factor) * steps, float(MAGNITUDE_MIN)).astype(np.float32)
    constants[names[2]] = (factor * (bias - mean) + shift).astype(np.float32)
    weight.input[:2] = names[:2]
    product.input[:] = [*product.input[:2], names[2]]
    return True


def quantize_biases(nodes: Sequence[NodeProto], constants: dict[str, Array]) -> list[NodeProto]:
    """Store biases as int32 in steps of (scale of the activation x scale of the weight), where both are constant."""
    makers = {node.output[0]: node for node in nodes}
    out: list[NodeProto] = []
    for node in nodes:
        bias = constants.get(node.input[2]) if len(node.input) > 2 and _is_product(node) else None
        sources = [makers.get(name) for name in node.input[:2]]
        if (
            bias is not None
            and bias.ndim == 1
            and all(s and s.op_type == "DequantizeLinear" for s in sources)
        ):
            step = np.multiply(*(constants[s.input[1]].astype(np.float64) for s in sources if s))
            values = np.rint(bias / step)
            if step.shape in ((), bias.shape) and np.abs(values).max() <= _INT32_MAX:
                names = [f"{node.output[0]}%bias.int32", f"{node.output[0]}%bias.scale"]
                constants[names[0]] = values.astype(np.int32)
                constants[names[1]] = np.broadcast_to(step, bias.shape).astype(np.float32)
                result = f"{node.output[0]}%bias.rounded"
                out.append(helper.make_node("DequantizeLinear", names, [result], name=result, axis=0))
                node.input[2] = result
        out.append(node)
    return out


def _is_product(node: NodeProto) -> bool:
    """Whether output channels of a product with a bias are those of its weight's scales."""
    return weight_axis(node, node.input[1], 2) is not None and node.op_type in ("Conv", "Gemm")


def _attribute(node: NodeProto, name: str, default: float) -> float:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)
