"""Turns any inference model that fits into the plain form the compiler works on.

Functions are inlined, Constant nodes become constants, shape arithmetic is folded, a closing Softmax is stripped,
Dropout becomes Identity, BatchNormalization is frozen, the opset is brought into range, and the one input and
output are called `x` and `logits`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.inliner import inline_local_functions

from firmware_tools.autodiff.graph import needed
from firmware_tools.errors import ModelError
from firmware_tools.folding import fold_shapes
from firmware_tools.rewrite import pool_before_relu

OPSET_MIN = 18  # reductions take their axes as an input from here on; older models are converted up
OPSET_MAX = 22  # the newest that onnxruntime 1.22, the oldest we support on devices, runs completely
RESERVED = frozenset({"x", "y", "logits", "loss", "correct", "learning_rate"})

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Network:
    """A checked model: float32 input `x` [batch, *sample_shape] to output `logits`.

    `constants` maps initializer names to values; those in `parameters` may be trained, the others are literals
    of the model's Constant nodes and folded shapes. `notes` says what was changed on the way, for the person
    who called the compiler.
    """

    name: str
    nodes: tuple[NodeProto, ...]
    constants: dict[str, Array]
    parameters: frozenset[str]
    sample_shape: tuple[int, ...]
    opset: int
    notes: tuple[str, ...]


def prepare(model: onnx.ModelProto | str | Path) -> Network:
    """Load and normalise an inference model; raise ModelError naming what does not fit."""
    loaded = _converted(_checked(_loaded(model)))
    graph = loaded.graph
    constants: dict[str, Array] = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    if graph.sparse_initializer:
        raise ModelError("sparse initializers are not supported; store them densely")
    source, shape = _only_input(graph, constants)
    if len(graph.output) != 1:
        raise ModelError(f"the model has {len(graph.output)} outputs; one, the logits, is needed")
    nodes: list[NodeProto] = []
    for node in graph.node:
        _refuse_foreign(node)
        if node.op_type == "Constant":
            constants[node.output[0]] = _constant_value(node)
        else:
            nodes.append(_plain(node))
    nodes, target, notes = _strip_softmax(nodes, graph.output[0].name)
    nodes = pool_before_relu(needed(nodes, [target]), target)
    if not any(source in node.input for node in nodes):
        raise ModelError(f"output {target!r} does not depend on input {source!r}")
    rename = _renaming(source, target, nodes, constants)
    _rename(nodes, rename)
    opset = loaded.opset_import[0].version
    renamed = {rename(k): v for k, v in constants.items()}
    nodes = needed(fold_shapes(nodes, renamed, shape, opset), ["logits"])
    used = {name for node in nodes for name in node.input}
    kept = {k: v for k, v in renamed.items() if k in used}
    parameters = frozenset(rename(t.name) for t in graph.initializer)
    return Network(graph.name or "model", tuple(nodes), kept, parameters, shape, opset, notes)


def _loaded(model: onnx.ModelProto | str | Path) -> onnx.ModelProto:
    if isinstance(model, onnx.ModelProto):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        return copy
    try:
        return onnx.load(model)
    except (OSError, DecodeError) as error:
        raise ModelError(f"{model}: not a readable ONNX model ({error})") from error


def _checked(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        onnx.checker.check_model(model)
        return inline_local_functions(model) if model.functions else model
    except (onnx.checker.ValidationError, RuntimeError) as error:
        raise ModelError(f"not a valid ONNX model: {error}") from error


def _converted(model: onnx.ModelProto) -> onnx.ModelProto:
    version = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if not OPSET_MIN <= version <= OPSET_MAX:
        target = min(max(version, OPSET_MIN), OPSET_MAX)
        try:
            model = onnx.version_converter.convert_version(model, target)
        except (RuntimeError, onnx.version_converter.ConvertError) as error:
            raise ModelError(f"opset {version} cannot be converted to {target}: {error}") from error
        version = target
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", version))
    return model


def _only_input(graph: onnx.GraphProto, constants: dict[str, Array]) -> tuple[str, tuple[int, ...]]:
    inputs = [i for i in graph.input if i.name not in constants]
    if len(inputs) != 1:
        raise ModelError(f"the model has {len(inputs)} inputs ({', '.join(i.name for i in inputs)}), not one")
    info = inputs[0].type.tensor_type
    if info.elem_type != TensorProto.FLOAT:
        raise ModelError(f"input {inputs[0].name!r} is not float32")
    dims = info.shape.dim
    if len(dims) < 2 or not all(d.dim_value > 0 for d in dims[1:]):
        raise ModelError(f"input {inputs[0].name!r} needs the shape [batch, …] with static extents after it")
    return inputs[0].name, tuple(d.dim_value for d in dims[1:])


def _refuse_foreign(node: NodeProto) -> None:
    if node.domain not in ("", "ai.onnx"):
        raise ModelError(f"node {node.name!r}: operator {node.domain}.{node.op_type} is not standard ONNX")
    if any(a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for a in node.attribute):
        raise ModelError(f"node {node.name!r}: {node.op_type} holds a sub-graph, which cannot be trained")


def _constant_value(node: NodeProto) -> Array:
    attribute = node.attribute[0]
    value = helper.get_attribute_value(attribute)
    if attribute.name == "value":
        return numpy_helper.to_array(value)
    kinds = {
        "value_float": np.float32,
        "value_floats": np.float32,
        "value_int": np.int64,
        "value_ints": np.int64,
    }
    if attribute.name not in kinds:
        raise ModelError(f"node {node.name!r}: a Constant of kind {attribute.name} is not supported")
    return np.asarray(value, dtype=kinds[attribute.name])


def _plain(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    if node.op_type == "Dropout":
        # At inference it passes its input on, and the training graph regularises not.
        copy.op_type = "Identity"
        del copy.input[1:], copy.output[1:], copy.attribute[:]
    elif node.op_type == "BatchNormalization":
        # Exported in training mode it would average over each device's small batches: its statistics are frozen.
        kept = [a for a in node.attribute if a.name == "epsilon"]
        del copy.output[1:], copy.attribute[:]
        copy.attribute.extend(kept)
    return copy


def _strip_softmax(nodes: list[NodeProto], target: str) -> tuple[list[NodeProto], str, tuple[str, ...]]:
    last = next((n for n in nodes if target in n.output), None)
    if last is None:
        raise ModelError(f"no node computes output {target!r}")
    if last.op_type not in ("Softmax", "LogSoftmax"):
        return nodes, target, ()
    note = f"stripped the closing {last.op_type}: the loss works on logits, and so does the bundle's output"
    return [n for n in nodes if n is not last], last.input[0], (note,)


def _renaming(
    source: str, target: str, nodes: list[NodeProto], constants: dict[str, Array]
) -> Callable[[str], str]:
    names = {source: "x", target: "logits", "": ""}
    taken = set(RESERVED)
    for old in [*constants, *(name for node in nodes for name in node.output)]:
        if old in names:
            continue
        # `%` marks names this compiler makes, `@` the optimiser's tensors.
        new = old.replace("%", "_").replace("@", "_")
        while new in taken:
            new += "_"
        taken.add(new)
        names[old] = new
    return lambda name: names[name]


def _rename(nodes: list[NodeProto], rename: Callable[[str], str]) -> None:
    for node in nodes:
        node.input[:] = [rename(name) for name in node.input]
        node.output[:] = [rename(name) for name in node.output]
