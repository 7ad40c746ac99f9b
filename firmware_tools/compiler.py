"""Compiles an inference model into a training bundle: three graphs, version 0 of the parameters, a manifest.

The graphs hold standard ONNX operators only, so that the stock ONNX Runtime of a small device trains them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import onnx

from edge_client.bundle import EVAL, FORMAT, INFER, PARAMS, TRAIN, Loss, Manifest, OptimizerSpec, TensorSpec
from edge_client.wire import grid
from firmware_tools import bundle
from firmware_tools.autodiff.graph import DYNAMIC, Array, Shape, shapes_of
from firmware_tools.errors import OptionError
from firmware_tools.forward import BatchNorm, Mode, Normalize, Options, Quantize, build
from firmware_tools.graphs import eval_graph, infer_graph, serialized, train_graph
from firmware_tools.objective import Objective, Wish
from firmware_tools.optimizer import LEARNING_RATES, Kind, specify
from firmware_tools.prepare import Network, prepare
from firmware_tools.pruning import Pruning, attach, measure
from firmware_tools.trainable import select

GRID_BITS = (
    16  # the largest initial value of a tensor gets this many bits; growth to 2^15 times it still fits
)


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
        """Write the bundle file, replacing it atomically; raise OptionError where it cannot be written."""
        bundle.write(Path(path), self.to_bytes())
        return Path(path)


@dataclass(frozen=True)
class Settings:
    """What the manifest says beside the network; compile_training explains it."""

    name: str
    wish: Wish
    optimizer: OptimizerSpec
    learning_rate: float
    batch_size: int
    axes: Sequence[str]


def compile_training(
    model: onnx.ModelProto | str | Path,
    *,
    name: str = "",
    output: str | None = None,
    shape: Sequence[int] = (),
    loss: Loss = "cross_entropy",
    class_weights: Sequence[float] = (),
    threshold_share: float | None = None,
    optimizer: Kind = "momentum",
    momentum: float = 0.9,
    weight_decay: float | None = None,
    proximal: float = 0.0,
    clip_norm: float = 0.0,
    learning_rate: float | None = None,  # the optimiser's usual one
    trainable: Sequence[str] = ("*",),
    quantize: Quantize = "int8-weights",
    batch_norm: BatchNorm = "train",
    batch_size: int = 32,
    n_classes: int | None = None,
    normalize: Normalize | None = None,
    axes: Sequence[str] = (),
) -> CompiledBundle:
    """Compile an ordinary ONNX inference model into a training bundle.

    `model` maps one float32 input [N, …] to one float32 output; `output` names one of several, `shape` gives the
    extents of a sample where the model leaves some open. The output is what `loss` says (docs/bundle.md): logits,
    values or the sample itself; a closing Softmax or Sigmoid that the loss brings is stripped. `class_weights` has a
    positive number for each class, or each label's 1s; `threshold_share` (0.95 unless given) of held-out samples have a
    reconstruction error up to the threshold; `n_classes`, if given, must be the number of logits. `trainable` are
    globs over initializer names, `bias-only` or `last:K` (trainable.select); the others are frozen and cost no
    gradient. `normalize` is (mean, std), each with one value per channel (axis 0 of a sample), compiled into all
    graphs. `axes` names a sample's axes for error messages. optimizer.specify explains `momentum` to `clip_norm`,
    quantize.py `quantize`; with `int8` the ranges of activations, and with `batch_norm="train"` the running moments
    of each BatchNormalization that is trained, become statistics of the model, which training observes.

    Raises CompileError: ModelError, OptionError or NotDifferentiable.
    """
    settings = Settings(
        name=name,
        wish=Wish(loss, tuple(map(float, class_weights)), threshold_share, n_classes),
        optimizer=specify(
            optimizer, momentum=momentum, weight_decay=weight_decay, proximal=proximal, clip_norm=clip_norm
        ),
        learning_rate=LEARNING_RATES[optimizer] if learning_rate is None else learning_rate,
        batch_size=batch_size,
        axes=axes,
    )
    _check(settings)
    options = Options.of(quantize, batch_norm, normalize)
    network = prepare(model, loss=loss, output=output, shape=shape)
    every, parameters = select(network, trainable)
    return _assemble(network, parameters, every, options, settings)


def _assemble(
    network: Network, parameters: dict[str, Array], every: Sequence[str], options: Options, settings: Settings
) -> CompiledBundle:
    train, evaluate, infer = (build(network, parameters, options, mode) for mode in get_args(Mode))
    own = {**parameters, **train.statistics}
    inputs: dict[str, Shape] = {"x": (DYNAMIC, *network.sample_shape)}
    inputs |= {k: tuple(v.shape) for k, v in own.items()}
    shapes = shapes_of(train.graph, inputs, [network.output])
    objective = Objective.of(settings.wish, shapes)
    trained, spec = tuple(parameters), settings.optimizer
    pruning = measure(train, shapes, trained, every, settings.batch_size)
    tensors, keyframe = _initial(own)
    members = {
        TRAIN: serialized(attach(train_graph(train, shapes, trained, objective, spec), pruning)),
        EVAL: serialized(eval_graph(evaluate, inputs, objective)),
        INFER: serialized(infer_graph(infer, inputs, objective)),
        PARAMS: keyframe,
    }
    manifest = Manifest(
        format=FORMAT,
        name=settings.name or network.name,
        tensors=tensors[: len(trained)],
        statistics=tensors[len(trained) :],
        data=objective.schema(settings.axes),
        loss=objective.loss,
        class_weights=objective.class_weights,
        threshold_share=objective.threshold_share,
        optimizer=spec,
        learning_rate=settings.learning_rate,
        batch_size=settings.batch_size,
        quantize=options.quantize,
        opset=network.opset,
        files=bundle.describe(members),
    )
    return CompiledBundle(manifest, members, pruning, network.notes)


def _check(settings: Settings) -> None:
    if not 0.0 < settings.learning_rate < np.inf:
        raise OptionError(f"learning rate {settings.learning_rate} is not a positive number")
    if settings.batch_size < 1:
        raise OptionError(f"batch size {settings.batch_size} is not positive")


def _initial(parameters: Mapping[str, Array]) -> tuple[tuple[TensorSpec, ...], bytes]:
    specs, values = [], []
    for name, value in parameters.items():
        exponent = grid.step_exponent(float(np.abs(value).max()), GRID_BITS)
        specs.append(TensorSpec(name, tuple(value.shape), exponent))
        values.append(grid.to_grid(value.astype(np.float32), exponent))
    return tuple(specs), grid.encode_keyframe(0, values)
