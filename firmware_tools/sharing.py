"""Undoes the merging of equal tensors, by which exporters would let several layers train one tensor.

Fresh networks are full of them: scales of one, biases and running means of zero. Tensors of various values that are
used at several places are shared by the network's own design, and stay so. Of a tensor whose values are all equal the
design shows in its surroundings: a layer that is applied again, as at each step of a recurrence, comes after the same
weights again.
"""

from collections.abc import Sequence

import numpy as np
from onnx import NodeProto

from firmware_tools.autodiff.graph import Array


def separate(
    nodes: Sequence[NodeProto], constants: dict[str, Array], parameters: frozenset[str], output: str
) -> tuple[list[NodeProto], frozenset[str], tuple[str, ...]]:
    """Give a parameter whose values are all equal a copy for each layer that uses it.

    Returns the nodes, without an Identity of a parameter unless it is the model's `output`; the parameters with the
    copies, which are added to `constants`; and a note if there are any.
    """
    kept, given = _without_identities(nodes, constants, parameters, output)
    taken = {*constants, *(name for node in kept for name in node.output)}
    weights = {name for name in parameters if not _is_uniform(constants[name])}
    before: dict[
        str, frozenset[str]
    ] = {}  # of each tensor, the weights that were applied last on the ways to it
    owners: dict[tuple[str, str, int, frozenset[str]], str] = {}
    copies = set(given)
    for node in kept:
        applied = weights.intersection(node.input)
        layer = frozenset(applied or set().union(*(before.get(name, ()) for name in node.input)))
        before |= dict.fromkeys(node.output, layer)
        for index, name in enumerate(node.input):
            if name not in parameters | given or name in weights:
                continue
            use = (name, node.op_type, index, layer)
            if use not in owners:
                first = all(other[0] != name for other in owners)
                owners[use] = name if first else _copied(name, taken)
                if not first:
                    copies.add(owners[use])
                    constants[owners[use]] = constants[name]
            node.input[index] = owners[use]
    if not copies:
        return kept, parameters, ()
    note = f"gave {len(copies)} uses of merged tensors, such as biases of zero, tensors of their own"
    return kept, parameters | copies, (note,)


def _copied(name: str, taken: set[str]) -> str:
    """A free name, which joins `taken`."""
    number = 2
    while f"{name}_{number}" in taken:
        number += 1
    taken.add(f"{name}_{number}")
    return f"{name}_{number}"


def _without_identities(
    nodes: Sequence[NodeProto], constants: dict[str, Array], parameters: frozenset[str], output: str
) -> tuple[list[NodeProto], frozenset[str]]:
    """The nodes without an Identity of a parameter: its name is a copy of equal values, else the parameter again."""
    kept, same, copies = [], dict[str, str](), set[str]()
    for node in nodes:
        node.input[:] = [same.get(name, name) for name in node.input]
        if node.op_type != "Identity" or node.input[0] not in parameters | copies or output in node.output:
            kept.append(node)
        elif _is_uniform(constants[node.input[0]]):
            constants[node.output[0]] = constants[node.input[0]]
            copies.add(node.output[0])
        else:
            same[node.output[0]] = node.input[0]
    return kept, frozenset(copies)


def _is_uniform(value: Array) -> bool:
    return (
        value.dtype == np.float32
        and value.ndim > 0
        and value.size > 0
        and bool((value == value.flat[0]).all())
    )
