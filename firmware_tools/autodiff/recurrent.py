"""Recurrent layers, unrolled over a static sequence length into operators that have gradient rules.

Formulae and gate orders are those of the ONNX operators RNN, GRU (z, r, h) and LSTM (i, o, f, c). The inputs of
all steps are projected by one product before the loop. Only the training graph is unrolled; evaluation and
inference keep the fused kernel.
"""

from collections.abc import Callable, Sequence

import numpy as np

from firmware_tools.autodiff.graph import DYNAMIC, Graph
from firmware_tools.autodiff.registry import Call, expansion

# (inputs of step t, h, c) to (h, c) of the next step; c is empty where there is none.
Step = Callable[[int, str, str], tuple[str, str]]

ACTIVATIONS = {"RNN": ("Tanh",), "GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}
KNOWN = ("Relu", "Sigmoid", "Softplus", "Softsign", "Tanh")


@expansion("GRU", "LSTM", "RNN")
def unroll(call: Call) -> None:
    """Unrolled in the training graph, forward, reverse or both; static length, no peepholes, clip or lengths."""
    _refuse_rare(call)
    length = call.shape(call.x)[0]
    if length == DYNAMIC:
        raise call.refused("its sequence length must be static")
    count = call.shape(call.input(2))[0]
    hidden, last_h, last_c = [], [], []
    for direction in range(count):
        step = {"RNN": _rnn, "GRU": _gru, "LSTM": _lstm}[call.node.op_type](call, length, direction)
        h = _initial(call, 5, direction)
        c = _initial(call, 6, direction) if call.node.op_type == "LSTM" else ""
        backwards = direction == 1 or call.attribute("direction", "forward") == "reverse"
        states = []
        for t in reversed(range(length)) if backwards else range(length):
            h, c = step(t, h, c)
            states.append(h)
        hidden.append(states[::-1] if backwards else states)
        last_h.append(h)
        last_c.append(c)
    _finish(call, hidden, (last_h, last_c))


def _refuse_rare(call: Call) -> None:
    if call.attribute("layout", 0):
        raise call.refused("ONNX Runtime has no kernel for layout 1")
    if call.input(4):
        raise call.refused("sequence_lens must be absent")
    if call.input(7):
        raise call.refused("peepholes are not supported")
    if call.attribute("clip", 0.0) or call.attribute("input_forget", 0):
        raise call.refused("clip and input_forget are not supported")
    scaled = call.attribute("activation_alpha", None) or call.attribute("activation_beta", None)
    if scaled or not set(_functions(call, 0) + _functions(call, -1)) <= set(KNOWN):
        raise call.refused(f"its activations must be of {', '.join(KNOWN)}, without parameters")


def _functions(call: Call, direction: int) -> tuple[str, ...]:
    default = ACTIVATIONS[call.node.op_type]
    given: Sequence[bytes] = call.attribute("activations", ())
    names = tuple(name.decode() for name in given)
    count = len(default)
    return (names[-count:] if direction else names[:count]) if names else default


def _rnn(call: Call, length: int, direction: int) -> Step:
    g = call.graph
    (function,) = _functions(call, direction)
    r = _of_direction(call, 2, direction)
    inputs = _in_time(g, _projected(call, direction, "both"), length)

    def step(t: int, h: str, _: str) -> tuple[str, str]:
        return g.add(function, g.add("Gemm", h, r, inputs[t], transB=1)), ""

    return step


def _lstm(call: Call, length: int, direction: int) -> Step:
    g, size = call.graph, call.shape(call.input(2))[2]
    gate, candidate, output = _functions(call, direction)
    r = _of_direction(call, 2, direction)
    inputs = _in_time(g, _projected(call, direction, "both"), length)

    def step(t: int, h: str, c: str) -> tuple[str, str]:
        mixed = g.add("Gemm", h, r, inputs[t], transB=1)
        gates, fresh = g.add_many("Split", mixed, g.ints(3 * size, size), outputs=("", ""), axis=1)
        i, o, f = g.add_many("Split", g.add(gate, gates), outputs=("", "", ""), axis=1, num_outputs=3)
        c = g.add("Add", g.add("Mul", f, c), g.add("Mul", i, g.add(candidate, fresh)))
        return g.add("Mul", o, g.add(output, c)), c

    return step


def _gru(call: Call, length: int, direction: int) -> Step:
    g, size = call.graph, call.shape(call.input(2))[2]
    gate, candidate = _functions(call, direction)
    parts = g.ints(2 * size, size)
    r = _of_direction(call, 2, direction)
    linear_first = call.attribute("linear_before_reset", 0)
    projected = _projected(call, direction, "first" if linear_first else "both")
    outer, inner = g.add_many("Split", projected, parts, outputs=("", ""), axis=1)
    gate_inputs, fresh_inputs = _in_time(g, outer, length), _in_time(g, inner, length)
    r_gates, r_fresh = g.add_many("Split", r, parts, outputs=("", ""), axis=0)
    bias = _bias(call, direction, "second") if linear_first else ""

    def step(t: int, h: str, _: str) -> tuple[str, str]:
        if linear_first:
            product = g.add("Gemm", h, r, *([bias] if bias else []), transB=1)
            left, right = g.add_many("Split", product, parts, outputs=("", ""), axis=1)
            gates = g.add(gate, g.add("Add", gate_inputs[t], left))
            z, reset = g.add_many("Split", gates, outputs=("", ""), axis=1, num_outputs=2)
            mixed = g.add("Add", fresh_inputs[t], g.add("Mul", reset, right))
        else:
            gates = g.add(gate, g.add("Gemm", h, r_gates, gate_inputs[t], transB=1))
            z, reset = g.add_many("Split", gates, outputs=("", ""), axis=1, num_outputs=2)
            mixed = g.add("Gemm", g.add("Mul", reset, h), r_fresh, fresh_inputs[t], transB=1)
        fresh = g.add(candidate, mixed)
        return g.add("Add", fresh, g.add("Mul", z, g.add("Sub", h, fresh))), ""

    return step


def _of_direction(call: Call, index: int, direction: int) -> str:
    """Input `index` without its axis of directions."""
    g, tensor = call.graph, call.input(index)
    if call.shape(call.input(2))[0] == 1:
        return g.add("Squeeze", tensor, g.ints(0))
    return g.add("Gather", tensor, g.constant(np.asarray(direction, dtype=np.int64)), axis=0)


def _bias(call: Call, direction: int, half: str) -> str:
    """The input bias (`first`), the recurrent one (`second`) or their sum (`both`); empty when there is none."""
    if not call.input(3):
        return ""
    g = call.graph
    both = _of_direction(call, 3, direction)
    first, second = g.add_many("Split", both, outputs=("", ""), axis=0, num_outputs=2)
    return {"first": first, "second": second}.get(half) or g.add("Add", first, second)


def _projected(call: Call, direction: int, half: str) -> str:
    """The inputs of all steps times W' plus that half of the bias: [length * batch, gates * size]."""
    g = call.graph
    rows = g.add("Reshape", call.x, g.ints(-1, call.shape(call.input(1))[2]))
    bias = _bias(call, direction, half)
    weight = _of_direction(call, 1, direction)
    return g.add("Gemm", rows, weight, *([bias] if bias else []), transB=1)


def _in_time(graph: Graph, rows: str, length: int) -> tuple[str, ...]:
    """[length * batch, n] as one [batch, n] a step."""
    if length == 1:
        return (rows,)
    return graph.add_many("Split", rows, outputs=[""] * length, axis=0, num_outputs=length)


def _initial(call: Call, index: int, direction: int) -> str:
    """The state before the first step, [batch, size]; zeros where none is given."""
    if call.input(index):
        return _of_direction(call, index, direction)
    g, size = call.graph, call.shape(call.input(2))[2]
    batch = g.add("Shape", call.x, start=1, end=2)
    return g.add("ConstantOfShape", g.add("Concat", batch, g.ints(size), axis=0))


def _finish(call: Call, hidden: list[list[str]], last: tuple[list[str], list[str]]) -> None:
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
