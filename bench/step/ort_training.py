"""Trains one network with onnxruntime-training 1.19.2, its last version; takes turns as worker.py does.

    PYTHON bench/step/ort_training.py generate|train NET FOLDER

PYTHON is that of an environment with `onnxruntime-training==1.19.2 onnx==1.16.2 "numpy<2"` (Python 3.9 to 3.11 on
x86-64); fedfleet is not needed in it. FOLDER holds NET.onnx and NET.npz. Its SGD has no momentum: it computes less
than the others. The package asks for PyTorch when it is imported as a whole; its modules do without.
"""

import time

BEGAN = time.perf_counter()

import importlib  # noqa: E402
import sys  # noqa: E402
import types  # noqa: E402
from pathlib import Path  # noqa: E402

import onnxruntime as ort  # noqa: E402
from worker import RATE, Step, serve  # noqa: E402


def part(name: str) -> types.ModuleType:
    """A module of onnxruntime.training without what its package imports first."""
    package = types.ModuleType("onnxruntime.training")
    package.__path__ = [str(Path(ort.__file__).parent / "training")]
    sys.modules.setdefault("onnxruntime.training", package)
    return importlib.import_module(f"onnxruntime.training.{name}")


def generate(name: str, folder: Path) -> None:
    """Write the artefacts: graphs for training, evaluation and the optimiser, and a checkpoint."""
    import onnx  # noqa: PLC0415 - only here: it is no part of training

    artifacts = part("artifacts")
    model = onnx.load(folder / f"{name}.onnx")
    floats = [t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    trained = [name for name in floats if not name.endswith((".mean", ".variance"))]
    place = folder / f"{name}.ort"
    place.mkdir(exist_ok=True)
    artifacts.generate_artifacts(
        model, requires_grad=trained, loss=artifacts.LossType.CrossEntropyLoss,
        optimizer=artifacts.OptimType.SGD, artifact_directory=str(place),
    )  # fmt: skip


def trainer(name: str, folder: Path) -> Step:
    """The package's own module and optimiser."""
    place = folder / f"{name}.ort"
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    state = part("api.checkpoint_state").CheckpointState.load_checkpoint(place / "checkpoint")
    model = part("api.module").Module(
        place / "training_model.onnx", state, place / "eval_model.onnx", session_options=options
    )
    optimizer = part("api.optimizer").Optimizer(place / "optimizer_model.onnx", model)
    optimizer.set_learning_rate(RATE)
    model.train()

    def step(x: object, y: object) -> float:
        loss = float(model(x, y))
        optimizer.step()
        model.lazy_reset_grad()
        return loss

    return step


def main() -> None:
    """Generate in one process, train in another."""
    what, name, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    if what == "generate":
        generate(name, folder)
        print("{}")
    else:
        serve(trainer(name, folder), folder / f"{name}.npz", BEGAN)


if __name__ == "__main__":
    main()
