"""One step of RNN, GRU and LSTM in operators that have gradient rules.

Formulae, gate orders and activations are those of the ONNX operators RNN, GRU (z, r, h) and LSTM (i, o, f, c). The
inputs of all steps are projected by one product before the first step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto, helper

from firmware_tools.autodiff.graph import Graph
from firmware_tools.autodiff.registry import Call
from firmware_tools.errors import ModelError

# (inputs of step t, h, c) to (h, c) of the next step; c is empty where there is none.
Step = Callable[[int, str, str], tuple[str, str]]

USUAL = {"RNN": ("Tanh",), "GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}
# What an activation takes of `activation_alpha` and `activation_beta`, with the defaults of the ONNX operators.
# Affine and ScaledTanh are no longer operators; theirs are those of opset 1, which change nothing.
PARAMETERS: dict[str, dict[str, float]] = {
    "Affine": {"alpha": 1.0, "beta": 0.0},
    "Elu": {"alpha": 1.0},
    "HardSigmoid": {"alpha": 0.2, "beta": 0.5},
    "LeakyRelu": {"alpha": 0.01},
    "Relu": {},
    "ScaledTanh": {"alpha": 1.0, "beta": 1.0},
    "Sigmoid": {},
    "Softplus": {},
    "Softsign": {},
    "Tanh": {},
    "ThresholdedRelu": {"alpha": 1.0},
}
_SPELLED = {name.lower(): name for name in PARAMETERS}  # ONNX Runtime reads names in any case


@dataclass(frozen=True)
class Activation:
    """A function of one operand; `limit`, if not 0, first bounds that to [-limit, limit]."""

    name: str
    parameters: dict[str, Any]  # floats
    limit: float = 0.0

    def add(self, graph: Graph, x: str) -> str:
        """Append the function of `x` and return the name of its value."""
        if self.limit:
            x = graph.add("Clip", x, graph.scalar(-self.limit), graph.scalar(self.limit))
        if self.name == "Affine":
            scaled = graph.add("Mul", x, graph.scalar(self.parameters["alpha"]))
            return graph.add("Add", scaled, graph.scalar(self.parameters["beta"]))
        if self.name == "ScaledTanh":
            inner = graph.add("Tanh", graph.add("Mul", x, graph.scalar(self.parameters["beta"])))
            return graph.add("Mul", inner, graph.scalar(self.parameters["alpha"]))
        return graph.add(self.name, x, **self.parameters)


def activations(node: NodeProto) -> tuple[Activation, ...]:
    """Those of a recurrent layer in the order of its attribute, each with its parameters.

    The values of `activation_alpha` and `activation_beta` go in this order to the functions that take one. Raises
    ModelError when there are too few or many names, or one is unknown.
    """
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    count = 2 if given.get("direction") == b"bidirectional" else 1
    default = USUAL[node.op_type] * count
    names = [name.decode() for name in given.get("activations", ())] or default
    where = f"node {node.name!r} of type {node.op_type}"
    unknown = next((name for name in names if name.lower() not in _SPELLED), None)
    if unknown is not None:
        raise ModelError(f"{where} has the activation {unknown!r}; known: {', '.join(PARAMETERS)}")
    if len(names) != len(default):
        raise ModelError(f"{where} has {len(names)} activations instead of {len(default)}")
    limit = float(given.get("clip", 0.0))
    if limit < 0.0:
        raise ModelError(f"{where} has the clip {limit}; it bounds magnitudes and cannot be negative")
    values = {k: iter(given.get(f"activation_{k}", ())) for k in ("alpha", "beta")}
    found = []
    for name in names:
        defaults = PARAMETERS[_SPELLED[name.lower()]]
        own = {key: float(next(values[key], default)) for key, default in defaults.items()}
        found.append(Activation(_SPELLED[name.lower()], own, limit))
    return tuple(found)


def cell(call: Call, length: int, direction: int) -> Step:
    """The step of a layer in one direction; the products with the inputs of all steps are appended first."""
    return {"RNN": _rnn, "GRU": _gru, "LSTM": _lstm}[call.node.op_type](call, length, direction)


def of_direction(call: Call, index: int, direction: int) -> str:
    """Input `index` without its axis of directions."""
    g, tensor = call.graph, call.input(index)
    if call.shape(call.input(2))[0] == 1:
        return g.add("Squeeze", tensor, g.ints(0))
    return g.add("Gather", tensor, g.constant(np.asarray(direction, dtype=np.int64)), axis=0)


def _functions(call: Call, direction: int) -> Sequence[Callable[[str], str]]:
    every, count = activations(call.node), len(USUAL[call.node.op_type])
    own = every[direction * count : (direction + 1) * count]
    return [lambda x, f=f: f.add(call.graph, x) for f in own]  # type: ignore[misc]


def _rnn(call: Call, length: int, direction: int) -> Step:
    g = call.graph
    (function,) = _functions(call, direction)
    r = of_direction(call, 2, direction)
    inputs = _in_time(g, _projected(call, direction, "both"), length)

    def step(t: int, h: str, _: str) -> tuple[str, str]:
        return function(g.add("Gemm", h, r, inputs[t], transB=1)), ""

    return step


def _lstm(call: Call, length: int, direction: int) -> Step:
    g, size = call.graph, call.shape(call.input(2))[2]
    gate, candidate, output = _functions(call, direction)
    r = of_direction(call, 2, direction)
    inputs = _in_time(g, _projected(call, direction, "both"), length)
    coupled = call.attribute("input_forget", 0)
    peepholes: Sequence[str] = ()
    if call.input(7):
        own = of_direction(call, 7, direction)
        peepholes = g.add_many("Split", own, outputs=("", "", ""), axis=0, num_outputs=3)
    together = not (coupled or peepholes)  # one activation of all gates

    def gated(x: str, index: int, c: str) -> str:
        return gate(g.add("Add", x, g.add("Mul", peepholes[index], c)) if peepholes else x)

    def step(t: int, h: str, c: str) -> tuple[str, str]:
        mixed = g.add("Gemm", h, r, inputs[t], transB=1)
        gates, fresh = g.add_many("Split", mixed, g.ints(3 * size, size), outputs=("", ""), axis=1)
        gates = gate(gates) if together else gates
        i, o, f = g.add_many("Split", gates, outputs=("", "", ""), axis=1, num_outputs=3)
        if not together:
            i = gated(i, 0, c)
            f = g.add("Sub", g.scalar(1.0), i) if coupled else gated(f, 2, c)
        c = g.add("Add", g.add("Mul", f, c), g.add("Mul", i, candidate(fresh)))
        o = o if together else gated(o, 1, c)
        return g.add("Mul", o, output(c)), c

    return step


def _gru(call: Call, length: int, direction: int) -> Step:
    g, size = call.graph, call.shape(call.input(2))[2]
    gate, candidate = _functions(call, direction)
    parts = g.ints(2 * size, size)
    r = of_direction(call, 2, direction)
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
            gates = gate(g.add("Add", gate_inputs[t], left))
            z, reset = g.add_many("Split", gates, outputs=("", ""), axis=1, num_outputs=2)
            mixed = g.add("Add", fresh_inputs[t], g.add("Mul", reset, right))
        else:
            gates = gate(g.add("Gemm", h, r_gates, gate_inputs[t], transB=1))
            z, reset = g.add_many("Split", gates, outputs=("", ""), axis=1, num_outputs=2)
            mixed = g.add("Gemm", g.add("Mul", reset, h), r_fresh, fresh_inputs[t], transB=1)
        fresh = candidate(mixed)
        return g.add("Add", fresh, g.add("Mul", z, g.add("Sub", h, fresh))), ""

    return step


def _bias(call: Call, direction: int, half: str) -> str:
    """The input bias (`first`), the recurrent one (`second`) or their sum (`both`); empty when there is none."""
    if not call.input(3):
        return ""
    g = call.graph
    both = of_direction(call, 3, direction)
    first, second = g.add_many("Split", both, outputs=("", ""), axis=0, num_outputs=2)
    return {"first": first, "second": second}.get(half) or g.add("Add", first, second)


def _projected(call: Call, direction: int, half: str) -> str:
    """The inputs of all steps times W' plus that half of the bias: [length * batch, gates * size]."""
    g = call.graph
    rows = g.add("Reshape", call.x, g.ints(-1, call.shape(call.input(1))[2]))
    bias = _bias(call, direction, half)
    weight = of_direction(call, 1, direction)
    return g.add("Gemm", rows, weight, *([bias] if bias else []), transB=1)


def _in_time(graph: Graph, rows: str, length: int) -> tuple[str, ...]:
    """[length * batch, n] as one [batch, n] a step."""
    if length == 1:
        return (rows,)
    return graph.add_many("Split", rows, outputs=[""] * length, axis=0, num_outputs=length)
