"""Writes out loops: a Loop whose number of steps is fixed becomes its body, once a step.

Keras's recurrent layers but LSTM and JAX's `scan` come as Loop. What a step carries on unchanged, such as its weights,
keeps its name, so that all steps train one tensor.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from edge_client.runtime import ort
from firmware_tools.autodiff.graph import OPSET_MAX, Array, Graph, needed
from firmware_tools.errors import ModelError

NODES_MAX = (
    50_000  # of one loop, written out: a GRU over 1000 readings has 25,000; beyond, compiling takes minutes
)


def unroll_loops(model: onnx.ModelProto, opset: int) -> None:
    """Replace each Loop of the main graph, in place. Raises ModelError when its steps depend on the data."""
    graph = model.graph
    known = Graph(opset)
    known.constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    for node in graph.node:
        known.nodes += _Loop(node, known).written() if node.op_type == "Loop" else [node]
    if len(known.nodes) == len(graph.node):
        return
    given = {t.name for t in graph.initializer}
    graph.initializer.extend(
        numpy_helper.from_array(v, k) for k, v in known.constants.items() if k not in given
    )
    del graph.node[:]
    graph.node.extend(known.nodes)


class _Loop:
    """One Loop: `before` holds the nodes ahead of it and the constants, which it adds to."""

    def __init__(self, node: NodeProto, before: Graph) -> None:
        self.node = node
        self.before = before
        self.body: onnx.GraphProto = next(a.g for a in node.attribute if a.name == "body")
        self.name = node.name or next(iter(node.output))
        self.carried = len(node.input) - 2

    def written(self) -> list[NodeProto]:
        """The nodes in its place."""
        if len(self.body.input) != len(self.node.input) or len(self.body.output) < len(self.node.output) + 1:
            raise self._refused("its body has other inputs or outputs than it has")
        limit, proceed = self.node.input[:2]
        if not limit:
            raise self._refused("it has no largest number of steps")
        count = int(self._values([limit], [])[0])
        if count * len(self.body.node) > NODES_MAX:
            raise self._refused(f"{count} steps of {len(self.body.node)} nodes are more than {NODES_MAX}")
        constants = {f"{self.name}.{t.name}": numpy_helper.to_array(t) for t in self.body.initializer}
        constants |= {f"{self.name}.step{t}": np.asarray(t) for t in range(count)}
        self.before.constants |= constants
        nodes, states = self._steps(count)
        conditions = [name for name in [proceed, *(state[0] for state in states[:-1])] if name]
        runs = [bool(value) for value in self._values(conditions, nodes)]
        if not all(runs):
            count = runs.index(False)
            nodes, states = self._steps(count)
        if not count:
            raise self._refused("it takes no step")
        return nodes + self._results(states)

    def _steps(self, count: int) -> tuple[list[NodeProto], list[list[str]]]:
        """The nodes of all steps, and for each step the names of what the body returns."""
        given = [value.name for value in self.body.input]
        shared = {t.name: f"{self.name}.{t.name}" for t in self.body.initializer}
        nodes: list[NodeProto] = []
        states: list[list[str]] = []
        state = list(self.node.input[1:])
        for step in range(count):
            names = {**shared, **dict(zip(given, [f"{self.name}.step{step}", *state], strict=True)), "": ""}
            for inner in self.body.node:
                if inner.op_type == "Identity":
                    names[inner.output[0]] = names.get(inner.input[0], inner.input[0])
                    continue
                names |= {name: f"{self.name}.{step}.{name}" for name in inner.output if name}
                nodes.append(_renamed(inner, names))
            states.append([names.get(value.name, value.name) for value in self.body.output])
            state = states[-1][: self.carried + 1]
        return nodes, states

    def _results(self, states: Sequence[Sequence[str]]) -> list[NodeProto]:
        """The loop's outputs: what the last step carries, and what each step gives, stacked."""
        nodes = []
        for index, name in enumerate(self.node.output, start=1):
            if name and index <= self.carried:
                nodes.append(helper.make_node("Identity", [states[-1][index]], [name]))
            elif name:
                parts = [f"{name}.{step}" for step in range(len(states))]
                nodes += [
                    self._unsqueezed(state[index], part) for state, part in zip(states, parts, strict=True)
                ]
                nodes.append(helper.make_node("Concat", parts, [name], axis=0))
        return nodes

    def _unsqueezed(self, source: str, name: str) -> NodeProto:
        if self.before.opset < 13:
            return helper.make_node("Unsqueeze", [source], [name], axes=[0])
        self.before.constants[f"{self.name}.axis"] = np.zeros(1, np.int64)
        return helper.make_node("Unsqueeze", [source, f"{self.name}.axis"], [name])

    def _values(self, names: Sequence[str], more: Sequence[NodeProto]) -> list[Array]:
        """The values of tensors that depend on constants alone."""
        # What counts and compares is the same in newer opsets, which not every runtime reads.
        graph = Graph(min(self.before.opset, OPSET_MAX))
        graph.nodes, graph.constants = [*self.before.nodes, *more], self.before.constants
        wanted = list(dict.fromkeys(names))
        nodes = needed(graph.nodes, wanted)
        made = {name for node in nodes for name in node.output} | graph.constants.keys() | {""}
        if not made.issuperset([*wanted, *(name for node in nodes for name in node.input)]):
            raise self._refused("how many steps it takes depends on the data")
        # A constant is no output of a graph by itself.
        copies = {name: graph.add("Identity", name) for name in wanted}
        model = graph.model("steps", [], [helper.make_empty_tensor_value_info(n) for n in copies.values()])
        options = ort.SessionOptions()
        options.log_severity_level = 4
        try:
            session = ort.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            found = dict(zip(wanted, session.run(list(copies.values()), {}), strict=True)) if wanted else {}
        except Exception as error:  # the runtime's errors have no common base
            raise self._refused(f"how many steps it takes cannot be computed ({error})") from error
        return [np.asarray(found[name]) for name in names]

    def _refused(self, reason: str) -> ModelError:
        return ModelError(f"node {self.name!r} of type Loop cannot be written out: {reason}")


def _renamed(node: NodeProto, names: Mapping[str, str]) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.name = ""
    copy.input[:] = [names.get(name, name) for name in node.input]
    copy.output[:] = [names.get(name, name) for name in node.output]
    return copy
