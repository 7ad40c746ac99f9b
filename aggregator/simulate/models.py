"""The model that a simulation trains, as a bundle."""

from pathlib import Path
from typing import Any

import onnx

from aggregator.demo import plan
from aggregator.simulate.config import ModelSection
from aggregator.simulate.errors import SimulationError
from aggregator.simulate.sources import Data
from edge_client.bundle import Bundle, BundleError, open_bundle
from edge_client.target import check_batch
from firmware_tools.compiler import compile_training
from firmware_tools.errors import ToolError
from firmware_tools.layers import Net
from firmware_tools.zoo import cnn1d

KERNEL = 5  # of the builtin CNN, as LeNet-5's (LeCun et al. 1998)
OPTIONS = ("loss", "optimizer", "momentum", "weight_decay", "proximal", "clip_norm", "quantize", "trainable")
NORMALIZE = ("mean", "deviation")
CHECKED = 4  # samples whose form is compared with the bundle's; all have the same


def build(section: ModelSection, data: Data, seed: int, path: Path) -> Bundle:
    """Write the bundle to `path` and open it; raise SimulationError.

    A builtin model's initial values follow from the seed.
    """
    try:
        path.write_bytes(_bytes(section, data, seed))
        bundle = open_bundle(path)
    except (BundleError, ToolError, OSError) as error:
        raise SimulationError(f"model: {error}") from error
    for what, x, y in (("data", data.x, data.y), ("test data", data.x_test, data.y_test)):
        labels = None if y is None or bundle.manifest.data.target == "none" else y
        try:
            check_batch(bundle.manifest.data, x[:CHECKED], None if labels is None else labels[:CHECKED])
            check_batch(bundle.manifest.data, x[:0], None if labels is None else labels[:0])
            if labels is not None:
                check_batch(bundle.manifest.data, x, labels)
        except ValueError as error:
            raise SimulationError(f"the {what} does not fit the model: {error}") from error
    return bundle


def _bytes(section: ModelSection, data: Data, seed: int) -> bytes:
    given = [name for name in (*OPTIONS, *NORMALIZE) if getattr(section, name) is not None]
    if section.bundle is not None or section.builtin == "exercise":
        if given:
            raise SimulationError(
                f"model.{given[0]}: a bundle is compiled already; give it with onnx or builtin"
            )
        return plan.bundle().to_bytes() if section.bundle is None else Path(section.bundle).read_bytes()
    options: dict[str, Any] = {name: getattr(section, name) for name in OPTIONS if name in given}
    if section.mean is not None or section.deviation is not None:
        if section.mean is None or section.deviation is None:
            raise SimulationError("model: mean and deviation go together; give both")
        options["normalize"] = (section.mean, section.deviation)
    model: onnx.ModelProto | str = section.onnx if section.onnx is not None else _builtin(section, data, seed)
    return compile_training(model, name=section.builtin or "", **options).to_bytes()


def _builtin(section: ModelSection, data: Data, seed: int) -> onnx.ModelProto:
    if data.y is None or data.y.ndim != 1 or data.y.dtype.kind != "i":
        raise SimulationError("model.builtin: these models tell classes apart, but y is not int64 [n]")
    classes = max(2, int(data.y.max()) + 1)
    shape = data.x.shape[1:]
    if section.builtin == "mlp":
        return mlp(shape, classes, section.hidden, seed)
    if len(shape) == 2:
        return cnn1d(shape[0], shape[1], classes, section.channels, KERNEL, seed)
    if len(shape) == 3:
        return cnn(shape, classes, section.channels, section.dense, seed)
    raise SimulationError(
        f"model.builtin cnn: samples are [channels, length] or [channels, height, width], not {list(shape)}"
    )


def mlp(shape: tuple[int, ...], classes: int, hidden: tuple[int, ...], seed: int) -> onnx.ModelProto:
    """Dense layers with ReLU on flattened samples, float32 [N, *shape] to [N, classes]."""
    net = Net("mlp", shape, seed=seed)
    width = 1
    for extent in shape:
        width *= extent
    x = net.add("Flatten", "x")
    for i, units in enumerate(hidden, 1):
        x = net.add("Relu", net.dense(x, f"dense{i}", (units, width)))
        width = units
    net.dense(x, "output", (classes, width), output="logits")
    return net.model((classes,))


def cnn(
    shape: tuple[int, ...], classes: int, channels: tuple[int, ...], dense: int, seed: int
) -> onnx.ModelProto:
    """LeNet's form, [N, C, H, W] to [N, classes]: 5x5 convolutions with ReLU and pooling, and a dense layer.

    With 8 and 16 channels and 64 units it has 54,314 parameters on 28x28x1.
    """
    net = Net("cnn", shape, seed=seed)
    x, (width, height, length) = "x", shape
    for i, count in enumerate(channels, 1):
        x = net.add("Relu", net.conv(x, f"conv{i}", (count, width, KERNEL, KERNEL), pads=[KERNEL // 2] * 4))
        x = net.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
        width, height, length = count, height // 2, length // 2
    if not height * length:
        raise SimulationError(
            f"model.channels: {len(channels)} poolings leave nothing of samples {list(shape)}"
        )
    x = net.add("Relu", net.dense(net.add("Flatten", x), "dense", (dense, width * height * length)))
    net.dense(x, "output", (classes, dense), output="logits")
    return net.model((classes,))
