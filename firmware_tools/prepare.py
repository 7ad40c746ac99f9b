"""Turns any inference model that fits into the plain form the compiler works on.

The model that source.py read gets one input `x` and one output, named by the loss: Constant nodes become constants,
shape arithmetic is folded, a closing Softmax or Sigmoid that the loss brings itself is stripped, Dropout becomes
Identity, BatchNormalization loses its training mode, recurrent layers take time first.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edge_client.bundle import Loss
from firmware_tools.autodiff.graph import needed
from firmware_tools.autodiff.recurrent import RECURRENT, kernel_form
from firmware_tools.batching import free_batch
from firmware_tools.errors import ModelError, OptionError
from firmware_tools.folding import fold_shapes
from firmware_tools.objective import CLOSING, FIGURES, OUTPUTS
from firmware_tools.rewrite import pool_before_relu
from firmware_tools.sharing import separate
from firmware_tools.source import read

RESERVED = frozenset({"x", "y", "learning_rate", *OUTPUTS.values(), *FIGURES})

Array = npt.NDArray[np.generic]

# What a reduction over no axis is by its definition. ONNX Runtime 1.22 fails where the input of axes is absent, and
# takes the value as it is where it is empty.
_UNREDUCED = {
    "ReduceL1": "Abs", "ReduceL2": "Abs", "ReduceLogSum": "Log", "ReduceLogSumExp": "Identity",
    "ReduceMax": "Identity", "ReduceMean": "Identity", "ReduceMin": "Identity", "ReduceProd": "Identity",
    "ReduceSum": "Identity", "ReduceSumSquare": "Mul",
}  # fmt: skip


@dataclass(frozen=True)
class Network:
    """A checked model: float32 input `x` [batch, *sample_shape] to the tensor `output`.

    `constants` maps initializer names to values; those in `parameters` may be trained, the others are literals
    of the model's Constant nodes and folded shapes. `notes` says what was changed on the way, for the person
    who called the compiler.
    """

    name: str
    nodes: tuple[NodeProto, ...]
    constants: dict[str, Array]
    parameters: frozenset[str]
    sample_shape: tuple[int, ...]
    output: str
    opset: int
    notes: tuple[str, ...]


def prepare(
    model: onnx.ModelProto | str | Path,
    *,
    loss: Loss = "cross_entropy",
    output: str | None = None,
    shape: Sequence[int] = (),
) -> Network:
    """Load and normalise an inference model; raise ModelError or OptionError naming what does not fit.

    `output` names the one output of several that is trained, `shape` gives extents of a sample that the model
    leaves open.
    """
    loaded, changed = read(model)
    graph = loaded.graph
    constants: dict[str, Array] = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    if graph.sparse_initializer:
        raise ModelError("sparse initializers are not supported; store them densely")
    source, sample, batch = _only_input(graph, constants, shape)
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.op_type == "Constant":
            constants[node.output[0]] = _constant_value(node)
        else:
            nodes.append(_plain(node, constants))
    nodes, target, notes = _strip_closing(nodes, _only_output(graph, output), CLOSING[loss])
    nodes = pool_before_relu(needed(nodes, [target]), target)
    if not any(source in node.input for node in nodes):
        raise ModelError(f"output {target!r} does not depend on input {source!r}")
    name = OUTPUTS[loss]
    rename = _renaming({source: "x", target: name, "": ""}, nodes, constants)
    _rename(nodes, rename)
    nodes = [new for n in nodes for new in (kernel_form(n) if n.op_type in RECURRENT else [n])]
    opset = loaded.opset_import[0].version
    renamed = {rename(k): v for k, v in constants.items()}
    if batch:
        nodes = free_batch(nodes, renamed, sample, batch, opset, output=name)
    nodes = needed(fold_shapes(nodes, renamed, sample, opset), [name])
    used = {name for node in nodes for name in node.input}
    kept = {k: v for k, v in renamed.items() if k in used}
    initializers = frozenset(rename(t.name) for t in graph.initializer if t.name in constants) & kept.keys()
    nodes, parameters, separated = separate(nodes, kept, initializers, name, loaded.producer_name)
    notes = changed + notes + separated
    return Network(graph.name or "model", tuple(nodes), kept, parameters, sample, name, opset, notes)


def _only_input(
    graph: onnx.GraphProto, constants: dict[str, Array], given: Sequence[int]
) -> tuple[str, tuple[int, ...], int]:
    """Name of the model's input, the shape of a sample, and the batch size, 0 for any."""
    inputs = [i for i in graph.input if i.name not in constants]
    if len(inputs) != 1:
        names = ", ".join(i.name for i in inputs)
        raise ModelError(f"the model has {len(inputs)} inputs ({names}); one, the samples, is needed")
    name, info = inputs[0].name, inputs[0].type.tensor_type
    if info.elem_type != TensorProto.FLOAT:
        kinds = {kind: word.lower() for word, kind in TensorProto.DataType.items()}
        kind = kinds.get(info.elem_type, "of an unknown type")
        raise ModelError(f"input {name!r} is {kind}, not float32 as samples are")
    dims = info.shape.dim
    if len(dims) < 2:
        raise ModelError(f"input {name!r} has {len(dims)} axes; [batch, …] with one axis or more is needed")
    if given and len(given) != len(dims) - 1:
        raise OptionError(f"shape {list(given)} for input {name!r}, whose samples have {len(dims) - 1} axes")
    if min(given, default=1) < 1:
        raise OptionError(f"shape {list(given)} has an extent that is not positive")
    sample = []
    for axis, (dim, extent) in enumerate(zip(dims[1:], given or [0] * len(dims), strict=False), start=1):
        if dim.dim_value > 0 and extent not in (0, dim.dim_value):
            raise OptionError(f"axis {axis} of input {name!r} is {dim.dim_value} in the model, not {extent}")
        if dim.dim_value <= 0 and not extent:
            symbol = f" ({dim.dim_param!r})" if dim.dim_param else ""
            raise ModelError(
                f"axis {axis} of input {name!r} is dynamic{symbol}; training graphs are static but for the "
                f"batch: give the shape of a sample, {_example(dims[1:])}, or export the model with it"
            )
        sample.append(extent or dim.dim_value)
    return name, tuple(sample), dims[0].dim_value


