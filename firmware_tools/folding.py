"""Folds what exporters compute from shapes: with a known sample shape, all of it depends on the batch size alone.

The values are not reasoned about but observed: ONNX Runtime runs the model at three batch sizes. What stays the
same becomes a constant; what grows linearly becomes one product and sum of the batch size, which onnx's shape
inference understands.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper

from edge_client.runtime import ort
from firmware_tools.autodiff.graph import DYNAMIC, Array, Graph, Shape, shapes_of, value_info
from firmware_tools.autodiff.recurrent import LENGTHS, RECURRENT
from firmware_tools.errors import ModelError

BATCHES = (2, 3, 5)
_KINDS = (TensorProto.INT64, TensorProto.INT32)

Ints = npt.NDArray[np.int64]


def fold_shapes(
    nodes: Sequence[NodeProto],
    constants: dict[str, Array],
    sample_shape: tuple[int, ...],
    opset: int,
    batches: tuple[int, int, int] = BATCHES,
) -> list[NodeProto]:
    """The nodes with shape arithmetic replaced; constants are added to `constants`.

    `x` is the name of the model's input, observed at these `batches`: three equal ones make all of it constant.
    Raises ModelError when the model does not run at one of them.
    """
    graph = Graph(opset)
    graph.nodes, graph.constants = list(nodes), dict(constants)
    arithmetic = _arithmetic(nodes, constants)
    read = {name for n in nodes if n.output[0] not in arithmetic for name in n.input if name in arithmetic}
    seen = _observed(graph, sorted(read), sample_shape, batches)
    front: list[NodeProto] = []
    for name, values in seen.items():
        if len({value.shape for value in values}) > 1:
            continue
        per_sample = values[1] - values[0]
        fixed = values[0] - batches[0] * per_sample
        if not per_sample.any():
            constants[name] = values[0]
        elif (fixed + batches[2] * per_sample == values[2]).all() and values[0].ndim <= 1:
            front += _linear(name, per_sample, fixed, constants)
    replaced = seen.keys() & (constants.keys() | {n.output[0] for n in front})
    rest = [n for n in nodes if not replaced.intersection(n.output)]
    for node in rest:
        if node.op_type == "Reshape" and node.input[1] in replaced:
            _free_batch(node, seen[node.input[1]], constants)
    graph.nodes, graph.constants = front + rest, constants
    for node in rest:
        if node.op_type == "ReverseSequence" and node.input[1] in seen:
            _reverse_all(node, seen[node.input[1]], graph, sample_shape)
        elif node.op_type in RECURRENT and len(node.input) > LENGTHS and node.input[LENGTHS]:
            _last_all(node, seen.get(node.input[LENGTHS], ()), graph, {"x": (batches[0], *sample_shape)})
    return front + rest


def _arithmetic(nodes: Sequence[NodeProto], constants: Mapping[str, Array]) -> set[str]:
    """First outputs of the nodes that compute with shapes and integers only."""
    known = {name for name, value in constants.items() if value.dtype.kind in "iub"} | {""}
    found = set()
    for node in nodes:
        if node.op_type in ("Shape", "Size") or (node.input and known.issuperset(node.input)):
            found.add(node.output[0])
            known.update(node.output)
    return found


def _observed(
    graph: Graph, names: Sequence[str], sample: tuple[int, ...], batches: Sequence[int]
) -> dict[str, list[Ints]]:
    """The values of integer tensors at each of the batch sizes."""
    source = [value_info("x", TensorProto.FLOAT, [-1, *sample])]
    model = graph.model("shapes", source, [helper.make_empty_tensor_value_info(n) for n in names])
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    kinds = {
        v.name: v.type.tensor_type.elem_type for v in (*inferred.graph.output, *inferred.graph.value_info)
    }
    wanted = [n for n in names if kinds.get(n) in _KINDS]
    if not wanted:
        return {}
    model = graph.model("shapes", source, [helper.make_tensor_value_info(n, kinds[n], None) for n in wanted])
    runs = []
    options = ort.SessionOptions()
    options.log_severity_level = 4
    for batch in batches:
        try:
            session = ort.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            feeds = {i.name: np.zeros((batch, *sample), np.float32) for i in session.get_inputs()}
            runs.append(session.run(wanted, feeds))
        except Exception as error:  # the runtime's errors have no common base
            raise ModelError(f"shapes do not fit at a batch of {batch} samples: {error}") from error
    return {name: [np.asarray(run[i]) for run in runs] for i, name in enumerate(wanted)}


def _linear(name: str, per_sample: Ints, fixed: Ints, constants: dict[str, Array]) -> list[NodeProto]:
    """Nodes that compute batch * per_sample + fixed as `name`."""
    constants |= {f"{name}%per_sample": per_sample, f"{name}%fixed": fixed}
    batch = f"{name}%batch"
    nodes = [helper.make_node("Shape", ["x"], [batch], start=0, end=1)]
    if per_sample.ndim == 0:
        nodes.append(helper.make_node("Squeeze", [batch], [f"{name}%scalar"]))
        batch = f"{name}%scalar"
    if per_sample.dtype != np.int64:
        nodes.append(helper.make_node("Cast", [batch], [f"{name}%cast"], to=TensorProto.INT32))
        batch = f"{name}%cast"
    nodes.append(helper.make_node("Mul", [batch, f"{name}%per_sample"], [f"{name}%scaled"]))
    nodes.append(helper.make_node("Add", [f"{name}%scaled", f"{name}%fixed"], [name]))
    return nodes


def _free_batch(node: NodeProto, values: Sequence[Ints], constants: dict[str, Array]) -> None:
    """Give a Reshape a constant target, with -1 for the one extent that follows the batch."""
    follows = values[0] != values[1]
    if follows.sum() == 1 and not (values[0] <= 0).any():
        name = f"{node.input[1]}%target"
        constants[name] = np.where(follows, -1, values[0])
        node.input[1] = name


def _reverse_all(node: NodeProto, lengths: Sequence[Ints], graph: Graph, sample: tuple[int, ...]) -> None:
    """Make a Slice of a ReverseSequence of whole sequences, as which the backward half of a layer comes from Keras."""
    shape = shapes_of(graph, {"x": (DYNAMIC, *sample)}, [node.input[0]]).get(node.input[0], ())
    axis = next((a.i for a in node.attribute if a.name == "time_axis"), 0)
    if axis < len(shape) and set(np.concatenate(lengths).tolist()) == {shape[axis]}:
        bounds = {"start": -1, "end": -(2**31), "axis": axis, "step": -1}
        names = [f"{node.output[0]}%{bound}" for bound in bounds]
        graph.constants |= {n: np.array([v]) for n, v in zip(names, bounds.values(), strict=True)}
        node.op_type = "Slice"
        node.input[1:] = names
        del node.attribute[:]


def _last_all(node: NodeProto, seen: Sequence[Ints], graph: Graph, inputs: Mapping[str, Shape]) -> None:
    """Drop the lengths of a recurrent layer's sequences where all last to the end, as exporters write for any."""
    constant = graph.constants.get(node.input[LENGTHS])
    values = list(seen) if constant is None else [constant]
    steps = shapes_of(graph, inputs, [node.input[0]]).get(node.input[0], (0,))[0]
    if values and all((lengths == steps).all() for lengths in values):
        node.input[LENGTHS] = ""
