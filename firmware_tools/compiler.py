"""Compiles an inference model into a training bundle: three graphs, version 0 of the parameters, a manifest.

The graphs hold standard ONNX operators only, so that the stock ONNX Runtime of a small device trains them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx

from edge_client.bundle import EVAL, FORMAT, INFER, PARAMS, TRAIN, Manifest, OptimizerSpec, TensorSpec
from edge_client.wire import grid
from edge_client.wire.messages import DataSchema
from firmware_tools import bundle
from firmware_tools.autodiff import Graph, count_correct, cross_entropy, differentiate
from firmware_tools.autodiff.graph import DYNAMIC, FLOAT, INT64, Array, Shape, shapes_of, value_info
from firmware_tools.errors import CompileError, ModelError, OptionError
from firmware_tools.optimizer import LEARNING_RATES, Kind, append_update, specify
from firmware_tools.prepare import Network, prepare
from firmware_tools.pruning import Pruning, attach, measure
from firmware_tools.quantize import fake_quantize, weight_axis
from firmware_tools.trainable import select

GRID_BITS = (
    16  # the largest initial value of a tensor gets this many bits; growth to 2^15 times it still fits
)

Quantize = Literal["int8-weights", "none"]
Normalize = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class CompiledBundle:
    """A bundle in memory. `pruning` tells what freezing saved, `notes` what the compiler changed in the model."""

    manifest: Manifest
    members: Mapping[str, bytes]
    pruning: Pruning
    notes: tuple[str, ...] = ()

    def to_bytes(self) -> bytes:
        """The bundle file; the same model and options give the same bytes."""
        return bundle.pack(self.manifest, self.members)

    def save(self, path: str | Path) -> Path:
        """Write the bundle file, replacing it atomically."""
        bundle.write(Path(path), self.to_bytes())
        return Path(path)


def compile_training(
    model: onnx.ModelProto | str | Path,
    *,
    name: str = "",
    output: str | None = None,
    shape: Sequence[int] = (),
    loss: Literal["cross_entropy"] = "cross_entropy",
    optimizer: Kind = "momentum",
    momentum: float = 0.9,
    weight_decay: float | None = None,
    proximal: float = 0.0,
    clip_norm: float = 0.0,
    learning_rate: float | None = None,  # the optimiser's usual one
    trainable: Sequence[str] = ("*",),
    quantize: Quantize = "int8-weights",
    batch_size: int = 32,
    n_classes: int | None = None,
    normalize: Normalize | None = None,
    axes: Sequence[str] = (),
) -> CompiledBundle:
    """Compile an ordinary ONNX inference model into a training bundle.

    `model` maps one float32 input [N, …] to logits float32 [N, classes]; a closing Softmax is stripped. `output`
    names one of several outputs, `shape` the extents of a sample where the model leaves some open. `trainable`
    are globs over initializer names, `bias-only` or `last:K` (trainable.select); the others are frozen and cost no
    gradient. `normalize` is (mean, std), each with one value per channel (axis 0 of a sample), compiled into all
    graphs. `axes` names a sample's axes for error messages. optimizer.specify explains `momentum` to `clip_norm`.

    Raises CompileError: ModelError, OptionError or NotDifferentiable.
    """
    spec = specify(
        optimizer, momentum=momentum, weight_decay=weight_decay, proximal=proximal, clip_norm=clip_norm
    )
    rate = LEARNING_RATES[optimizer] if learning_rate is None else learning_rate
    _check_options(loss=loss, learning_rate=rate, batch_size=batch_size, quantize=quantize)
    network = prepare(model, output=output, shape=shape)
    every, parameters = select(network, trainable)
    forward = _forward(network, parameters, quantize, normalize)
    inputs: dict[str, Shape] = {"x": (DYNAMIC, *network.sample_shape)}
    inputs |= {k: tuple(v.shape) for k, v in parameters.items()}
    shapes = shapes_of(forward, inputs, ["logits"])
    classes = _classes(shapes, n_classes)
    tensors, keyframe = _initial(parameters)
    train = _train_graph(forward, shapes, tuple(parameters), classes, spec)
    pruning = measure(forward, shapes, tuple(parameters), every, batch_size)
    members = {
        TRAIN: _serialized(attach(train, pruning)),
        EVAL: _serialized(_eval_graph(forward, inputs, classes)),
        INFER: _serialized(_infer_graph(forward, inputs, classes)),
        PARAMS: keyframe,
    }
    manifest = Manifest(
        format=FORMAT,
        name=name or network.name,
        tensors=tensors,
        data=_schema(network.sample_shape, classes, axes),
        loss=loss,
        optimizer=spec,
        learning_rate=rate,
        batch_size=batch_size,
        quantize=quantize,
        opset=network.opset,
        files=bundle.describe(members),
    )
    return CompiledBundle(manifest, members, pruning, network.notes)


def _check_options(*, loss: str, learning_rate: float, batch_size: int, quantize: str) -> None:
    if loss != "cross_entropy":
        raise OptionError(f"loss {loss!r} is not known; known: cross_entropy")
    if quantize not in ("int8-weights", "none"):
        raise OptionError(f"quantize {quantize!r} is not known; known: int8-weights, none")
    if not 0.0 < learning_rate < np.inf:
        raise OptionError(f"learning rate {learning_rate} is not a positive number")
    if batch_size < 1:
        raise OptionError(f"batch size {batch_size} is not positive")


def _forward(
    network: Network, parameters: Mapping[str, Array], quantize: Quantize, normalize: Normalize | None
) -> Graph:
    """The model from `x` to `logits`, trainable tensors as inputs, with normalisation and fake quantisation."""
    graph = Graph(network.opset)
    graph.constants.update({k: v for k, v in network.constants.items() if k not in parameters})
    source = _normalized(graph, network.sample_shape, normalize) if normalize else "x"
    rounded: dict[tuple[str, int], str] = {}
    for node in network.nodes:
        node.input[:] = [source if name == "x" else name for name in node.input]
        if quantize == "int8-weights" and len(node.input) > 1 and node.input[1] in network.constants:
            weight = node.input[1]
            shape = network.constants[weight].shape
            axis = weight_axis(node, weight, len(shape))
            if axis is not None:
                key = (weight, axis)
                if key not in rounded:
                    rounded[key] = fake_quantize(graph, weight, shape, axis)
                node.input[1] = rounded[key]
        graph.nodes.append(node)
    if quantize == "int8-weights" and not rounded:
        raise OptionError(
            "the model has no weight of a Conv, Gemm or MatMul to quantise; use quantize='none'"
        )
    return graph


def _normalized(graph: Graph, sample: Shape, normalize: Normalize) -> str:
    mean, std = (np.asarray(v, dtype=np.float32).ravel() for v in normalize)
    if not len(mean) == len(std) == sample[0]:
        raise OptionError(f"{len(mean)} means and {len(std)} deviations for {sample[0]} channels")
    if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
        raise OptionError("means must be finite and standard deviations positive")
    extents = (sample[0], *[1] * (len(sample) - 1))
    centred = graph.add("Sub", "x", graph.constant(mean.reshape(extents)))
    return graph.add("Mul", centred, graph.constant((np.float32(1) / std).reshape(extents)))


def _classes(shapes: Mapping[str, Shape], expected: int | None) -> int:
    shape = shapes.get("logits", ())
    if len(shape) != 2 or shape[0] != DYNAMIC or shape[1] < 2:
        shown = ["batch" if e == DYNAMIC else e for e in shape]
        raise ModelError(f"the output has shape {shown}; [batch, classes] with 2 classes or more is needed")
    if expected is not None and shape[1] != expected:
        raise OptionError(f"the model has {shape[1]} logits, but n_classes is {expected}")
    return shape[1]


def _schema(sample: Shape, classes: int, axes: Sequence[str]) -> DataSchema:
    if axes and len(axes) != len(sample):
        raise OptionError(f"{len(axes)} axis names for samples of shape {list(sample)}")
    return DataSchema(sample, classes, tuple(axes))


def _initial(parameters: Mapping[str, Array]) -> tuple[tuple[TensorSpec, ...], bytes]:
    specs, values = [], []
    for name, value in parameters.items():
        exponent = grid.step_exponent(float(np.abs(value).max()), GRID_BITS)
        specs.append(TensorSpec(name, tuple(value.shape), exponent))
        values.append(grid.to_grid(value.astype(np.float32), exponent))
    return tuple(specs), grid.encode_keyframe(0, values)


def _train_graph(
    forward: Graph, shapes: dict[str, Shape], parameters: Sequence[str], classes: int, spec: OptimizerSpec
) -> onnx.ModelProto:
    graph = forward.copy()
    seed = cross_entropy(graph, "logits", "y", classes, loss="loss")
    # Only the model's own nodes are walked: the loss has already given its gradient.
    gradients = differentiate(graph, shapes, "logits", seed, parameters)
    for parameter in parameters:
        if parameter not in gradients:
            raise OptionError(f"trainable tensor {parameter!r} has no differentiable influence on the logits")
    append_update(graph, spec, shapes, gradients)
    own = {p: shapes[p] for p in parameters}
    state = {**own, **spec.state(own)}
    inputs = [
        value_info("x", FLOAT, shapes["x"]),
        value_info("y", INT64, (DYNAMIC,)),
        value_info("learning_rate", FLOAT, ()),
        *(value_info(name, FLOAT, shape) for name, shape in {**state, **spec.base(own)}.items()),
    ]
    outputs = [value_info("loss", FLOAT, ())]
    outputs += [value_info(f"{name}@next", FLOAT, shape) for name, shape in state.items()]
    return graph.model("train", inputs, outputs)


def _eval_graph(forward: Graph, inputs: Mapping[str, Shape], classes: int) -> onnx.ModelProto:
    graph = forward.copy()
    cross_entropy(graph, "logits", "y", classes, loss="loss")
    count_correct(graph, "logits", "y", correct="correct")
    ins = [value_info(n, FLOAT, s) for n, s in inputs.items()]
    ins.insert(1, value_info("y", INT64, (DYNAMIC,)))
    return graph.model("eval", ins, [value_info("loss", FLOAT, ()), value_info("correct", INT64, ())])


def _infer_graph(forward: Graph, inputs: Mapping[str, Shape], classes: int) -> onnx.ModelProto:
    ins = [value_info(n, FLOAT, s) for n, s in inputs.items()]
    return forward.model("infer", ins, [value_info("logits", FLOAT, (DYNAMIC, classes))])


def _serialized(model: onnx.ModelProto) -> bytes:
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise CompileError(f"the compiled {model.graph.name} graph is not valid: {error}") from error
    data: bytes = model.SerializeToString(deterministic=True)
    return data
