"""Models on their way to a fleet and back. onnx and torch are imported only when a model asks for them."""

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aggregator.sdk.calls import Record
from aggregator.sdk.errors import FleetError

BUNDLE_MAGIC = b"PK"  # a bundle is a zip archive, which no ONNX file begins as
TARGETS = {
    "accuracy": "target_accuracy",
    "loss": "target_loss",
    "versions": "versions_max",
    "deadline_s": "deadline_s",
    "patience": "patience",
}

# Options of compile_training; `name` and `optimizer` are fields of a job as well.
COMPILED = frozenset({
    "output", "shape", "class_weights", "threshold_share", "momentum", "weight_decay", "proximal", "clip_norm",
    "learning_rate", "trainable", "quantize", "batch_norm", "batch_size", "n_classes", "normalize", "axes",
})  # fmt: skip


class Model:
    """A trained model: `bytes(model)` or `model.data` is an ONNX file, made of `version` in format `kind`."""

    def __init__(self, data: bytes, version: int, kind: str) -> None:
        self.data = data
        self.version = version
        self.kind = kind

    def __bytes__(self) -> bytes:
        return self.data

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        return f"<Model version {self.version}, {self.kind}, {len(self.data):,} B>"

    def save(self, path: str | Path) -> Path:
        """Write the ONNX file whole or not at all, and return its path; raise FleetError (`bad_argument`)."""
        path = Path(path)
        part = path.with_name(f".{path.name}.part")
        try:
            part.write_bytes(self.data)
            part.replace(path)
        except OSError as error:
            raise FleetError("bad_argument", f"{path} cannot be written: {error.strerror}") from error
        finally:
            part.unlink(missing_ok=True)
        return path


def bundle_of(model: Any, *, name: str, loss: str | None, example: Any, options: Record) -> bytes:
    """The bytes of a training bundle of what a user calls a model; raise FleetError (`bad_model`).

    That is an ONNX file or `ModelProto`, a `torch.nn.Module` with an `example` input (a batch, as float32), or a
    bundle: its path, its bytes, or what `compile_training` gives. `loss` and `options` are for
    compiling (`compile_training`).
    """
    if isinstance(model, str | Path):
        try:
            with Path(model).open("rb") as file:
                built = file.read(len(BUNDLE_MAGIC)) == BUNDLE_MAGIC
        except OSError as error:
            raise FleetError("bad_model", f"{model}: {error.strerror}") from error
        model = Path(model).read_bytes() if built else model
    if callable(getattr(model, "to_bytes", None)) and hasattr(model, "manifest"):
        model = model.to_bytes()
    if isinstance(model, bytes):
        if loss is not None or options:
            raise FleetError(
                "bad_model", "a bundle has its loss and options already; give the ONNX model instead"
            )
        return model
    if _is_torch(model):
        model = _from_torch(model, example)
    elif not isinstance(model, str | Path) and not hasattr(model, "graph"):
        raise FleetError(
            "bad_model",
            f"{type(model).__name__} is no type of a model: give an ONNX file or ModelProto, "
            "a torch module with an example, or a bundle",
        )
    from firmware_tools.compiler import compile_training  # noqa: PLC0415 - onnx is slow to load
    from firmware_tools.errors import ToolError  # noqa: PLC0415

    wanted: dict[str, Any] = {"name": name, **({} if loss is None else {"loss": loss}), **options}
    try:
        return compile_training(model, **wanted).to_bytes()
    except ToolError as error:
        raise FleetError("bad_model", str(error)) from error
    except TypeError as error:  # an option that is none
        raise FleetError("bad_model", f"compile_options: {error}") from error


def fields_of(spec: Record, target: Record | None, options: Record | None) -> Record:
    """The fields of a job, whose `end` `target` adds to; raise FleetError (`bad_argument`).

    `target` has any of `accuracy`, `loss`, `versions`, `deadline_s` and `patience`.
    """
    for what, value in (("target", target), ("compile_options", options)):
        if value is not None and not isinstance(value, Mapping):
            raise FleetError("bad_argument", f"{what} is {value!r:.80}; give a dict")
    for name in sorted(COMPILED & spec.keys()):
        raise FleetError(
            "bad_argument",
            f"{name} says how a model is compiled: give compile_options={{{name!r}: …}} instead",
        )
    unknown = [name for name in target or {} if name not in TARGETS]
    if unknown:
        raise FleetError("bad_argument", f"target has no {unknown[0]!r}; it has: {', '.join(TARGETS)}")
    end = {TARGETS[name]: value for name, value in (target or {}).items()}
    return {**spec, **({"end": {**spec.get("end", {}), **end}} if end else {})}


def _is_torch(model: Any) -> bool:
    torch = sys.modules.get("torch")  # whoever has a module has imported it
    return torch is not None and isinstance(model, torch.nn.Module)


def _from_torch(model: Any, example: Any) -> Any:
    """A torch module as ONNX, its batch open, its normalisations kept (docs/exporters.md)."""
    import torch  # noqa: PLC0415 - only who has a torch module has torch

    if example is None:
        raise FleetError("bad_model", "a torch module needs example=, a batch of inputs such as x[:2]")
    if not isinstance(example, torch.Tensor):
        example = torch.as_tensor(example)
    if example.ndim < 2 or len(example) < 2:
        raise FleetError("bad_model", "example is one batch of at least two samples, such as x[:2]")
    was_training = model.training
    with tempfile.TemporaryDirectory(prefix="fedfleet-") as directory:
        path = Path(directory) / "model.onnx"
        try:
            torch.onnx.export(
                model.eval(),
                (example.float(),),
                str(path),
                dynamo=True,
                optimize=False,
                verbose=False,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
        except ModuleNotFoundError as error:
            raise FleetError("bad_model", f"exporting from torch needs: pip install {error.name}") from error
        except Exception as error:
            raise FleetError("bad_model", f"torch cannot export this module: {error}") from error
        finally:
            model.train(was_training)
        import onnx  # noqa: PLC0415

        return onnx.load(path)
