"""Which tensors of a model are trained: by glob over their names, biases alone, or the last layers."""

import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np
from onnx import NodeProto

from edge_client.wire.limits import PARAMETER_COUNT_MAX, TENSOR_COUNT_MAX
from firmware_tools.autodiff import SETTINGS
from firmware_tools.autodiff.graph import Array
from firmware_tools.errors import ModelError, OptionError
from firmware_tools.prepare import Network

BIAS_ONLY = "bias-only"
_LAST = re.compile(r"last:([1-9][0-9]*)")
# The input that is added, not multiplied. Additions of a vector, as of a MatMul's bias, count too.
_BIAS_INPUTS = {
    "Conv": 2, "ConvTranspose": 2, "Gemm": 2, "BatchNormalization": 2, "LayerNormalization": 2,
    "InstanceNormalization": 2, "GroupNormalization": 2, "RNN": 3, "GRU": 3, "LSTM": 3,
}  # fmt: skip

_ARITHMETIC = (
    "Mul",
    "Div",
    "Sub",
    "Pow",
    "Max",
    "Min",
    "Where",
)  # not Add, by which a bias of one value comes


def select(network: Network, patterns: Sequence[str]) -> tuple[tuple[str, ...], dict[str, Array]]:
    """Names of all tensors that can be trained, and those with values that one of `patterns` chooses.

    A pattern is a glob over names, `bias-only` (what is added: biases and shifts of normalisations, not scales;
    Cai et al. 2020, arXiv:2007.11622 §3.1), or `last:K`, the last K layers that have a weight of two extents or
    more, with all tensors used after the first of these. Raises OptionError when one chooses nothing, or all
    together more than a bundle may hold.
    """
    tensors = _candidates(network)
    chosen: set[str] = set()
    for pattern in patterns:
        found = [name for name in tensors if _matcher(network, tensors, pattern)(name)]
        if not found:
            raise OptionError(f"trainable {pattern!r} matches none of {', '.join(tensors) or 'no tensors'}")
        chosen.update(found)
    selected = {n: v for n, v in tensors.items() if n in chosen}
    count = sum(v.size for v in selected.values())
    if not selected or len(selected) > TENSOR_COUNT_MAX or count > PARAMETER_COUNT_MAX:
        raise OptionError(
            f"{len(selected)} trainable tensors of {count} values; 1 to {TENSOR_COUNT_MAX} tensors and "
            f"{PARAMETER_COUNT_MAX} values are possible"
        )
    for name, value in selected.items():
        if not np.isfinite(value).all():
            raise ModelError(f"initializer {name!r} holds a value that is not finite")
    return tuple(tensors), selected


def _candidates(network: Network) -> dict[str, Array]:
    """The float32 tensors of rank >= 1 that can be trained, in the order in which the model uses them.

    Statistics, scales and other settings of an operator are never among them, nor is a single value in arithmetic,
    such as the scale of attention, which some exporters store as they store parameters.
    """
    order = dict.fromkeys(
        name
        for node in network.nodes
        for i, name in enumerate(node.input)
        if name in network.parameters
        and i not in SETTINGS.get(node.op_type, ())
        and not (node.op_type in _ARITHMETIC and network.constants[name].size == 1)
    )
    values = {n: network.constants[n] for n in order}
    return {n: v for n, v in values.items() if v.dtype == np.float32 and v.ndim and v.size}


def _matcher(network: Network, tensors: Mapping[str, Array], pattern: str) -> Callable[[str], bool]:
    if pattern == BIAS_ONLY:
        return _biases(network, tensors).__contains__
    last = _LAST.fullmatch(pattern)
    if last:
        return _last(network, tensors, int(last[1])).__contains__
    return lambda name: fnmatchcase(name, pattern)


def _biases(network: Network, tensors: Mapping[str, Array]) -> set[str]:
    found = set()
    for node in network.nodes:
        index = _BIAS_INPUTS.get(node.op_type)
        if index is not None and index < len(node.input):
            found.add(node.input[index])
        elif node.op_type in ("Add", "Sub"):
            found.update(name for name in node.input if name in tensors and not _is_weight(tensors[name]))
    return found & tensors.keys()


def _last(network: Network, tensors: Mapping[str, Array], count: int) -> set[str]:
    layers = [i for i, node in enumerate(network.nodes) if _weights(node, tensors)]
    if count > len(layers):
        raise OptionError(f"the last {count} layers of a model that has {len(layers)} with weights")
    return {name for node in network.nodes[layers[-count] :] for name in node.input} & tensors.keys()


def _weights(node: NodeProto, tensors: Mapping[str, Array]) -> list[str]:
    return [
        name
        for i, name in enumerate(node.input)
        if name in tensors and _is_weight(tensors[name]) and i != _BIAS_INPUTS.get(node.op_type)
    ]


def _is_weight(value: Array) -> bool:
    """Whether it is a matrix or more: vectors, also those shaped to broadcast, have one extent above 1."""
    return len([extent for extent in value.shape if extent > 1]) > 1
