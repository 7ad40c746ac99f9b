"""Measures onnxruntime-training 1.19.2, its last version, training one network; prints one line of JSON.

    PYTHON bench/step/ort_training.py ort-training NET FOLDER STEPS

PYTHON is that of an environment with `onnxruntime-training==1.19.2 onnx==1.16.2 "numpy<2"` (Python 3.9 to 3.11 on
x86-64); fedfleet is not needed in it. FOLDER holds NET.onnx and NET.npz. Its SGD has no momentum: it computes less
than the others. The package asks for PyTorch when it is imported as a whole; its modules do without.
"""

import time

BEGAN = time.perf_counter()  # as in worker.py

import importlib  # noqa: E402
import json  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import types  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import onnxruntime as ort  # noqa: E402

BATCH, RATE, WARM_UP = 32, 0.01, 5  # as in worker.py


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
    fixed = (".mean", ".variance")
    trained = [
        t.name
        for t in model.graph.initializer
        if t.data_type == onnx.TensorProto.FLOAT and not t.name.endswith(fixed)
    ]
    place = folder / f"{name}.ort"
    place.mkdir(exist_ok=True)
    artifacts.generate_artifacts(
        model, requires_grad=trained, loss=artifacts.LossType.CrossEntropyLoss,
        optimizer=artifacts.OptimType.SGD, artifact_directory=str(place),
    )  # fmt: skip


def main() -> None:
    """Generate in a process of its own, then train and print what it took."""
    name, folder, steps = sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
    if steps == 0:
        generate(name, folder)
        return
    place = folder / f"{name}.ort"
    if not place.exists():
        subprocess.run([sys.executable, __file__, *sys.argv[1:4], "0"], check=True)
        subprocess.run(
            [sys.executable, *sys.argv], check=True
        )  # anew: making the artefacts is no part of a step
        return
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    state = part("api.checkpoint_state").CheckpointState.load_checkpoint(place / "checkpoint")
    model = part("api.module").Module(
        place / "training_model.onnx", state, place / "eval_model.onnx", session_options=options
    )
    optimizer = part("api.optimizer").Optimizer(place / "optimizer_model.onnx", model)
    optimizer.set_learning_rate(RATE)
    with np.load(folder / f"{name}.npz") as file:
        x, y = file["x%"], file["y%"]
    model.train()
    losses, times, first = [], [], 0.0
    for i in range(WARM_UP + steps):
        rows = np.arange(i * BATCH, (i + 1) * BATCH) % len(y)
        batch = x[rows], y[rows]
        start = time.perf_counter()
        losses.append(float(model(*batch)))
        optimizer.step()
        model.lazy_reset_grad()
        end = time.perf_counter()
        times.append((end - start) * 1e3)
        first = first or end - BEGAN
    low, median, high = np.percentile(times[WARM_UP:], [5, 50, 95])
    peak = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024
    result = {
        "framework": "ort-training", "net": name, "ms": median, "ms_5": low, "ms_95": high, "first_step_s": first,
        "peak_bytes": peak, "losses": [losses[0], losses[-1]],
    }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
