"""Counts the multiply-adds of a graph: those of its products, which are nearly all of its work."""

from collections.abc import Iterable, Mapping
from math import prod

from onnx import NodeProto, helper

from firmware_tools.autodiff.graph import DYNAMIC, Shape


def multiply_adds(nodes: Iterable[NodeProto], shapes: Mapping[str, Shape], batch_size: int) -> int | None:
    """Multiply-adds of all Conv, ConvTranspose, Gemm and MatMul nodes for one batch; None when a shape is missing.

    `shapes` are those of their inputs and outputs; DYNAMIC counts as `batch_size`. A Scan, which the compiler writes
    to take one sample after another, counts as often as there are samples.
    """

    def size(extents: Shape) -> int:
        return prod(batch_size if e == DYNAMIC else e for e in extents)

    total = 0
    for node in (n for n in nodes if n.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul", "Scan")):
        if node.op_type == "Scan":
            (body,) = (a.g for a in node.attribute if a.name == "body")
            each = multiply_adds(body.node, shapes, batch_size)
            if each is None:
                return None
            total += each * batch_size
            continue
        if not shapes.keys() >= {*node.input[:2], node.output[0]}:
            return None
        if node.op_type == "ConvTranspose":  # each input value is multiplied with one kernel
            total += size(shapes[node.input[0]]) * size(shapes[node.input[1]][1:])
        elif node.op_type == "Conv":  # each output value is a product with one kernel
            total += size(shapes[node.output[0]]) * size(shapes[node.input[1]][1:])
        else:  # each output value is a product with one column
            second = shapes[node.input[1]]
            turned = any(a.name == "transB" and helper.get_attribute_value(a) for a in node.attribute)
            inner = second[-1:] if turned or len(second) == 1 else second[-2:-1]
            total += size(shapes[node.output[0]]) * size(inner)
    return total
