"""The reverse walk: from the gradient of one tensor to the gradients of chosen others.

Griewank & Walther, Evaluating Derivatives (2008), §3.2. Only nodes on a path from a wanted tensor to the
output are visited, so a frozen layer costs neither time nor memory.
"""

from collections.abc import Sequence

from firmware_tools.autodiff.graph import Graph, Shape
from firmware_tools.autodiff.registry import RULES, Call
from firmware_tools.errors import NotDifferentiable


def differentiate(
    graph: Graph, shapes: dict[str, Shape], output: str, seed: str, wanted: Sequence[str]
) -> dict[str, str]:
    """Append the gradient nodes to `graph` and return the gradient's name for each reached tensor in `wanted`.

    `seed` is the gradient of the loss with respect to `output`, of its shape. A tensor that `output` does not
    depend on is absent from the result. Raises NotDifferentiable.
    """
    active = set(wanted)
    for node in graph.nodes:
        if active.intersection(node.input):
            active.update(node.output)
    gradients: dict[str, str] = {output: seed}
    for node in reversed(list(graph.nodes)):
        have = [gradients.get(name) for name in node.output]
        if not any(have) or not active.intersection(node.input):
            continue
        rule = RULES.get(node.op_type)
        if rule is None or node.domain:
            raise NotDifferentiable(node.name or node.output[0], node.op_type, RULES)
        call = Call(graph, node, have[0] or "", [name in active for name in node.input], shapes)
        if have[0] is None or any(have[1:]):
            raise call.refused("only its first output may be used")
        for name, wants, part in zip(node.input, call.wanted, rule(call), strict=False):
            if wants and part is not None:
                before = gradients.get(name)
                gradients[name] = part if before is None else graph.add("Add", before, part)
    return {name: gradients[name] for name in wanted if name in gradients}
