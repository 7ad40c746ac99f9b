"""The reverse walk: from the gradient of one tensor to the gradients of chosen others.

Griewank & Walther, Evaluating Derivatives (2008), §3.2. Only nodes on a path from a wanted tensor to the
output are visited, so a frozen layer costs neither time nor memory.
"""

from collections.abc import Iterable, Sequence

from onnx import NodeProto, TensorProto, defs, helper

from firmware_tools.autodiff.graph import Graph, Shape, needed, shapes_of
from firmware_tools.autodiff.recompute import Recomputed
from firmware_tools.autodiff.registry import (
    EVERY_OUTPUT,
    EXPANSIONS,
    LOWERINGS,
    RULES,
    SETTINGS,
    Call,
    supported,
)
from firmware_tools.errors import NotDifferentiable

_FLOATS = {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16}


def differentiate(
    graph: Graph, shapes: dict[str, Shape], output: str, seed: str, wanted: Sequence[str]
) -> dict[str, str]:
    """Append the gradient nodes to `graph` and return the gradient's name for each reached tensor in `wanted`.

    `seed` is the gradient of the loss with respect to `output`, of its shape. A tensor that `output` does not
    depend on is absent from the result. Raises NotDifferentiable.
    """
    shapes = dict(expand(graph, shapes, output, wanted))
    active = reached(graph, wanted)
    parts: dict[str, list[str]] = {output: [seed]}
    recomputed = Recomputed(graph, shapes)
    for node in reversed(list(graph.nodes)):
        have = [_total(graph, parts.get(name, [])) for name in node.output]
        wants = [
            name in active and i not in SETTINGS.get(node.op_type, ()) for i, name in enumerate(node.input)
        ]
        if not any(have) or not any(wants):
            continue
        rule = RULES.get(node.op_type)
        if rule is None or node.domain:
            raise NotDifferentiable(node.name or node.output[0], node.op_type, supported())
        call = Call(graph, recomputed.read_by(node), have, wants, shapes)
        if node.op_type not in EVERY_OUTPUT and (not have[0] or any(have[1:])):
            raise call.refused("only its first output may be used")
        for name, wanting, part in zip(node.input, wants, rule(call), strict=False):
            if wanting and part is not None:
                parts.setdefault(name, []).append(part)
    return {name: _total(graph, parts[name]) for name in wanted if name in parts}


def lower(graph: Graph, shapes: dict[str, Shape]) -> None:
    """Replace nodes that have a faster form, once their gradients have been taken; `shapes` are the model's."""
    nodes, graph.nodes = graph.nodes, []
    for node in nodes:
        lower = LOWERINGS.get(node.op_type)
        known = shapes.keys() >= {*node.input[:2], *node.output}
        if not (lower and known and lower(Call(graph, node, (), (), shapes))):
            graph.nodes.append(node)


def expand(graph: Graph, shapes: dict[str, Shape], output: str, wanted: Sequence[str]) -> dict[str, Shape]:
    """Replace the nodes on a path from `wanted` that have an expansion; returns the shapes of the new graph."""
    active = reached(graph, wanted)
    nodes, graph.nodes = graph.nodes, []
    found = False
    for node in nodes:
        if node.op_type in EXPANSIONS and active.intersection(node.input):
            EXPANSIONS[node.op_type](Call(graph, node, (), (), shapes))
            found = True
        else:
            graph.nodes.append(node)
    if not found:
        return shapes
    used = needed(graph.nodes, [output])
    made = {name for node in used for name in node.output}
    free = {name for node in used for name in node.input if name} - made - graph.constants.keys()
    return shapes | shapes_of(graph, {name: shapes[name] for name in sorted(free)}, [output])


def _total(graph: Graph, parts: list[str]) -> str:
    """Sum of a tensor's partial gradients, empty without any; `parts` becomes the one name of the sum.

    A weight or bias that is used at every step of a sequence gets one product or sum over all steps instead of a
    sum of small ones.
    """
    if len(parts) > 2:
        sought = set(parts)
        makers = {node.output[0]: node for node in graph.nodes if node.output[0] in sought}
        # Forwards in time, as the gradients of the inputs of all steps are joined too: the runtime does it once.
        found = [makers[part] for part in reversed(parts) if part in makers]
        if len(found) == len(parts) and all(_is_plain_product(node) for node in found):
            operands = (graph.add("Concat", *(n.input[i] for n in found), axis=0) for i in (0, 1))
            parts[:] = [graph.add("Gemm", *operands, transA=1)]
        elif len(found) == len(parts) and all(_is_row_sum(graph, node) for node in found):
            rows = graph.add("Concat", *(n.input[0] for n in found), axis=0)
            parts[:] = [graph.add("ReduceSum", rows, graph.ints(0), keepdims=0)]
    if len(parts) > 1:
        parts[:] = [graph.add("Sum", *parts)]
    return parts[0] if parts else ""


def _is_plain_product(node: NodeProto) -> bool:
    """Whether a node is A' B and nothing more."""
    if node.op_type != "Gemm" or len(node.input) != 2:
        return False
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return (given.get("alpha", 1.0), given.get("transA", 0), given.get("transB", 0)) == (1.0, 1, 0)


def _is_row_sum(graph: Graph, node: NodeProto) -> bool:
    """Whether a node sums over the first axis and drops it."""
    if node.op_type != "ReduceSum" or len(node.input) != 2:
        return False
    dropped = any(a.name == "keepdims" and helper.get_attribute_value(a) == 0 for a in node.attribute)
    axes = graph.constants.get(node.input[1])
    return dropped and axes is not None and axes.tolist() == [0]


def reached(graph: Graph, wanted: Iterable[str]) -> set[str]:
    """The tensors through which a change of a `wanted` tensor shows; integers, booleans and held ones carry none."""
    active = set(wanted)
    for node in graph.nodes:
        if not _steps(node) and any(
            name in active and i not in SETTINGS.get(node.op_type, ()) for i, name in enumerate(node.input)
        ):
            active.update(name for name in node.output if name not in graph.held)
    return active


def _steps(node: NodeProto) -> bool:
    """Whether a node's first output is a step function by its type: a comparison, a shape, a cast to int."""
    if node.op_type == "Cast":
        (kind,) = (helper.get_attribute_value(a) for a in node.attribute if a.name == "to")
        return int(kind) not in _FLOATS
    if node.op_type in RULES or node.domain or not defs.has(node.op_type):
        return False
    schema = defs.get_schema(node.op_type)
    result = schema.outputs[0].type_str
    allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}.get(result, [result])
    return "tensor(float)" not in allowed
