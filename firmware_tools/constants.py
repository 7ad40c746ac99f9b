"""Folds what depends on constants alone, with the very kernels that would compute it on a device."""

from collections.abc import Collection, Sequence

import numpy as np
from onnx import NodeProto, helper

from edge_client.runtime import ort
from firmware_tools.autodiff.graph import Array, Graph
from firmware_tools.errors import ModelError


def fold_constants(
    nodes: Sequence[NodeProto], constants: dict[str, Array], opset: int, *, keep: Collection[str] = ()
) -> list[NodeProto]:
    """The nodes that depend on inputs; results of the others are added to `constants`.

    `nodes` are in topological order. Operators named in `keep` stay, and what reads them. Raises ModelError
    when the runtime cannot compute a constant.
    """
    known = constants.keys() | {""}
    folded: list[NodeProto] = []
    rest: list[NodeProto] = []
    for node in nodes:
        if node.op_type not in keep and known >= set(node.input):
            folded.append(node)
            known |= set(node.output)
        else:
            rest.append(node)
    made = [name for node in folded for name in node.output if name]
    read = {name for node in rest for name in node.input}
    wanted = [name for name in made if name in read]
    if wanted:
        constants |= dict(zip(wanted, _computed(folded, constants, wanted, opset), strict=True))
    return rest


def _computed(
    nodes: Sequence[NodeProto], constants: dict[str, Array], wanted: Sequence[str], opset: int
) -> list[Array]:
    graph = Graph(opset)
    graph.nodes, graph.constants = list(nodes), dict(constants)
    model = graph.model("constants", [], [helper.make_empty_tensor_value_info(name) for name in wanted])
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return [np.asarray(value) for value in session.run(wanted, {})]
    except Exception as error:  # the runtime's errors have no common base
        raise ModelError(f"a constant cannot be computed: {error}") from error
