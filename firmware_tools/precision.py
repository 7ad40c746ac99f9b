"""Brings a model of float16, bfloat16 or float64 to float32, in which devices train."""

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

OTHERS = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16", TensorProto.DOUBLE: "float64"}
_TYPE_ATTRIBUTES = ("to", "dtype")  # of Cast, EyeLike and their like; types of quantised values stay


def to_float32(model: onnx.ModelProto) -> tuple[str, ...]:
    """Convert the model in place, values, types and casts; returns a note if anything was changed.

    Sub-graphs and functions are not looked into. A value beyond float32 becomes infinite, which the compiler
    refuses where it is to be trained.
    """
    graph = model.graph
    found = set()
    for info in (*graph.input, *graph.output):
        tensor = info.type.tensor_type
        if tensor.elem_type in OTHERS:
            found.add(tensor.elem_type)
            tensor.elem_type = TensorProto.FLOAT
    values = list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            values += (attribute.t, *attribute.tensors)
            if attribute.name in _TYPE_ATTRIBUTES and attribute.i in OTHERS:
                found.add(attribute.i)
                attribute.i = TensorProto.FLOAT
    for value in values:
        if value.data_type in OTHERS:
            found.add(value.data_type)
            with np.errstate(over="ignore"):
                converted = numpy_helper.to_array(value).astype(np.float32)
            value.CopyFrom(numpy_helper.from_array(converted, value.name))
    if not found:
        return ()
    del graph.value_info[:]  # it states the old types
    names = ", ".join(name for kind, name in OTHERS.items() if kind in found)
    return (f"converted {names} to float32, in which devices train",)
