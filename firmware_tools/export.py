"""Writes a trained version as an ordinary ONNX inference model: parameters and statistics become constants.

`int8` has the rounding of the training graph for good: weights are stored as int8 behind a DequantizeLinear, and
of a model trained with `int8` activations pass through QuantizeLinear and DequantizeLinear (QDQ), whose scales
come from the ranges that devices observed. So the model answers as the trained one did. `fp32` stores the
float32 master weights and drops the rounding, so its answers differ slightly from those evaluated in training.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import onnx
from onnx import NodeProto, helper, numpy_helper

from edge_client.bundle import Manifest
from edge_client.wire import grid
from firmware_tools.autodiff.graph import Array, needed
from firmware_tools.constants import fold_constants
from firmware_tools.errors import CompileError, ExportError, ModelError
from firmware_tools.forward import RANGE
from firmware_tools.graphs import serialized
from firmware_tools.integer import fold_batch_norms, quantize_biases

Format = Literal["fp32", "int8"]
MADE = "%"  # in the names of what the compiler added, and in no other (prepare.py)


def export_model(
    infer_onnx: bytes,
    manifest: Manifest,
    grid_values: Sequence[grid.Grid],
    format: Format = "fp32",  # noqa: A002 - the word users know
    version: str = "",
    *,
    threshold: tuple[float, int] | None = None,
) -> bytes:
    """An ONNX model from float32 `x` [batch, …] to the outputs of the bundle's infer.onnx.

    `infer_onnx` is that member and `grid_values` one flat int32 array per tensor of the manifest. `version` goes into
    the metadata beside the name, and of a reconstruction the `threshold` with the version on which devices measured
    it: a sample whose `errors` value is above it is an anomaly. Raises ExportError.
    """
    if format not in ("fp32", "int8"):
        raise ExportError(f"format {format!r} is not known; known: fp32, int8")
    if format == "int8" and manifest.quantize == "none":
        raise ExportError(
            f"{manifest.name} was trained with quantize=none; int8 needs a bundle built with --quantize int8 or "
            "int8-weights"
        )
    model = onnx.load_from_string(infer_onnx)
    values = _values(manifest, grid_values)
    if format == "int8" and manifest.quantize == "int8":
        _check_ranges(manifest, values)
    values |= {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    nodes = _without_rounding(model.graph.node) if format == "fp32" else _without_clipping(model.graph.node)
    outputs = [o.name for o in model.graph.output]
    try:
        opset = model.opset_import[0].version
        nodes = fold_constants(needed(nodes, outputs), values, opset, keep=("DequantizeLinear",))
    except ModelError as error:
        raise ExportError(str(error)) from error
    if format == "int8":
        nodes = fold_batch_norms(nodes, values)
        if manifest.quantize == "int8":
            nodes = quantize_biases(nodes, values)
    properties = {"version": version, "format": format, **_threshold(manifest, threshold)}
    return _written(model, manifest, needed(nodes, outputs), values, properties)


def _threshold(manifest: Manifest, threshold: tuple[float, int] | None) -> dict[str, str]:
    if manifest.threshold_share is None or threshold is None:
        return {}
    value, version = threshold
    return {
        "threshold": f"{value:.9g}",  # what a float32 needs to be read back exactly
        "threshold_share": f"{manifest.threshold_share:g}",
        "threshold_version": str(version),
    }


def _written(
    source: onnx.ModelProto,
    manifest: Manifest,
    nodes: Sequence[NodeProto],
    values: Mapping[str, Array],
    properties: Mapping[str, str],
) -> bytes:
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        manifest.name,
        [i for i in source.graph.input if i.name not in values],
        list(source.graph.output),
        [numpy_helper.from_array(v, n) for n, v in values.items() if n in used],
    )
    exported = helper.make_model(graph, opset_imports=source.opset_import, producer_name="fedfleet")
    exported.ir_version = source.ir_version
    helper.set_model_props(exported, {"name": manifest.name, **properties})
    try:
        return serialized(exported)
    except CompileError as error:
        raise ExportError(str(error)) from error


def _values(manifest: Manifest, grid_values: Sequence[grid.Grid]) -> dict[str, Array]:
    if tuple(len(v) for v in grid_values) != manifest.sizes:
        raise ExportError(f"{len(grid_values)} tensors do not fit the {len(manifest.table)} of the manifest")
    pairs = zip(manifest.table, grid_values, strict=True)
    return {t.name: grid.from_grid(v, t.step_exp).reshape(t.shape) for t, v in pairs}


def _check_ranges(manifest: Manifest, values: Mapping[str, Array]) -> None:
    """A tensor that is always zero keeps the range (0, 0); that all are means that nobody has trained yet."""
    ranges = [values[t.name] for t in manifest.statistics if t.name.rstrip("_").endswith(RANGE)]
    if not any(r.any() for r in ranges):
        raise ExportError(
            f"no device has observed a range of {manifest.name}'s activations in this version; export a later "
            "one as int8, or this one as fp32"
        )


def _without_rounding(nodes: Sequence[NodeProto]) -> list[NodeProto]:
    """The nodes past the compiler's own fake quantisation; a model's own stays."""
    return _bypassed(nodes, ("Clip", "QuantizeLinear", "DequantizeLinear"))


def _without_clipping(nodes: Sequence[NodeProto]) -> list[NodeProto]:
    """The nodes without the Clip before a rounding, which saturates at the same edges."""
    return _bypassed(nodes, ("Clip",))


def _bypassed(nodes: Sequence[NodeProto], kinds: Sequence[str]) -> list[NodeProto]:
    rename: dict[str, str] = {}
    kept = []
    for node in nodes:
        node.input[:] = [rename.get(name, name) for name in node.input]
        if node.op_type in kinds and MADE in node.output[0]:
            rename[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    return kept