def _example(dims: Sequence[onnx.TensorShapeProto.Dimension]) -> str:
    """The option that would fix the shape, open extents by their symbols."""
    return "--shape " + ",".join(str(d.dim_value or (d.dim_param or "N").upper()) for d in dims)


def _only_output(graph: onnx.GraphProto, chosen: str | None) -> str:
    names = [o.name for o in graph.output]
    listed = ", ".join(names)
    if not names:
        raise ModelError("the model has no output")
    if chosen is not None and chosen not in names:
        raise OptionError(f"the model has no output {chosen!r}; it has: {listed}")
    if chosen is None and len(names) != 1:
        raise ModelError(f"the model has {len(names)} outputs ({listed}); choose one with --output NAME")
    return chosen or names[0]


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


def _plain(node: NodeProto, constants: Mapping[str, Array]) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    if node.op_type == "Dropout":
        # At inference it passes its input on, and the training graph regularises not.
        copy.op_type = "Identity"
        del copy.input[1:], copy.output[1:], copy.attribute[:]
    elif node.op_type == "BatchNormalization":
        # Whether it trains its statistics is an option of the compiler, not of the exporter.
        kept = [a for a in node.attribute if a.name in ("epsilon", "momentum")]
        del copy.output[1:], copy.attribute[:]
        copy.attribute.extend(kept)
    elif node.op_type in _UNREDUCED and _reduces_nothing(node, constants):
        copy.op_type = _UNREDUCED[node.op_type]
        del copy.input[1:], copy.attribute[:]
        copy.input.extend(node.input[:1] if copy.op_type == "Mul" else ())
    return copy


def _reduces_nothing(node: NodeProto, constants: Mapping[str, Array]) -> bool:
    axes = "".join(node.input[1:])
    without = not axes or (axes in constants and not constants[axes].size)
    return without and any(a.name == "noop_with_empty_axes" and a.i for a in node.attribute)


def _strip_closing(
    nodes: list[NodeProto], target: str, kinds: Sequence[str]
) -> tuple[list[NodeProto], str, tuple[str, ...]]:
    last = next((n for n in nodes if target in n.output), None)
    if last is None:
        raise ModelError(f"no node computes output {target!r}")
    if last.op_type not in kinds:
        return nodes, target, ()
    note = f"stripped the closing {last.op_type}: the loss works on logits, and so does the bundle's output"
    return [n for n in nodes if n is not last], last.input[0], (note,)


def _renaming(
    names: dict[str, str], nodes: list[NodeProto], constants: dict[str, Array]
) -> Callable[[str], str]:
    """The map from the model's names to free ones; `names` holds those that are decided."""
    taken = set(RESERVED)
    for old in [*constants, *(name for node in nodes for name in node.output)]:
        if old not in names:
            names[old] = _free(old, taken)
    return lambda name: names[name]


def _rename(nodes: list[NodeProto], rename: Callable[[str], str]) -> None:
    taken: set[str] = set()
    for node in nodes:
        node.input[:] = [rename(name) for name in node.input]
        node.output[:] = [rename(name) for name in node.output]
        # ONNX Runtime refuses two nodes of one name, which onnx's checker lets pass.
        node.name = _free(node.name or next(filter(None, node.output)), taken)


def _free(name: str, taken: set[str]) -> str:
    """A name that is not in `taken`, which it joins.

    `%` marks names this compiler makes, `@` the optimiser's tensors.
    """
    new = name.replace("%", "_").replace("@", "_")
    while new in taken:
        new += "_"
    taken.add(new)
    return new
