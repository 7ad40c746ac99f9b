"""What rounding costs: accuracy in training against that of the exported INT8 file, its size and its speed.

    python bench/quantization.py [--seeds 3] [--steps 1200]

The demo's 1-D CNN, plain and with BatchNormalization, trained on the smartwatch recordings of eight people in one place
and judged on two others, with each kind of --quantize. One thread; JSON lines on stdout, a table at the end.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from aggregator.demo import data, plan
from aggregator.demo.baselines import Split, split_shards
from edge_client.bundle import INFER
from edge_client.runtime import ort
from edge_client.samples import batches
from edge_client.training import TrainingSession
from edge_client.wire import grid
from firmware_tools.compiler import compile_training
from firmware_tools.export import export_model
from firmware_tools.zoo import cnn1d

KINDS = ("none", "int8-weights", "int8")
RUNS = 20  # passes over the unseen windows; the fastest counts


def answers(model: bytes, x: np.ndarray) -> tuple[np.ndarray, float]:
    """Classes that an exported model gives, and microseconds a window in batches of 32."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    best = float("inf")
    for _ in range(RUNS):
        began = time.perf_counter()
        parts = [session.run(None, {"x": x[i : i + 32]})[0] for i in range(0, len(x), 32)]
        best = min(best, time.perf_counter() - began)
    return np.concatenate(parts).argmax(axis=1), 1e6 * best / len(x)


def measure(
    folder: Path, kind: str, seed: int, steps: int, part: Split, unseen: data.Shard, *, norm: bool
) -> dict:
    """Train one network and export it in every form it has."""
    network = cnn1d(channels=6, length=data.WINDOW, classes=data.CLASSES, seed=seed, batch_norm=norm)
    compiled = compile_training(network, quantize=kind, normalize=(data.MEAN, data.DEVIATION))
    session = TrainingSession(compiled.save(folder / "net.bundle"), flush_denormals=True)
    deal = batches(np.arange(len(part.y)), plan.BATCH_SIZE, np.random.default_rng(seed))
    times = []
    for _ in range(steps):
        rows = next(deal)
        x, y = part.x[rows], part.y[rows]
        began = time.perf_counter()
        session.step(x, y, plan.LEARNING_RATE)
        times.append(time.perf_counter() - began)
    table = compiled.manifest.table
    values = [grid.to_grid(session.params[t.name], t.step_exp) for t in table]
    session.load(
        {t.name: grid.from_grid(v, t.step_exp).reshape(t.shape) for t, v in zip(table, values, strict=True)}
    )
    row = {"net": "cnn1d+norm" if norm else "cnn1d", "quantize": kind, "seed": seed}
    row["step_ms"] = 1e3 * float(np.median(times))
    row["trained"] = 100 * session.evaluate(unseen.x, unseen.y).accuracy
    for form in ("fp32",) if kind == "none" else ("fp32", "int8"):
        model = export_model(compiled.members[INFER], compiled.manifest, values, format=form)
        found, row[f"{form}_us"] = answers(model, unseen.x)
        row[form], row[f"{form}_bytes"] = 100 * float((found == unseen.y).mean()), len(model)
    return row


def main() -> None:
    """Measure all kinds over the seeds."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1200)
    options = parser.parse_args()
    shards, unseen = data.load()
    part = split_shards(shards)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for norm in (False, True):
            for kind in KINDS:
                for seed in range(options.seeds):
                    rows.append(measure(Path(folder), kind, seed, options.steps, part, unseen, norm=norm))
                    print(json.dumps(rows[-1]), flush=True)
    print(
        "| net | quantize | step ms | as trained | fp32 file | INT8 file | largest gap | INT8/fp32 bytes | INT8/fp32 time |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for net in ("cnn1d", "cnn1d+norm"):
        for kind in KINDS:
            mine = [r for r in rows if (r["net"], r["quantize"]) == (net, kind)]
            mean = {
                k: float(np.mean([r[k] for r in mine]))
                for k in mine[0]
                if k not in ("net", "quantize", "seed")
            }
            cells = [net, kind, f"{mean['step_ms']:.2f}", f"{mean['trained']:.1f}", f"{mean['fp32']:.1f}"]
            if kind != "none":
                gap = max(abs(r["int8"] - r["trained"]) for r in mine)
                cells += [
                    f"{mean['int8']:.1f}",
                    f"{gap:.2f}",
                    f"{mean['int8_bytes'] / mean['fp32_bytes']:.2f}",
                ]
                cells.append(f"{mean['int8_us'] / mean['fp32_us']:.2f}")
            print("| " + " | ".join(cells + ["-"] * (9 - len(cells))) + " |")


if __name__ == "__main__":
    main()
