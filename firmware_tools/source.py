"""Reads a model that somebody's exporter wrote: whole, checked, of one opset range, in float32.

What comes in is a file of unknown origin, so sizes are checked before anything is loaded, and data beside the model
is read from the model's own folder only.
"""

from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data
from onnx.inliner import inline_local_functions

from edge_client.wire.limits import FRAME_BYTES_MAX
from firmware_tools.autodiff.graph import OPSET_MAX
from firmware_tools.errors import ModelError
from firmware_tools.precision import to_float32
from firmware_tools.sharing import lost
from firmware_tools.unrolling import unroll_loops

OPSET_MIN = 18  # reductions take their axes as an input from here on; older models are converted up
MODEL_BYTES_MAX = 2 * FRAME_BYTES_MAX  # float64 takes twice the bytes of the largest bundle's float32
STANDARD = ("", "ai.onnx")  # two names of one domain


def read(model: onnx.ModelProto | str | Path) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """The model of opset OPSET_MIN to OPSET_MAX, functions inlined, and notes on what was changed.

    Raises ModelError for what is unreadable, too large, not valid, or not made of standard operators alone.
    """
    own = _loaded(model)
    _refuse_garbled(own)
    _refuse_foreign(own)
    inlined = _checked(own)
    for tensor in _tensors(inlined):
        _check_values(tensor)
    if any(node.op_type == "Loop" for node in inlined.graph.node):
        unroll_loops(inlined, _opset(inlined))
        inlined = _checked(inlined)
    for node in inlined.graph.node:
        if any(a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for a in node.attribute):
            raise ModelError(f"{_called(node)} holds a sub-graph; control flow cannot be trained")
    converted = _converted(inlined)
    converted.producer_name = own.producer_name  # onnx's converter drops it, and exporters have their ways
    return converted, lost(own) + to_float32(converted)


def _loaded(model: onnx.ModelProto | str | Path) -> onnx.ModelProto:
    loaded = onnx.ModelProto()
    if isinstance(model, onnx.ModelProto):
        _limit("the model", model.ByteSize())
        loaded.CopyFrom(model)
        outside = next((t for t in _tensors(loaded) if uses_external_data(t)), None)
        if outside:
            raise ModelError(f"the data of {outside.name!r} is in another file; give the model's path")
        return loaded
    path = Path(model)
    try:
        _limit(str(path), path.stat().st_size)
        loaded.ParseFromString(path.read_bytes())
    except (OSError, DecodeError) as error:
        raise ModelError(f"{path}: not a readable ONNX model ({error})") from error
    _load_beside(loaded, path)
    return loaded


def _limit(what: str, size: int) -> None:
    if size > MODEL_BYTES_MAX:
        raise ModelError(f"{what} has {size} B; models of up to {MODEL_BYTES_MAX} B can be compiled")


def _load_beside(model: onnx.ModelProto, path: Path) -> None:
    """Load external data from files in the model's folder."""
    folder = path.parent.resolve()
    outside = [t for t in _tensors(model) if uses_external_data(t)]
    sizes: dict[Path, int] = {path: path.stat().st_size}
    for tensor in outside:
        location = next((e.value for e in tensor.external_data if e.key == "location"), "")
        file = (folder / location).resolve()
        if not file.is_relative_to(folder):
            raise ModelError(f"{path}: the data of {tensor.name!r} leads out of its folder, to {location!r}")
        if not file.is_file():
            raise ModelError(
                f"{path}: the data of {tensor.name!r} is missing; put {location!r} beside the model"
            )
        sizes[file] = file.stat().st_size
    _limit(f"{path} with its data", sum(sizes.values()))
    for tensor in outside:
        try:
            load_external_data_for_tensor(tensor, str(folder))
        except (OSError, ValueError, RuntimeError, onnx.checker.ValidationError) as error:
            raise ModelError(f"{path}: the data of {tensor.name!r} cannot be read: {error}") from error


def _tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    yield from model.graph.initializer
    for node in _nodes(model):
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for graph in (attribute.g, *attribute.graphs):
                yield from graph.initializer


def _nodes(model: onnx.ModelProto) -> Iterator[NodeProto]:
    """Every node, also of functions and sub-graphs."""
    waiting: list[NodeProto] = [*model.graph.node, *(n for f in model.functions for n in f.node)]
    while waiting:
        node = waiting.pop()
        yield node
        graphs: list[GraphProto] = [g for a in node.attribute for g in (a.g, *a.graphs)]
        waiting += (n for g in graphs for n in g.node)


def _refuse_garbled(model: onnx.ModelProto) -> None:
    """Names that are no UTF-8 reach Python as bytes, which nothing behind here expects."""
    graph = model.graph
    names = [v.name for v in (*graph.input, *graph.output, *graph.initializer)]
    for node in _nodes(model):
        names += (node.name, node.op_type, node.domain, *node.input, *node.output)
        names += (a.name for a in node.attribute)
    garbled = next((name for name in names if not isinstance(name, str)), None)
    if garbled is not None:
        raise ModelError(f"not a valid ONNX model: the name {garbled!r} is not UTF-8")


def _refuse_foreign(model: onnx.ModelProto) -> None:
    own = {(f.domain, f.name) for f in model.functions}
    for node in _nodes(model):
        if node.domain not in STANDARD and (node.domain, node.op_type) not in own:
            raise ModelError(
                f"{_called(node)} is of the domain {node.domain!r}; only standard ONNX operators and the model's "
                "own functions can be compiled"
            )


def _check_values(tensor: TensorProto) -> None:
    """Values of a known type, as many as the shape says; the checker lets some others pass."""
    try:
        if tensor.data_type:
            numpy_helper.to_array(tensor)
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"the values of {tensor.name!r} do not fit its shape and type ({error})") from error


def _called(node: NodeProto) -> str:
    return f"node {node.name or next(iter(node.output), '')!r} of type {node.op_type}"


def _checked(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        onnx.checker.check_model(model)
        return inline_local_functions(model) if model.functions else model
    except (onnx.checker.ValidationError, RuntimeError, DecodeError, ValueError) as error:
        raise ModelError(f"not a valid ONNX model: {error}") from error


def _opset(model: onnx.ModelProto) -> int:
    return next((o.version for o in model.opset_import if o.domain in STANDARD), 0)


def _converted(model: onnx.ModelProto) -> onnx.ModelProto:
    version = _opset(model)
    if not OPSET_MIN <= version <= OPSET_MAX:
        target = min(max(version, OPSET_MIN), OPSET_MAX)
        try:
            model = onnx.version_converter.convert_version(model, target)
        except (
            RuntimeError,
            onnx.version_converter.ConvertError,
            onnx.shape_inference.InferenceError,
        ) as error:
            raise ModelError(
                f"opset {version} cannot be converted to {target}; export the model with opset {OPSET_MIN} to "
                f"{OPSET_MAX} ({error})"
            ) from error
        version = target
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", version))
    return model
