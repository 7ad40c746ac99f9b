"""What freezing layers saves: the size of the backward graph beside that of training everything.

An estimate from shapes alone, made once by the compiler and kept in the metadata of train.onnx.
"""

from collections.abc import Sequence
from math import prod

import msgspec
import onnx

from firmware_tools.arithmetic import multiply_adds
from firmware_tools.autodiff import differentiate
from firmware_tools.autodiff.graph import DYNAMIC, Graph, Shape, needed, shapes_of
from firmware_tools.autodiff.reverse import expand
from firmware_tools.errors import CompileError
from firmware_tools.forward import Forward

METADATA_KEY = "backward"
_SEED = "output@gradient"  # stands for what the loss gives
_VALUE_BYTES = 4  # float32; the rare others are no larger by much


class Backward(msgspec.Struct, frozen=True):
    """The nodes from the gradient of the output to those of the tensors that are trained.

    `multiply_adds` is their work for one batch, which time follows, None where shapes are known to the runtime
    alone. `activations_bytes` counts what they read of the forward pass for one batch, which therefore stays in memory
    until it is read; the batch itself is not counted.
    """

    nodes: int
    multiply_adds: int | None
    activations_bytes: int


class Pruning(msgspec.Struct, frozen=True):
    """The backward graph of the chosen tensors, and of all; None when a frozen layer has no gradient."""

    chosen: Backward
    full: Backward | None

    def __str__(self) -> str:
        """One line for people."""
        chosen, full = self.chosen, None if self.full == self.chosen else self.full
        parts = [f"{_share('{:,}', chosen.nodes, full.nodes if full else None)} nodes"]
        if chosen.multiply_adds is not None:
            work = full.multiply_adds if full else None
            parts.append(f"{_share('{:,.2f}', chosen.multiply_adds, work, 1e6)} M multiply-adds")
        kept = _share("{:.2f}", chosen.activations_bytes, full.activations_bytes if full else None, 1e6)
        whole = " (of: if every tensor were trained)" if full else ""
        return f"backward graph: {', '.join(parts)}, for which {kept} MB of the forward pass stay in memory{whole}"


def _share(form: str, part: int, whole: int | None, unit: float = 1) -> str:
    """`part`, or `part of whole`, in units."""
    return " of ".join(form.format(v / unit if unit > 1 else v) for v in (part, whole) if v is not None)


def measure(
    forward: Forward, shapes: dict[str, Shape], chosen: Sequence[str], every: Sequence[str], batch_size: int
) -> Pruning:
    """Compare training the tensors `chosen` with training `every`; `shapes` are the forward graph's."""
    mine = _backward(forward, shapes, chosen, batch_size)
    if set(chosen) == set(every):
        return Pruning(mine, mine)
    try:
        return Pruning(mine, _backward(forward, shapes, every, batch_size))
    except CompileError:
        return Pruning(mine, None)


def attach(train: onnx.ModelProto, pruning: Pruning) -> onnx.ModelProto:
    """The graph with the figures in its metadata."""
    onnx.helper.set_model_props(train, {METADATA_KEY: msgspec.json.encode(pruning).decode()})
    return train


def read(train: onnx.ModelProto) -> Pruning | None:
    """The figures in the metadata of train.onnx; None when another tool wrote it without."""
    for entry in train.metadata_props:
        if entry.key == METADATA_KEY:
            try:
                return msgspec.json.decode(entry.value, type=Pruning)
            except msgspec.DecodeError:
                return None
    return None


def _backward(
    forward: Forward, shapes: dict[str, Shape], trained: Sequence[str], batch_size: int
) -> Backward:
    graph = forward.graph.copy()
    for name in trained:
        graph.constants.pop(name, None)
    shapes = expand(graph, shapes, forward.output, trained)
    count, after = len(graph.nodes), _after_input(graph)
    gradients = differentiate(graph, shapes, forward.output, _SEED, trained)
    nodes = needed(graph.nodes[count:], gradients.values())
    kept = after.intersection(name for node in nodes for name in node.input)
    values = sum(prod(batch_size if e == DYNAMIC else e for e in shapes.get(name, ())) for name in kept)
    every = {**shapes, _SEED: shapes[forward.output]}
    made = {name for node in graph.nodes for name in node.output}
    used = {name for node in graph.nodes for name in node.input if name} - made - graph.constants.keys()
    # At the batch's own size: an extent that grows with it is not always the batch alone.
    fixed = {n: tuple(batch_size if e == DYNAMIC else e for e in every[n]) for n in sorted(used)}
    every = shapes_of(graph, fixed, list(gradients.values()))
    return Backward(len(nodes), multiply_adds(nodes, every, batch_size), _VALUE_BYTES * values)


def _after_input(forward: Graph) -> set[str]:
    """The tensors computed from the samples: weights that are only quantised are none."""
    found = {"x"}
    for node in forward.nodes:
        if found.intersection(node.input):
            found.update(node.output)
    return found - {"x", ""}  # an output that is left out has no name
