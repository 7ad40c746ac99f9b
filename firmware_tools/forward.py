"""The forward pass of the three graphs: the model with normalisation, fake quantisation and what it observes.

Training, evaluation and inference differ where a layer keeps statistics: training uses the batch's own and
carries the running ones on, the others use the running ones. Statistics are tensors of the model beside the
trained ones; nobody differentiates through them.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Self, get_args

import numpy as np
from onnx import NodeProto, helper

from firmware_tools.autodiff.graph import DYNAMIC, FLOAT, Array, Graph, Shape, shapes_of
from firmware_tools.autodiff.normalization import EPSILON
from firmware_tools.autodiff.recurrent import departs, unroll
from firmware_tools.autodiff.registry import Call
from firmware_tools.errors import OptionError
from firmware_tools.prepare import Network
from firmware_tools.quantize import fake_quantize, fake_quantize_within, weight_axis

Mode = Literal["train", "eval", "infer"]
Quantize = Literal["int8", "int8-weights", "none"]
BatchNorm = Literal["train", "frozen"]
Normalize = tuple[Sequence[float], Sequence[float]]

RANGE = ".range"  # ends the name of a statistic that holds [low, high] of an activation
BATCH_NORM_DECAY = 0.9  # the default of the ONNX operator: what a running statistic keeps of itself in a step
RANGE_DECAY = (
    0.9  # the same for ranges: a task of 20 steps forgets the old range, one outlier moves it by a tenth
)


@dataclass(frozen=True)
class Options:
    """How the forward pass differs from the model as it came."""

    quantize: Quantize
    batch_norm: BatchNorm
    normalize: Normalize | None

    @classmethod
    def of(cls, quantize: str, batch_norm: str, normalize: Normalize | None) -> Self:
        """Checked options; raises OptionError."""
        for name, value, kind in (("quantize", quantize, Quantize), ("batch_norm", batch_norm, BatchNorm)):
            if value not in get_args(kind):
                raise OptionError(f"{name} {value!r} is not known; known: {', '.join(get_args(kind))}")
        return cls(quantize, batch_norm, normalize)  # type: ignore[arg-type]  # both were just checked


@dataclass
class Forward:
    """The model from `x` to the tensor `output`; `source` is `x`, normalised.

    `statistics` maps the name of each to its initial value, float32, in the order of the table; `carried` maps
    it to the tensor that holds its next value, in training only.
    """

    graph: Graph
    output: str
    source: str = "x"
    statistics: dict[str, Array] = field(default_factory=dict)
    carried: dict[str, str] = field(default_factory=dict)


def build(network: Network, parameters: Mapping[str, Array], options: Options, mode: Mode) -> Forward:
    """Lay out the forward pass; trainable tensors and statistics are inputs of the graph.

    Raises OptionError, or ModelError when the shapes of the model cannot be inferred.
    """
    return _Builder(network, parameters, options, mode).build()


class _Builder:
    """Walks the model's nodes once, in their order, so that the three modes name the same statistics."""

    def __init__(
        self, network: Network, parameters: Mapping[str, Array], options: Options, mode: Mode
    ) -> None:
        self._network = network
        self._parameters = parameters
        self._options = options
        self._mode = mode
        self._graph = Graph(network.opset)
        constants = {k: v for k, v in network.constants.items() if k not in parameters}
        self._graph.constants.update(constants)
        self._forward = Forward(self._graph, network.output)
        self._uses = Counter(name for node in network.nodes for name in node.input)
        self._weights: dict[tuple[str, int], str] = {}

    def build(self) -> Forward:
        options, graph = self._options, self._graph
        sample = self._network.sample_shape
        if options.normalize:
            self._forward.source = normalized(graph, "x", sample, options.normalize)
        read = {"x": self._forward.source}
        rounded = self._rounded_activations()
        if "x" in rounded:
            read["x"] = self._activation("x", read["x"])
        for original in self._network.nodes:
            node = NodeProto()
            node.CopyFrom(original)
            node.input[:] = [read.get(name, name) for name in node.input]
            self._round_weight(node)
            if node.op_type == "BatchNormalization" and self._observed(node):
                self._batch_norm(node)
            elif departs(node):
                read_as = {new: self._shapes[old] for old, new in read.items() if old in self._shapes}
                unroll(Call(graph, node, (), (), self._shapes | read_as))
            else:
                graph.nodes.append(node)
            read |= {name: self._activation(name, name) for name in node.output if name in rounded}
        if options.quantize != "none" and not self._weights:
            raise OptionError(
                "the model has no weight of a Conv, Gemm or MatMul to quantise; use quantize='none'"
            )
        return self._forward

    def _rounded_activations(self) -> set[str]:
        """What weights are multiplied with, and both sides of a residual connection.

        These are the places where the integer kernels of runtimes take 8-bit values; whoever else reads such a
        tensor gets the same rounded values.
        """
        if self._options.quantize != "int8":
            return set()
        constants, found = self._network.constants.keys(), set()
        for node in self._network.nodes:
            if self._weight_axis(node) is not None:
                found.add(node.input[0])
            elif node.op_type == "Add":
                found.update(node.input if constants.isdisjoint(node.input) else ())
        return found - constants - {self._network.output}

    def _weight_axis(self, node: NodeProto) -> int | None:
        weight = self._network.constants.get(node.input[1]) if len(node.input) > 1 else None
        return None if weight is None else weight_axis(node, node.input[1], weight.ndim)

    def _round_weight(self, node: NodeProto) -> None:
        axis = None if self._options.quantize == "none" else self._weight_axis(node)
        if axis is None:
            return
        weight = node.input[1]
        if (weight, axis) not in self._weights:
            shape = self._network.constants[weight].shape
            self._weights[weight, axis] = fake_quantize(self._graph, weight, shape, axis)
        node.input[1] = self._weights[weight, axis]

    def _activation(self, name: str, tensor: str) -> str:
        """`tensor` rounded within the range that is observed of it under `name`."""
        graph = self._graph
        span = self._statistic(f"{name}{RANGE}", np.zeros(2, dtype=np.float32))
        used = span
        if self._mode != "infer":
            batch = self._batch_range(tensor)
            low, high = graph.add_many("Split", span, outputs=("", ""), num_outputs=2)
            kept = self._mixed(span, batch, RANGE_DECAY) if self._mode == "train" else span
            # A range nobody has observed yet is (0, 0): the batch's own stands in.
            used = graph.add("Where", graph.add("Less", low, high), kept, batch)
            graph.held.add(used)
        if self._mode == "train":
            self._forward.carried[span] = used
        return fake_quantize_within(graph, tensor, used)

    def _batch_range(self, tensor: str) -> str:
        graph = self._graph
        edges = [
            graph.add("Reshape", graph.add(op, tensor, keepdims=0), graph.ints(1))
            for op in ("ReduceMin", "ReduceMax")
        ]
        return graph.add("Concat", *edges, axis=0)

    def _observed(self, node: NodeProto) -> bool:
        """Whether a BatchNormalization keeps statistics: it is trained itself, and has constants to begin from."""
        trained = any(name in self._parameters for name in node.input[1:3])
        constant = all(name in self._network.constants for name in node.input[3:5])
        return self._options.batch_norm == "train" and trained and constant

    def _batch_norm(self, node: NodeProto) -> None:
        """Normalise by the batch's moments in training, by the running ones elsewhere.

        A variance is kept as its root, the deviation, which needs half the orders of magnitude on the grid.
        """
        graph, constants = self._graph, self._network.constants
        values = [constants[name].astype(np.float32) for name in node.input[3:5]]
        mean = self._statistic(node.input[3], values[0])
        deviation = self._statistic(f"{node.input[4]}.root", np.sqrt(values[1]))
        variance = graph.add("Mul", deviation, deviation)
        given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        epsilon = given.get("epsilon", EPSILON)
        inputs, output = node.input[:3], node.output[0]
        if self._mode != "train":
            graph.add("BatchNormalization", *inputs, mean, variance, output=output, epsilon=epsilon)
            return
        # With a momentum of 0 the operator gives the batch's own moments, for half the time of computing them before.
        # ONNX Runtime writes them over the old ones it is given, which can therefore be neither constants nor inputs.
        zeros = (graph.add("Sub", name, name) for name in (mean, deviation))
        _, own_mean, own_variance = graph.add_many(
            "BatchNormalization", *inputs, *zeros, outputs=(output, "", ""), epsilon=epsilon, momentum=0.0,
            training_mode=1,
        )  # fmt: skip
        graph.held.update((own_mean, own_variance))
        decay = given.get("momentum", BATCH_NORM_DECAY)
        unbiased = self._unbiased(node.input[0], own_variance, len(values[0]))
        self._forward.carried[mean] = self._mixed(mean, own_mean, decay)
        self._forward.carried[deviation] = graph.add("Sqrt", self._mixed(variance, unbiased, decay))

    def _unbiased(self, x: str, variance: str, channels: int) -> str:
        """The variance for the running one, divided by n - 1.

        PyTorch and TensorFlow's fused kernel divide so; the ONNX operator itself by n.
        """
        graph = self._graph
        size = graph.add("Cast", graph.add("Size", x), to=FLOAT)
        count = graph.add("Div", size, graph.scalar(channels))
        others_count = graph.add("Max", graph.add("Sub", count, graph.scalar(1.0)), graph.scalar(1.0))
        return graph.add("Mul", variance, graph.add("Div", count, others_count))

    @cached_property
    def _shapes(self) -> dict[str, Shape]:
        """Shapes of the model's own tensors; inferred only where a layer is written out."""
        plain = Graph(self._network.opset)
        plain.nodes, plain.constants = list(self._network.nodes), dict(self._network.constants)
        return shapes_of(plain, {"x": (DYNAMIC, *self._network.sample_shape)}, [self._network.output])

    def _mixed(self, old: str, new: str, decay: float) -> str:
        graph = self._graph
        kept = graph.add("Mul", old, graph.scalar(decay))
        return graph.add("Add", kept, graph.add("Mul", new, graph.scalar(1.0 - decay)))

    def _statistic(self, name: str, value: Array) -> str:
        """A new statistic under this name; exporters merge equal initializers, so it may be taken."""
        shared = {n for n in self._network.constants if self._uses[n] > 1}
        taken = self._forward.statistics.keys() | self._parameters.keys() | shared
        while name in taken:
            name += "_"
        self._forward.statistics[name] = value
        self._graph.constants.pop(name, None)
        return name


def normalized(graph: Graph, tensor: str, sample: Shape, normalize: Normalize) -> str:
    """(tensor - mean) / std per channel; raises OptionError when the settings do not fit the sample."""
    mean, std = (np.asarray(v, dtype=np.float32).ravel() for v in normalize)
    if not len(mean) == len(std) == sample[0]:
        raise OptionError(f"{len(mean)} means and {len(std)} deviations for {sample[0]} channels")
    if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
        raise OptionError("means must be finite and standard deviations positive")
    extents = (sample[0], *[1] * (len(sample) - 1))
    centred = graph.add("Sub", tensor, graph.constant(mean.reshape(extents)))
    return graph.add("Mul", centred, graph.constant((np.float32(1) / std).reshape(extents)))
