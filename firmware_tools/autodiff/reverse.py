"""The reverse walk: from the gradient of one tensor to the gradients of chosen others.

Griewank & Walther, Evaluating Derivatives (2008), §3.2. Only nodes on a path from a wanted tensor to the
output are visited, so a frozen layer costs neither time nor memory.
"""

from collections.abc import Iterable, Sequence

from onnx import NodeProto, TensorProto, defs, helper

from firmware_tools.autodiff.graph import Graph, Shape
from firmware_tools.autodiff.registry import EVERY_OUTPUT, RULES, SETTINGS, Call
from firmware_tools.errors import NotDifferentiable

_FLOATS = {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16}


def differentiate(
    graph: Graph, shapes: dict[str, Shape], output: str, seed: str, wanted: Sequence[str]
) -> dict[str, str]:
    """Append the gradient nodes to `graph` and return the gradient's name for each reached tensor in `wanted`.

    `seed` is the gradient of the loss with respect to `output`, of its shape. A tensor that `output` does not
    depend on is absent from the result. Raises NotDifferentiable.
    """
    active = reached(graph, wanted)
    gradients: dict[str, str] = {output: seed}
    for node in reversed(list(graph.nodes)):
        have = [gradients.get(name, "") for name in node.output]
        wants = [
            name in active and i not in SETTINGS.get(node.op_type, ()) for i, name in enumerate(node.input)
        ]
        if not any(have) or not any(wants):
            continue
        rule = RULES.get(node.op_type)
        if rule is None or node.domain:
            raise NotDifferentiable(node.name or node.output[0], node.op_type, RULES)
        call = Call(graph, node, have, wants, shapes)
        if node.op_type not in EVERY_OUTPUT and (not have[0] or any(have[1:])):
            raise call.refused("only its first output may be used")
        for name, wanting, part in zip(node.input, wants, rule(call), strict=False):
            if wanting and part is not None:
                before = gradients.get(name)
                gradients[name] = part if before is None else graph.add("Add", before, part)
    return {name: gradients[name] for name in wanted if name in gradients}


def reached(graph: Graph, wanted: Iterable[str]) -> set[str]:
    """The tensors through which a change of a `wanted` tensor shows; integers and booleans carry none."""
    active = set(wanted)
    for node in graph.nodes:
        if not _steps(node) and any(
            name in active and i not in SETTINGS.get(node.op_type, ()) for i, name in enumerate(node.input)
        ):
            active.update(node.output)
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
