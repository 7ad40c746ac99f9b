"""Writes a trained version as an ordinary ONNX inference model: parameters become initializers.

`int8` is weight-only INT8: the weights of Conv, Gemm and MatMul are stored as int8 and pass through a
DequantizeLinear with the very scales of the fake quantisation in training, so the model answers as the trained
one did. Activations and arithmetic stay float32. `fp32` stores the float32 master weights and drops the
rounding, so its answers differ slightly from those evaluated in training.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from edge_client.bundle import Manifest
from edge_client.wire import grid
from firmware_tools.autodiff.graph import Array, needed
from firmware_tools.errors import ExportError
from firmware_tools.quantize import quantize

Format = Literal["fp32", "int8"]


def export_model(
    infer_onnx: bytes,
    manifest: Manifest,
    grid_values: Sequence[grid.Grid],
    format: Format = "fp32",  # noqa: A002 - the word users know
    version: str = "",
) -> bytes:
    """An ONNX model, float32 `x` [batch, …] to float32 `logits` [batch, classes].

    `infer_onnx` is the bundle's infer.onnx and `grid_values` one flat int32 array per tensor of the manifest.
    `version` goes into the metadata beside the name. Raises ExportError.
    """
    if format not in ("fp32", "int8"):
        raise ExportError(f"format {format!r} is not known; known: fp32, int8")
    if format == "int8" and manifest.quantize != "int8-weights":
        raise ExportError(
            f"{manifest.name} was trained with quantize={manifest.quantize}; int8 needs int8-weights"
        )
    model = onnx.load_from_string(infer_onnx)
    values = _values(manifest, grid_values)
    values |= {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    nodes, replaced = _resolve(list(model.graph.node), values, format)
    nodes = needed(nodes, [o.name for o in model.graph.output])
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        manifest.name,
        [i for i in model.graph.input if i.name not in values],
        list(model.graph.output),
        [numpy_helper.from_array(v, n) for n, v in (values | replaced).items() if n in used],
    )
    exported = helper.make_model(graph, opset_imports=model.opset_import, producer_name="fedfleet")
    exported.ir_version = model.ir_version
    helper.set_model_props(exported, {"name": manifest.name, "version": version, "format": format})
    try:
        onnx.checker.check_model(exported, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the exported model is not valid: {error}") from error
    data: bytes = exported.SerializeToString(deterministic=True)
    return data


def _values(manifest: Manifest, grid_values: Sequence[grid.Grid]) -> dict[str, Array]:
    if tuple(len(v) for v in grid_values) != manifest.sizes:
        raise ExportError(f"{len(grid_values)} tensors do not fit the {len(manifest.table)} of the manifest")
    pairs = zip(manifest.table, grid_values, strict=True)
    return {t.name: grid.from_grid(v, t.step_exp).reshape(t.shape) for t, v in pairs}


def _resolve(
    nodes: list[NodeProto], values: Mapping[str, Array], kind: Format
) -> tuple[list[NodeProto], dict[str, Array]]:
    """Replace each QuantizeLinear of a weight: by its int8 values, or (fp32) by the weight itself."""
    quantizers = {n.output[0]: n for n in nodes if n.op_type == "QuantizeLinear" and n.input[0] in values}
    rename: dict[str, str] = {}
    stored: dict[str, Array] = {}
    kept = []
    for node in nodes:
        source = quantizers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if source is None:
            node.input[:] = [rename.get(name, name) for name in node.input]
            kept.append(node)
            continue
        weight = source.input[0]
        if kind == "fp32":
            rename[node.output[0]] = weight
            continue
        axis = next(helper.get_attribute_value(a) for a in source.attribute if a.name == "axis")
        names = [f"{weight}.int8.{axis}", f"{weight}.scale.{axis}"]
        integers, scales = quantize(values[weight], axis)
        stored |= dict(zip(names, (integers, np.asarray(scales)), strict=True))
        kept.append(helper.make_node("DequantizeLinear", names, list(node.output), name=node.name, axis=axis))
    return kept, stored
