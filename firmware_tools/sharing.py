"""Undoes the merging of equal tensors, by which exporters would let several layers train one tensor.

Fresh networks are full of them: scales of one, biases and running means of zero, copied layers. PyTorch's exporters
leave no doubt: what was merged is an Identity under the tensor's own name, and what the network shares is just used
again (with `optimize=True` merging leaves no trace, which `lost` tells). Of other exporters' models a tensor of various
values that is used again is taken to be shared by design. Where all values are equal the surroundings tell: a layer
that is applied again, as at each step of a recurrence, comes after the same weights again.
"""

import re
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import NodeProto

from firmware_tools.autodiff.graph import Array

EXACT = "pytorch"  # the producer whose exporters say what they merged


def lost(model: onnx.ModelProto) -> tuple[str, ...]:
    """A note when PyTorch's exporter lists parameters that are no tensors of their own in the model."""
    signature = next((p.value for p in model.graph.metadata_props if p.key.endswith(".graph_signature")), "")
    listed = re.findall(r"PARAMETER target='([^']+)'", signature)
    missing = set(listed) - {t.name for t in model.graph.initializer}
    if not missing:
        return ()
    note = (
        f"{len(missing)} of {len(listed)} parameters are shared, merged or folded in the file, as {min(missing)}; "
        "unless the module shares them, export it with optimize=False to train each by itself"
    )
    return (note,)


def separate(
    nodes: Sequence[NodeProto],
    constants: dict[str, Array],
    parameters: frozenset[str],
    output: str,
    producer: str,
) -> tuple[list[NodeProto], frozenset[str], tuple[str, ...]]:
    """Give each tensor that the model of this `producer` had, as far as can be told, a copy of its own.

    Returns the nodes, without an Identity of a parameter unless it is the model's `output`; the parameters with the
    copies, which are added to `constants`; and a note if there are any.
    """
    kept, given = _without_identities(nodes, constants, parameters, output, every=producer == EXACT)
    copies = given if producer == EXACT else given | _by_layer(kept, constants, parameters, given)
    if not copies:
        return kept, parameters, ()
    note = f"gave {len(copies)} uses of merged tensors, such as biases of zero, tensors of their own"
    return kept, parameters | copies, (note,)


def _by_layer(
    kept: Sequence[NodeProto],
    constants: dict[str, Array],
    parameters: frozenset[str],
    given: frozenset[str],
) -> frozenset[str]:
    """Copies of the parameters whose values are all equal, one for each layer that uses them."""
    taken = {*constants, *(name for node in kept for name in node.output)}
    weights = {name for name in parameters if not _is_uniform(constants[name])}
    # Of each tensor, the weights that were applied last on the ways to it.
    before: dict[str, frozenset[str]] = {}
    owners: dict[tuple[str, str, int, frozenset[str]], str] = {}
    copies: set[str] = set()
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
    return frozenset(copies)


def _copied(name: str, taken: set[str]) -> str:
    """A free name, which joins `taken`."""
    number = 2
    while f"{name}_{number}" in taken:
        number += 1
    taken.add(f"{name}_{number}")
    return f"{name}_{number}"


def _without_identities(
    nodes: Sequence[NodeProto],
    constants: dict[str, Array],
    parameters: frozenset[str],
    output: str,
    *,
    every: bool,
) -> tuple[list[NodeProto], frozenset[str]]:
    """The nodes without an Identity of a parameter: its name is a copy of equal values, else the parameter again.

    With `every` it is a copy of any values.
    """
    kept, same, copies = [], dict[str, str](), set[str]()
    for node in nodes:
        node.input[:] = [same.get(name, name) for name in node.input]
        if node.op_type != "Identity" or node.input[0] not in parameters | copies or output in node.output:
            kept.append(node)
        elif every or _is_uniform(constants[node.input[0]]):
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
