"""The table from operator to gradient rule, and what a rule is given."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from onnx import NodeProto, helper

from firmware_tools.autodiff.graph import DYNAMIC, Array, Graph, Shape
from firmware_tools.errors import ModelError, NotDifferentiable

T = TypeVar("T")
Gradients = Sequence[str | None]  # one per input of the node; None where none is needed


@dataclass(frozen=True)
class Call:
    """One node to differentiate: append nodes to `graph` and return a gradient for each wanted input.

    `dys[i]` is the gradient of output i, of that output's shape, or empty where nothing reads the output.
    `wanted[i]` tells whether the gradient of input i leads to a trainable tensor; the others need not be built.
    """

    graph: Graph
    node: NodeProto
    dys: Sequence[str]
    wanted: Sequence[bool]
    shapes: dict[str, Shape]

    @property
    def dy(self) -> str:
        """Gradient of the first output."""
        return self.dys[0]

    @property
    def x(self) -> str:
        """Name of the first input."""
        return str(self.node.input[0])

    @property
    def y(self) -> str:
        """Name of the first output."""
        return str(self.node.output[0])

    def attribute(self, name: str, default: T) -> T:
        """Value of an attribute, or `default`."""
        for attribute in self.node.attribute:
            if attribute.name == name:
                value = helper.get_attribute_value(attribute)
                return value.decode() if isinstance(value, bytes) else value  # type: ignore[return-value]
        return default

    def shape(self, name: str) -> Shape:
        """Shape of a tensor; extents that follow the batch are DYNAMIC."""
        if name not in self.shapes:
            raise ModelError(f"the shape of tensor {name!r} (node {self.node.name!r}) cannot be inferred")
        return self.shapes[name]

    def spatial(self, name: str) -> Shape:
        """Static extents of a tensor's axes from the third on; refused when they are dynamic."""
        extents = self.shape(name)[2:]
        if DYNAMIC in extents:
            raise self.refused("its spatial extents must be static")
        return extents

    def input(self, index: int) -> str:
        """Name of input `index`, empty when it is absent."""
        return str(self.node.input[index]) if index < len(self.node.input) else ""

    def wants(self, index: int) -> bool:
        """Whether input `index` is there and needs a gradient."""
        return index < len(self.wanted) and self.wanted[index]

    def constant(self, index: int) -> Array | None:
        """Value of input `index`, None when it is absent or computed."""
        return self.graph.constants.get(self.input(index))

    def axis(self, default: int) -> int:
        """The attribute `axis`, counted from the front of the first input's axes."""
        return self.attribute("axis", default) % len(self.shape(self.x))

    def ints(self, name: str, index: int) -> tuple[int, ...] | None:
        """Integers that newer opsets give as constant input `index` and older ones as attribute `name`."""
        tensor = self.input(index)
        if not tensor:
            return self.attribute(name, None)
        if tensor not in self.graph.constants:
            raise self.refused(f"its {name} must be constant")
        return tuple(int(v) for v in self.graph.constants[tensor].ravel())

    def refused(self, reason: str) -> NotDifferentiable:
        """The error that says why this node has no gradient."""
        return NotDifferentiable(self.node.name or self.y, self.node.op_type, supported(), reason)


Rule = Callable[[Call], Gradients]
Expansion = Callable[[Call], None]
RULES: dict[str, Rule] = {}
Lowering = Callable[[Call], bool]
EXPANSIONS: dict[str, Expansion] = {}
LOWERINGS: dict[str, Lowering] = {}
SETTINGS: dict[str, frozenset[int]] = {}  # inputs that say how an operator works and are never trained
EVERY_OUTPUT: set[str] = set()  # operators whose rule takes the gradients of all outputs


def gradient(
    *op_types: str, settings: Sequence[int] = (), every_output: bool = False
) -> Callable[[Rule], Rule]:
    """Register a function as the gradient rule of operators of the default domain.

    `settings` are the indices of inputs that get no gradient because they are not parameters: statistics,
    scales, bounds. A rule with `every_output` reads `Call.dys`; the others are refused a node of which more
    than the first output is used.
    """

    def register(rule: Rule) -> Rule:
        for op_type in op_types:
            if op_type in RULES:
                raise ValueError(f"{op_type} already has a gradient rule")
            RULES[op_type] = rule
            SETTINGS[op_type] = frozenset(settings)
            if every_output:
                EVERY_OUTPUT.add(op_type)
        return rule

    return register


def expansion(*op_types: str, settings: Sequence[int] = ()) -> Callable[[Expansion], Expansion]:
    """Register a function that writes operators with gradient rules in the place of a node.

    `settings` are as of `gradient`. It appends nodes to `Call.graph` that compute the node's outputs under their own
    names.
    """

    def register(expand: Expansion) -> Expansion:
        EXPANSIONS.update(dict.fromkeys(op_types, expand))
        if settings:
            SETTINGS.update(dict.fromkeys(op_types, frozenset(settings)))
        return expand

    return register


def lowering(*op_types: str) -> Callable[[Lowering], Lowering]:
    """Register a function that writes a faster form of a node once its gradient has been taken.

    It appends nodes to `Call.graph` that compute the node's outputs under their own names, or returns False.
    """

    def register(lower: Lowering) -> Lowering:
        LOWERINGS.update(dict.fromkeys(op_types, lower))
        return lower

    return register


def supported() -> tuple[str, ...]:
    """The operators that have a gradient, by a rule or by expansion, sorted."""
    return tuple(sorted({*RULES, *EXPANSIONS}))
