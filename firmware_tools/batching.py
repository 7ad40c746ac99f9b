"""Frees the batch axis of a model that was exported for one batch size, as exporters do unless told otherwise.

What they bake in are targets of Reshape and Expand, and initial states of zeros. They are rewritten to follow the
batch, and the result is not trusted but tried: two batches at once have to give the model's answers to each.
"""

from collections.abc import Sequence
from math import prod

import numpy as np
from onnx import NodeProto, TensorProto, helper

from edge_client.runtime import ort
from firmware_tools.autodiff.graph import DYNAMIC, Array, Graph, Shape, shapes_of, value_info
from firmware_tools.errors import ModelError
from firmware_tools.folding import fold_shapes

_STATES = {"RNN": (5,), "GRU": (5,), "LSTM": (5, 6)}  # inputs that start a recurrence; absent, they are zero
_TARGETS = ("Reshape", "Expand")  # operators whose second input is a shape that may hold the batch
_TOLERANCE = 1e-4  # of the largest answer; kernels sum in another order at another batch size


def free_batch(
    nodes: Sequence[NodeProto],
    constants: dict[str, Array],
    sample: Shape,
    batch: int,
    opset: int,
    *,
    output: str,
) -> list[NodeProto]:
    """The nodes from `x` to `output` at any batch size; new constants are added to `constants`.

    `batch` is the size that the model was exported for. Raises ModelError when it cannot be freed.
    """
    original, graph = Graph(opset), Graph(opset)
    original.nodes, original.constants = list(nodes), dict(constants)
    graph.constants = constants
    for node in fold_shapes(nodes, constants, sample, opset, (batch, batch, batch)):
        copy = NodeProto()
        copy.CopyFrom(node)
        for index in _STATES.get(node.op_type, ()):
            if index < len(node.input) and _is_zero(graph, node.input[index]):
                copy.input[index] = ""
        graph.nodes.append(copy)
        if node.op_type in _TARGETS and node.input[1] in constants:
            _free_target(graph, copy, sample, batch)
    if not _agree(original, graph, sample, batch, output):
        raise ModelError(
            f"the model is made for batches of {batch}, and other sizes give other answers or none; export it with "
            "a dynamic batch axis"
        )
    return graph.nodes


def _is_zero(graph: Graph, name: str) -> bool:
    """Whether a tensor is known to be zero: a constant, or one that was expanded."""
    maker = next((n for n in graph.nodes if name in n.output), None)
    if maker is not None and maker.op_type == "Expand":
        name = maker.input[0]
    return name in graph.constants and not graph.constants[name].any()


def _free_target(graph: Graph, node: NodeProto, sample: Shape, batch: int) -> None:
    """Let the target follow the batch.

    That is -1 for the axis of a Reshape that begins where the input's axis of the batch begins, as many values into a
    sample; and 1 for the batch of an Expand, which keeps what is there.
    """
    try:
        source = shapes_of(graph, {"x": (DYNAMIC, *sample)}, [node.input[0]]).get(node.input[0], ())
        extents = shapes_of(graph, {"x": (batch, *sample)}, [node.output[0]]).get(node.output[0], ())
    except ModelError:
        return  # an earlier node still holds the batch fixed; the trial will tell
    if DYNAMIC not in source:
        return
    axis = source.index(DYNAMIC)
    if node.op_type == "Expand":
        place, value = len(extents) - len(source) + axis, 1
    else:
        starts = [prod(extents[:i]) for i in range(len(extents))]
        if prod(source[:axis]) not in starts:
            return
        place, value = starts.index(prod(source[:axis])), -1
    node.input[1] = f"{node.output[0]}%free"
    graph.constants[node.input[1]] = np.array([*extents[:place], value, *extents[place + 1 :]])


def _agree(original: Graph, graph: Graph, sample: Shape, batch: int, output: str) -> bool:
    """Whether two batches at once give in `graph` what each gives in `original`."""
    rng = np.random.default_rng(0)
    halves = [rng.standard_normal((batch, *sample)).astype(np.float32) for _ in range(2)]
    want = [_answer(original, half, output) for half in halves]
    got = _answer(graph, np.concatenate(halves), output)
    if got is None or any(w is None for w in want):
        return False
    whole = np.concatenate([w for w in want if w is not None])
    return whole.shape == got.shape and np.allclose(got, whole, rtol=0, atol=_TOLERANCE * np.abs(whole).max())


def _answer(graph: Graph, x: Array, output: str) -> Array | None:
    """The tensor `output`; None when the graph does not run on this batch."""
    source = [value_info("x", TensorProto.FLOAT, [DYNAMIC, *x.shape[1:]])]
    model = graph.model("trial", source, [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)])
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        (answer,) = session.run([output], {"x": x})
    except Exception:  # noqa: BLE001 - the runtime's errors have no common base, and each means no
        return None
    return np.asarray(answer)
