"""An ONNX graph under construction: nodes in topological order, constants shared by value.

It knows nothing of gradients. Shapes are inferred by `shapes_of` at two batch sizes, which tells static
extents from those that follow the batch even where symbolic inference gives up.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from firmware_tools.errors import ModelError

OPSET_MAX = 22  # the newest that onnxruntime 1.22, the oldest we support on devices, runs completely
DYNAMIC = -1  # an extent that follows the batch size
FLOAT = TensorProto.FLOAT
INT64 = TensorProto.INT64
_BATCHES = (2, 3)  # the two batch sizes at which shapes are inferred
_UNINFERRED = {"GroupNormalization"}  # keeps its input's shape, but onnx has no inference for it

Shape = tuple[int, ...]
Array = npt.NDArray[np.generic]


class Graph:
    """Nodes and constants; every `add` appends, so the node list is always in topological order."""

    def __init__(self, opset: int, scope: str = "") -> None:
        self.opset = opset
        self._scope = scope  # begins the numbers of fresh names: those of a body must not occur around it
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, Array] = {}
        self.held: set[str] = set()  # observed tensors: no gradient flows through them
        self._shared: dict[tuple[str, Shape, bytes], str] = {}
        self._count = 0

    def copy(self) -> "Graph":
        """A graph that can grow apart from this one."""
        twin = Graph(self.opset, self._scope)
        twin.nodes = list(self.nodes)
        twin.constants = dict(self.constants)
        twin.held = set(self.held)
        twin._shared = dict(self._shared)
        twin._count = self._count
        return twin

    def add(self, op_type: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Append a node with one output and return the output's name."""
        return self.add_many(op_type, *inputs, outputs=(output,), **attributes)[0]

    def add_many(
        self, op_type: str, *inputs: str, outputs: Sequence[str], **attributes: Any
    ) -> tuple[str, ...]:
        """Append a node; an empty output name is replaced by a fresh one."""
        names = tuple(name or self.fresh(op_type) for name in outputs)
        given = {key: value for key, value in attributes.items() if value is not None}
        self.nodes.append(helper.make_node(op_type, inputs, names, name=f"{names[0]}:{op_type}", **given))
        return names

    def fresh(self, stem: str) -> str:
        """A tensor name that nothing in this graph has; `%` never occurs in a prepared model's names."""
        self._count += 1
        return f"{stem}%{self._scope}{self._count}"

    def body(self) -> "Graph":
        """An empty graph for the body of a Scan in this one; it refers to nothing outside."""
        self._count += 1
        return Graph(self.opset, f"{self._scope}{self._count}.")

    def constant(self, value: Array) -> str:
        """Name of a constant with this value; equal constants are stored once."""
        key = (value.dtype.str, value.shape, value.tobytes())
        name = self._shared.get(key)
        if name is None:
            name = self._shared[key] = self.fresh("constant")
            self.constants[name] = value
        return name

    def ints(self, *values: int) -> str:
        """A constant int64 vector (axes, shapes, pads)."""
        return self.constant(np.asarray(values, dtype=np.int64))

    def scalar(self, value: float) -> str:
        """A constant float32 scalar."""
        return self.constant(np.asarray(value, dtype=np.float32))

    def proto(
        self, name: str, inputs: Sequence[ValueInfoProto], outputs: Sequence[ValueInfoProto]
    ) -> onnx.GraphProto:
        """The nodes that `outputs` need; unused nodes and constants are left out."""
        nodes = needed(self.nodes, [value.name for value in outputs])
        used = {tensor for node in nodes for tensor in node.input}
        initializers = [numpy_helper.from_array(v, k) for k, v in self.constants.items() if k in used]
        return helper.make_graph(nodes, name, inputs, outputs, initializers)

    def model(
        self, name: str, inputs: Sequence[ValueInfoProto], outputs: Sequence[ValueInfoProto]
    ) -> onnx.ModelProto:
        """An ONNX model of what `proto` gives."""
        graph = self.proto(name, inputs, outputs)
        opsets = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(graph, opset_imports=opsets, producer_name="fedfleet")
        model.ir_version = helper.find_min_ir_version_for(opsets)
        return model


def needed(nodes: Sequence[NodeProto], outputs: Iterable[str]) -> list[NodeProto]:
    """The nodes, in order, on which the tensors `outputs` depend."""
    wanted = set(outputs)
    kept = []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(node.input)
    return kept[::-1]


def value_info(name: str, kind: int, shape: Sequence[int | str]) -> ValueInfoProto:
    """Type and shape of a graph input or output; DYNAMIC becomes the symbol `batch`."""
    return helper.make_tensor_value_info(name, kind, ["batch" if e == DYNAMIC else e for e in shape])


def shapes_of(graph: Graph, inputs: Mapping[str, Shape], outputs: Sequence[str]) -> dict[str, Shape]:
    """Shape of every tensor that `outputs` depend on.

    `inputs` gives the float inputs' shapes with DYNAMIC for the batch. Extents that differ between the two
    batch sizes come back as DYNAMIC. Raises ModelError when a shape cannot be inferred.
    """
    first, second = (_infer(graph, inputs, outputs, batch) for batch in _BATCHES)
    shapes: dict[str, Shape] = {}
    for name, shape in first.items():
        other = second.get(name, ())
        if len(other) != len(shape):
            raise ModelError(f"tensor {name!r} changes its rank with the batch size")
        shapes[name] = tuple(a if a == b else DYNAMIC for a, b in zip(shape, other, strict=True))
    return shapes


def _infer(graph: Graph, inputs: Mapping[str, Shape], outputs: Sequence[str], batch: int) -> dict[str, Shape]:
    ins = [value_info(n, FLOAT, [batch if e == DYNAMIC else e for e in s]) for n, s in inputs.items()]
    outs = [helper.make_empty_tensor_value_info(name) for name in outputs]
    model = graph.model("shapes", ins, outs)
    for node in model.graph.node:
        if node.op_type in _UNINFERRED:
            node.op_type = "Identity"
            del node.input[1:], node.attribute[:]
    try:
        model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise ModelError(f"shapes do not fit at a batch of {batch} samples: {error}") from error
    shapes: dict[str, Shape] = {n: tuple(a.shape) for n, a in graph.constants.items()}
    bodies = [a.g for node in model.graph.node for a in node.attribute if a.HasField("g")]
    for info in (i for g in (model.graph, *bodies) for i in (*g.input, *g.value_info, *g.output)):
        if info.type.tensor_type.HasField("shape"):
            dims = info.type.tensor_type.shape.dim
            if all(d.HasField("dim_value") for d in dims):
                shapes[info.name] = tuple(d.dim_value for d in dims)
                if min(shapes[info.name], default=0) < 0:  # onnx infers it without complaint
                    raise ModelError(f"tensor {info.name!r}: a window is larger than what it moves over")
    return shapes
