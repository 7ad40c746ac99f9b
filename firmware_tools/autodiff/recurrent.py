"""Recurrent layers, unrolled over a static sequence length into operators that have gradient rules.

Only the training graph is unrolled; evaluation and inference keep ONNX Runtime's fused kernel. Where that differs
from the specification of the ONNX operators, `kernel_form` writes the layer so that it does not, and what then still
`departs` is unrolled in every graph.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from onnx import NodeProto, helper

from firmware_tools.autodiff.cells import USUAL, activations, cell, of_direction
from firmware_tools.autodiff.graph import DYNAMIC
from firmware_tools.autodiff.registry import Call, expansion

RECURRENT = tuple(USUAL)
LENGTHS, STATES = 4, (5, 6)  # inputs: sequence_lens; initial_h, initial_c


@expansion(*RECURRENT, settings=(LENGTHS,))
def unroll(call: Call) -> None:
    """Unrolled over its static length, with every attribute and input."""
    shapes = dict(call.shapes)
    for node in kernel_form(call.node):
        if node.op_type in RECURRENT:
            _unroll(replace(call, node=node, shapes=shapes))
            continue
        call.graph.nodes.append(node)
        if node.input[0] in shapes:
            (perm,) = (a.ints for a in node.attribute)
            shapes[node.output[0]] = tuple(shapes[node.input[0]][i] for i in perm)


def kernel_form(node: NodeProto) -> list[NodeProto]:
    """A recurrent layer as ONNX Runtime computes it: layout 0 between Transposes, its activations' parameters given.

    The runtime has no kernel for layout 1, and takes 0 for parameters of Affine, ScaledTanh and ThresholdedRelu that
    are left to their defaults. A clip of 0 means none. Raises ModelError for activations that there are not.
    """
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    changed = {"layout": None, "clip": given.get("clip") or None}
    functions = activations(node)
    for key in ("alpha", "beta"):
        values = [f.parameters[key] for f in functions if key in f.parameters]
        if values and node.op_type == "RNN":
            # Up to 1.22 its kernel takes them by place, not in the order of those that need one.
            values = [f.parameters.get(key, values[0]) for f in functions]
        changed[f"activation_{key}"] = values or None
    copy = NodeProto()
    copy.CopyFrom(node)
    del copy.attribute[:]
    kept = {k: v for k, v in (given | changed).items() if v is not None}
    copy.attribute.extend(helper.make_attribute(k, v) for k, v in kept.items())
    return _time_first(copy) if given.get("layout") else [copy]


def departs(node: NodeProto) -> bool:
    """Whether ONNX Runtime's kernel computes something else than the specification says.

    Its LSTM applies `clip` to the input of f and g, but not of h. Of a sequence without a step, RNN of 1.22 crashes,
    and versions disagree whether the last state is the initial one.
    """
    if node.op_type not in RECURRENT:
        return False
    present = {i for i, name in enumerate(node.input) if name}
    if LENGTHS in present and (node.op_type == "RNN" or not present.isdisjoint(STATES)):
        return True
    return node.op_type == "LSTM" and any(a.name == "clip" and a.f for a in node.attribute)


def _time_first(node: NodeProto) -> list[NodeProto]:
    before, after = [], []
    for index in (0, *STATES):
        name = node.input[index] if index < len(node.input) else ""
        if name:
            node.input[index] = f"{node.name}%time_first{index}"
            before.append(helper.make_node("Transpose", [name], [node.input[index]], perm=[1, 0, 2]))
    for index, name in enumerate(node.output):
        if name:
            node.output[index] = f"{name}%time_first"
            perm = [1, 0, 2] if index else [2, 0, 1, 3]
            after.append(helper.make_node("Transpose", [node.output[index]], [name], perm=perm))
    return [*before, node, *after]


def _unroll(call: Call) -> None:
    length = call.shape(call.x)[0]
    if length == DYNAMIC:
        raise call.refused("its sequence length must be static")
    count = call.shape(call.input(2))[0]
    lasting = _Lasting(call, length)
    hidden, last_h, last_c = [], [], []
    for direction in range(count):
        step = cell(call, length, direction)
        h = _initial(call, STATES[0], direction)
        c = _initial(call, STATES[1], direction) if call.node.op_type == "LSTM" else ""
        backwards = direction == 1 or call.attribute("direction", "forward") == "reverse"
        states = []
        # Backwards, each sequence is reversed within its length: what comes before its last step changes no state.
        for t in reversed(range(length)) if backwards else range(length):
            new_h, new_c = step(t, h, c)
            states.append(lasting.value(t, new_h))
            h, c = lasting.state(t, new_h, h), lasting.state(t, new_c, c)
        hidden.append(states[::-1] if backwards else states)
        last_h.append(lasting.last(h))
        last_c.append(lasting.last(c))
    _finish(call, hidden, (last_h, last_c))


class _Lasting:
    """Which sequences of the batch are not over at each step; all, without sequence_lens.

    States stay as they are beyond a sequence's end, and outputs are zero there. The last states of one without a step
    are zero as well, as newer versions of ONNX Runtime have it: the specification does not tell.
    """

    def __init__(self, call: Call, length: int) -> None:
        self._graph = g = call.graph
        self._masks: list[str] = []
        if call.input(LENGTHS):
            ends = g.add("Unsqueeze", call.input(LENGTHS), g.ints(1))
            steps = (g.constant(np.asarray(t, dtype=np.int32)) for t in range(length))
            self._masks = [g.add("Less", t, ends) for t in steps]

    def value(self, t: int, new: str) -> str:
        return self._graph.add("Where", self._masks[t], new, self._graph.scalar(0.0)) if self._masks else new

    def state(self, t: int, new: str, old: str) -> str:
        return self._graph.add("Where", self._masks[t], new, old) if self._masks and new else new

    def last(self, state: str) -> str:
        return self.value(0, state) if state else ""


def _initial(call: Call, index: int, direction: int) -> str:
    """The state before the first step, [batch, size]; zeros where none is given."""
    if call.input(index):
        return of_direction(call, index, direction)
    g, size = call.graph, call.shape(call.input(2))[2]
    batch = g.add("Shape", call.x, start=1, end=2)
    return g.add("ConstantOfShape", g.add("Concat", batch, g.ints(size), axis=0))


def _finish(call: Call, hidden: Sequence[list[str]], last: tuple[list[str], list[str]]) -> None:
    """Write the node's outputs: all hidden states [length, directions, batch, size], and the last states."""
    g, size = call.graph, call.shape(call.input(2))[2]
    names = [*call.node.output, "", ""][:3]
    if names[0]:
        rows = [g.add("Concat", *states, axis=0) for states in hidden]
        blocks = [g.add("Reshape", r, g.ints(len(hidden[0]), 1, -1, size)) for r in rows]
        g.add("Concat", *blocks, axis=1, output=names[0])
    for name, states in zip(names[1:], last, strict=True):
        if name:
            g.add("Concat", *(g.add("Unsqueeze", s, g.ints(0)) for s in states), axis=0, output=name)
