"""What a bundle is trained for: the loss, what the model's output means, and what devices report of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Self, get_args

import numpy as np
from onnx import TensorProto, ValueInfoProto

from edge_client.bundle import TARGETS, Loss
from edge_client.wire.messages import DataSchema
from firmware_tools.autodiff import binary_cross_entropy, cross_entropy, squared_error
from firmware_tools.autodiff.graph import DYNAMIC, FLOAT, INT64, Graph, Shape, value_info
from firmware_tools.errors import ModelError, OptionError

# The model's output, as the graphs call it.
OUTPUTS: dict[Loss, str] = {
    "cross_entropy": "logits",
    "bce_with_logits": "logits",
    "mse": "prediction",
    "reconstruction": "reconstruction",
}
# Closing operators that the loss brings itself: they are stripped from the model.
CLOSING: dict[Loss, tuple[str, ...]] = {
    "cross_entropy": ("Softmax", "LogSoftmax"),
    "bce_with_logits": ("Sigmoid",),
    "mse": (),
    "reconstruction": (),
}
FIGURES = frozenset({"loss", "loss_weight", "correct", "error", "errors"})  # what eval graphs give
THRESHOLD_SHARE = 0.95  # one false alarm in twenty normal samples


@dataclass(frozen=True)
class Wish:
    """What a person says of the objective: the loss, and options that are checked once the output is known.

    `n_classes` is the number of logits that is expected, None for any.
    """

    loss: Loss
    class_weights: tuple[float, ...] = ()
    threshold_share: float | None = None
    n_classes: int | None = None

    def __post_init__(self) -> None:
        """Raise OptionError for a loss that is not known."""
        if self.loss not in get_args(Loss):
            raise OptionError(f"loss {self.loss!r} is not known; known: {', '.join(get_args(Loss))}")


@dataclass(frozen=True)
class Objective:
    """A loss on outputs of shape [batch, *extents] for samples of shape `sample`."""

    loss: Loss
    sample: Shape
    extents: Shape
    class_weights: tuple[float, ...] = ()
    threshold_share: float | None = None

    @classmethod
    def of(cls, wish: Wish, shapes: Mapping[str, Shape]) -> Self:
        """Fit a wish to a forward pass of these shapes; raise ModelError or OptionError saying what does not."""
        loss, n_classes = wish.loss, wish.n_classes
        shape = shapes.get(OUTPUTS[loss], ())
        shown = ["batch" if e == DYNAMIC else e for e in shape]
        if not shape or shape[0] != DYNAMIC or DYNAMIC in shape[1:]:
            raise ModelError(
                f"the output has shape {shown}; it must begin with the batch and be static after it"
            )
        extents = shape[1:]
        if OUTPUTS[loss] == "logits":
            least = 2 if loss == "cross_entropy" else 1
            if len(extents) != 1 or extents[0] < least:
                what = "classes] with 2 classes or more" if least == 2 else "labels]"
                raise ModelError(f"the output has shape {shown}; loss {loss} needs [batch, {what}")
            if n_classes not in (None, extents[0]):
                raise OptionError(f"the model has {extents[0]} logits, but n_classes is {n_classes}")
        elif n_classes is not None:
            raise OptionError(
                f"n_classes is {n_classes}, but a model trained with loss {loss} has no classes"
            )
        sample = shapes["x"][1:]
        if loss == "reconstruction" and prod(extents) != prod(sample):
            raise ModelError(
                f"the output has shape {shown}; to reconstruct samples of shape {list(sample)} it needs as many values"
            )
        _check_weights(loss, extents, wish.class_weights)
        return cls(loss, sample, extents, wish.class_weights, _share(loss, wish.threshold_share))

    @property
    def output(self) -> str:
        """Name of the model's output."""
        return OUTPUTS[self.loss]

    def schema(self, axes: Sequence[str]) -> DataSchema:
        """What data sets have to be; raises OptionError when the names do not fit the samples."""
        if axes and len(axes) != len(self.sample):
            raise OptionError(f"{len(axes)} axis names for samples of shape {list(self.sample)}")
        target = TARGETS[self.loss]
        classes = self.extents[0] if target in ("class", "labels") else 0
        # A target of one value is stored as [n, 1], whether the model's output has that axis or not.
        values = (self.extents or (1,)) if target == "values" else ()
        return DataSchema(self.sample, classes, tuple(axes), target, values)

    def inputs(self) -> list[ValueInfoProto]:
        """The input `y`, where there is one."""
        if self.loss == "reconstruction":
            return []
        kind, extents = {
            "cross_entropy": (INT64, ()),
            "bce_with_logits": (TensorProto.UINT8, self.extents),
            "mse": (FLOAT, self.extents or (1,)),
        }[self.loss]
        return [value_info("y", kind, (DYNAMIC, *extents))]

    def append(self, graph: Graph, source: str) -> str:
        """Append the scalar `loss`; returns the gradient of it at the output. `source` is x, normalised."""
        if self.loss == "cross_entropy":
            return cross_entropy(
                graph, self.output, "y", self.extents[0], loss="loss", weights=self.class_weights
            )
        if self.loss == "bce_with_logits":
            return binary_cross_entropy(graph, self.output, "y", loss="loss", weights=self.class_weights)
        return squared_error(graph, self.output, self._target(graph, source), loss="loss")

    def append_figures(self, graph: Graph, source: str) -> list[ValueInfoProto]:
        """Append what evaluation gives of a batch; returns the graph's outputs as edge_client.bundle.Manifest says."""
        self.append(graph, source)
        outputs = [value_info("loss", FLOAT, ()), value_info("loss_weight", FLOAT, ())]
        if self.loss == "cross_entropy" and self.class_weights:
            weights = graph.constant(np.asarray(self.class_weights, dtype=np.float32))
            graph.add("ReduceSum", graph.add("Gather", weights, "y"), keepdims=0, output="loss_weight")
        else:
            size = graph.add("Shape", self.output, start=0, end=1)
            graph.add("Squeeze", graph.add("Cast", size, to=FLOAT), output="loss_weight")
        if OUTPUTS[self.loss] == "logits":
            self._count_correct(graph)
            return [*outputs, value_info("correct", INT64, ())]
        off = graph.add("Sub", self.output, self._target(graph, source))
        if self.loss == "mse":
            graph.add("ReduceMean", graph.add("Abs", off), keepdims=0, output="error")
            return [*outputs, value_info("error", FLOAT, ())]
        self._errors(graph, off)
        return [*outputs, value_info("errors", FLOAT, (DYNAMIC,))]

    def append_answers(self, graph: Graph, source: str) -> list[ValueInfoProto]:
        """Append what inference gives beside the output; returns all outputs.

        A reconstruction comes with its `errors`, because only the graph knows how samples are normalised.
        """
        outputs = [value_info(self.output, FLOAT, (DYNAMIC, *self.extents))]
        if self.loss != "reconstruction":
            return outputs
        self._errors(graph, graph.add("Sub", self.output, self._target(graph, source)))
        return [*outputs, value_info("errors", FLOAT, (DYNAMIC,))]

    def _target(self, graph: Graph, source: str) -> str:
        """What the output should be, in its shape."""
        given, shape = (source, self.sample) if self.loss == "reconstruction" else ("y", self.extents or (1,))
        return given if shape == self.extents else graph.add("Reshape", given, graph.ints(-1, *self.extents))

    def _errors(self, graph: Graph, off: str) -> None:
        axes = graph.ints(*range(1, len(self.extents) + 1))
        graph.add("ReduceMean", graph.add("Mul", off, off), axes, keepdims=0, output="errors")

    def _count_correct(self, graph: Graph) -> None:
        """How many largest logits are at the label, or how many logits have the sign of their label."""
        if self.loss == "cross_entropy":
            hits = graph.add("Equal", graph.add("ArgMax", "logits", axis=1, keepdims=0), "y")
        else:
            decided = graph.add("Greater", "logits", graph.scalar(0.0))
            hits = graph.add("Equal", decided, graph.add("Cast", "y", to=TensorProto.BOOL))
        graph.add("ReduceSum", graph.add("Cast", hits, to=INT64), keepdims=0, output="correct")


def _check_weights(loss: Loss, extents: Shape, weights: Sequence[float]) -> None:
    if not weights:
        return
    if OUTPUTS[loss] != "logits":
        raise OptionError(f"class weights are for classes and labels; loss {loss} has neither")
    if len(weights) != extents[0]:
        raise OptionError(f"{len(weights)} class weights for the model's {extents[0]} logits")
    if not all(0.0 < w < np.inf for w in weights):
        raise OptionError("class weights must be positive numbers")


def _share(loss: Loss, share: float | None) -> float | None:
    if loss != "reconstruction":
        if share is not None:
            raise OptionError(f"a threshold is for reconstruction; loss {loss} has none")
        return None
    if share is not None and not 0.0 < share <= 1.0:
        raise OptionError(f"threshold share {share} is not in (0, 1]")
    return THRESHOLD_SHARE if share is None else share
