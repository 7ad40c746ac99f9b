"""The training bundle as a device opens it: a stored zip of fixed members under one manifest (docs/bundle.md).

Standard library and msgspec only. Writing bundles is `firmware_tools.bundle`'s work.
"""

import hashlib
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from edge_client.wire.limits import FRAME_BYTES_MAX, PARAMETER_COUNT_MAX, TENSOR_COUNT_MAX
from edge_client.wire.messages import DataSchema, Target

FORMAT = 1
MANIFEST = "manifest.json"
TRAIN = "train.onnx"
EVAL = "eval.onnx"
INFER = "infer.onnx"
PARAMS = "params.keyframe"  # version 0 of the model: a KEYFRAME frame
STEPS_TAKEN = "optimizer@steps"  # state of Adam; no parameter has `@` in its name
MEMBERS = (TRAIN, EVAL, INFER, PARAMS)

Loss = Literal["cross_entropy", "bce_with_logits", "mse", "reconstruction"]
Measure = Literal["accuracy", "error", "threshold"]
# What a sample is labelled with, and the figure of Metrics that evaluation gives beside the loss.
TARGETS: dict[Loss, Target] = {
    "cross_entropy": "class",
    "bce_with_logits": "labels",
    "mse": "values",
    "reconstruction": "none",
}
MEASURES: dict[Loss, Measure] = {
    "cross_entropy": "accuracy",
    "bce_with_logits": "accuracy",
    "mse": "error",
    "reconstruction": "threshold",
}
# What zipfile raises for bytes from a stranger: RuntimeError for encryption and for versions it does not know.
_ZIP_ERRORS = (OSError, EOFError, RuntimeError, ValueError, struct.error, zipfile.BadZipFile)


class BundleError(Exception):
    """The file is not a bundle this software can open; the message names what is wrong and where."""


class TensorSpec(msgspec.Struct, frozen=True):
    """A tensor of the model: its name in the graphs, its shape, and its grid step 2**step_exp."""

    name: str
    shape: tuple[int, ...]
    step_exp: int

    @property
    def size(self) -> int:
        """Number of values."""
        size = 1
        for extent in self.shape:
            size *= extent
        return size


class FileSpec(msgspec.Struct, frozen=True):
    """Digest (SHA-256, hex) and size in bytes of a member."""

    sha256: str
    size: int


class OptimizerSpec(msgspec.Struct, frozen=True):
    """The optimiser compiled into train.onnx; each slot is one state tensor per parameter."""

    kind: Literal["sgd", "momentum", "adam", "adamw"]
    momentum: float = 0.0  # beta 1 of Adam
    weight_decay: float = 0.0
    proximal: float = 0.0  # mu of FedProx; with 0 there are no `<param>@base`
    clip_norm: float = 0.0  # largest L2 norm of all gradients together; 0 for none

    @property
    def adaptive(self) -> bool:
        """Whether it is of Adam's kind, which counts its steps."""
        return self.kind in ("adam", "adamw")

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the state tensors that each parameter has."""
        if self.adaptive:
            return ("m", "v")
        return ("momentum",) if self.kind == "momentum" else ()

    def state(self, parameters: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Name and shape of each state tensor, in the graph's order; all float32, zero at the start.

        `parameters` gives the shape of each trainable tensor.
        """
        slots = {f"{name}@{slot}": shape for slot in self.slots for name, shape in parameters.items()}
        return {**slots, STEPS_TAKEN: ()} if self.adaptive else slots

    def base(self, parameters: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Name and shape of the inputs that hold the parameters as they were when training began."""
        return {f"{name}@base": shape for name, shape in parameters.items()} if self.proximal else {}


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a bundle is, and the fixed names of its graphs' inputs and outputs.

    train.onnx  inputs x, y, learning_rate (scalar), <param>…, <statistic>…, <state>…, <base>…
                outputs loss (scalar), <param>@next…, <statistic>@next…, <state>@next…
                <state> and <base> are what OptimizerSpec.state and .base name
    eval.onnx   inputs x, y, <param>…, <statistic>…
                outputs loss (scalar, mean), loss_weight (scalar, what it counts for among batches), and by loss
                correct (scalar int64), error (scalar) or errors [batch]
    infer.onnx  inputs x, <param>…, <statistic>…; output logits, prediction or reconstruction with errors [batch]

    y is int64 [batch] for cross_entropy, uint8 [batch, labels] for bce_with_logits, float32 for mse; graphs of
    a reconstruction have none. docs/bundle.md tells more of each.

    `tensors` are trained; `statistics` are what training observes: running means and deviations of
    normalisation layers, ranges of activations. Both are the model that versions and devices share.
    """

    format: int
    name: str
    tensors: tuple[TensorSpec, ...]
    data: DataSchema
    loss: Loss
    optimizer: OptimizerSpec
    learning_rate: float
    batch_size: int
    quantize: Literal["int8", "int8-weights", "none"]
    opset: int
    files: dict[str, FileSpec]
    statistics: tuple[TensorSpec, ...] = ()
    class_weights: tuple[float, ...] = ()  # of the loss, one a class or label; empty when all count the same
    threshold_share: float | None = None  # of the samples, whose reconstruction error the threshold bounds

    @property
    def measure(self) -> Measure:
        """The figure that evaluation gives beside the loss."""
        return MEASURES[self.loss]

    @property
    def table(self) -> tuple[TensorSpec, ...]:
        """All tensors of the model, in the order of every frame: the trained ones, then the statistics."""
        return (*self.tensors, *self.statistics)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of values of each tensor, in table order."""
        return tuple(t.size for t in self.table)

    @property
    def parameters(self) -> int:
        """Number of trainable values."""
        return sum(t.size for t in self.tensors)


class Bundle:
    """An opened bundle; `member` verifies what it reads."""

    def __init__(self, manifest: Manifest, path: Path) -> None:
        self.manifest = manifest
        self.path = path

    def member(self, name: str) -> bytes:
        """Bytes of a member; raise BundleError when they do not have the manifest's digest."""
        spec = self.manifest.files[name]
        with zipfile.ZipFile(self.path) as archive:
            data = _read(archive, name, spec.size, self.path)
        if hashlib.sha256(data).hexdigest() != spec.sha256:
            raise BundleError(f"{self.path}: {name} does not have the digest in {MANIFEST}")
        return data


def open_bundle(path: Path) -> Bundle:
    """Open a bundle and check its manifest; raise BundleError."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if sorted(names) != sorted((MANIFEST, *MEMBERS)):
                raise BundleError(f"{path}: holds {sorted(names)} instead of {sorted((MANIFEST, *MEMBERS))}")
            raw = _read(archive, MANIFEST, 1024 * 1024, path)
    except FileNotFoundError:
        raise BundleError(f"{path}: no such file") from None
    except _ZIP_ERRORS as error:
        raise BundleError(f"{path}: not a bundle ({error})") from error
    try:
        manifest = msgspec.json.decode(raw, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: {MANIFEST}: {error}") from error
    _check(manifest, path)
    return Bundle(manifest, path)


def _read(archive: zipfile.ZipFile, name: str, size_max: int, path: Path) -> bytes:
    entry = archive.getinfo(name)
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > min(size_max, FRAME_BYTES_MAX):
        raise BundleError(f"{path}: {name} is compressed or larger than the {size_max} B it may have")
    try:
        return archive.read(entry)
    except _ZIP_ERRORS as error:
        raise BundleError(f"{path}: {name} is damaged ({error})") from error


def _check(manifest: Manifest, path: Path) -> None:
    if manifest.format != FORMAT:
        raise BundleError(f"{path}: bundle format {manifest.format}; this software opens format {FORMAT}")
    if manifest.data.target != TARGETS[manifest.loss]:
        raise BundleError(
            f"{path}: loss {manifest.loss} with target {manifest.data.target} instead of {TARGETS[manifest.loss]}"
        )
    if (manifest.threshold_share is None) == (manifest.measure == "threshold"):
        raise BundleError(f"{path}: loss {manifest.loss} with threshold share {manifest.threshold_share}")
    if sorted(manifest.files) != sorted(MEMBERS):
        raise BundleError(f"{path}: the manifest lists {sorted(manifest.files)} instead of {sorted(MEMBERS)}")
    table = manifest.table
    if not manifest.tensors or len(table) > TENSOR_COUNT_MAX or sum(manifest.sizes) > PARAMETER_COUNT_MAX:
        raise BundleError(
            f"{path}: {len(table)} tensors of {sum(manifest.sizes)} values; "
            f"1 to {TENSOR_COUNT_MAX} tensors and {PARAMETER_COUNT_MAX} values are possible"
        )
    if any(extent < 1 for tensor in table for extent in tensor.shape):
        raise BundleError(f"{path}: a tensor has an empty dimension")
    if len({tensor.name for tensor in table}) < len(table):
        raise BundleError(f"{path}: two tensors have one name")
