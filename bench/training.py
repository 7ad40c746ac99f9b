"""A training step of fedfleet beside PyTorch eager: time, memory, import; and what the machine allows.

    python bench/training.py [--nets pilot,cnn1d,…] [--runs 5] [--steps 60] [--out bench/results/training.json]
                             [--quiet GFLOPS] [--ort-training PYTHON]

Same network, same initial parameters, same data, same optimiser (SGD, momentum 0.9), batch 32, one thread. Each
framework trains in a process of its own, and in each run the processes take turns of a few steps, so that a slow
second of the machine is slow for all. Reported are medians over the runs, of times and of the ratios within each run.
The losses of both are compared: a faster step that computes something else would be none. PyTorch comes with
`pip install torch==2.13.0`, a CPU build; it is imported in its own process only. onnxruntime-training is measured
where its interpreter is named (step/ort_training.py says what that needs). With --quiet a run counts only when a
large matrix product before and after it ran at that many GFLOP/s: other work on the machine spoils no figure.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

HERE = Path(__file__).parent / "step"
sys.path.insert(0, str(HERE))

from nets import NETS  # noqa: E402
from turns import MeasurementError, race, run  # noqa: E402

from edge_client.bundle import open_bundle  # noqa: E402
from edge_client.training import initial_params  # noqa: E402
from firmware_tools import compile_training  # noqa: E402
from firmware_tools.arithmetic import multiply_adds  # noqa: E402
from firmware_tools.autodiff.graph import Graph, shapes_of  # noqa: E402

BATCH = 32
SAMPLES = 512
SEED = 1
VARIANTS = {"": {"quantize": "none"}, "@int8": {"quantize": "int8-weights"}, "@head": {"quantize": "none"}}
BOUND = ("resnet8", "ds_cnn")  # whose bare kernels are timed too
DISCARDED_MAX = 200  # runs and pauses while the machine is not quiet; after that every run counts
PAUSE_S = 3
MEASURES = ("ms", "ms_5", "first_step_s", "peak_bytes", "loss")


def prepare(name: str, folder: Path) -> dict[str, Any]:
    """Write the bundles and the data of a network; returns its work and what its backward graphs keep."""
    net, rng = NETS[name], np.random.default_rng(SEED)
    model = net.build()
    kept = {}
    for suffix, options in VARIANTS.items():
        head = suffix == "@head"
        compiled = compile_training(
            model, trainable=("dense.*",) if head else ("*",), batch_norm="frozen" if head else "train",
            batch_size=BATCH, **options,
        )  # fmt: skip
        compiled.save(folder / f"{name}{suffix}.bundle")
        kept[suffix] = compiled.pruning.chosen.activations_bytes
    start = initial_params(open_bundle(folder / f"{name}.bundle"))
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    x = rng.standard_normal((SAMPLES, *net.sample)).astype(np.float32)
    y = rng.integers(0, net.classes, SAMPLES)
    onnx.save(model, folder / f"{name}.onnx")
    np.savez(folder / f"{name}.npz", **{**values, **start}, **{"x%": x, "y%": y})
    return {"gflop": 2e-9 * multiply_adds_of(model, net.sample), "activations_bytes": kept}


def multiply_adds_of(model: onnx.ModelProto, sample: tuple[int, ...]) -> int:
    """Multiply-adds of a step: forward, and twice that backward but for the input gradient of the first layer."""
    graph = Graph(model.opset_import[0].version)
    graph.nodes = list(model.graph.node)
    graph.constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    shapes = shapes_of(graph, {"x": (BATCH, *sample)}, ["logits"])
    forward = multiply_adds(graph.nodes, shapes, BATCH) or 0
    first = multiply_adds([n for n in graph.nodes if n.op_type == "Conv"][:1], shapes, BATCH) or 0
    for node in graph.nodes:
        if node.op_type in ("GRU", "LSTM"):
            length, batch = shapes[node.input[0]][:2]
            sizes = [length * batch * graph.constants[i].size for i in node.input[1:3]]
            forward, first = forward + sum(sizes), sizes[0]
    return 3 * forward - first


def commands(name: str, folder: Path, *, torch: bool, ort_training: str) -> tuple[dict[str, list[str]], str]:
    """The process of each framework and variant, and why onnxruntime-training is not among them."""
    worker = [sys.executable, str(HERE / "worker.py")]
    found = {"fedfleet": [*worker, "fedfleet", name, str(folder)]}
    refused = ""
    if torch:
        found["torch"] = [*worker, "torch", name, str(folder)]
    if ort_training:
        try:
            run("ort_training.py", "generate", name, folder, python=ort_training)
            found["ort-training"] = [ort_training, str(HERE / "ort_training.py"), "train", name, str(folder)]
        except MeasurementError as error:
            refused = str(error)
    for suffix in ("@int8", "@head"):
        found[f"fedfleet{suffix}"] = [*worker, "fedfleet", f"{name}{suffix}", str(folder)]
    return found, refused


def measured(plan: dict[str, list[str]], *, runs: int, steps: int, quiet: float) -> dict[str, Any]:
    """Medians over the runs, and of the ratios to fedfleet within each; all single times beside them.

    A run counts when the machine was quiet before and after it: a matrix product ran at `quiet` GFLOP/s or more.
    """
    races: list[dict[str, dict[str, Any]]] = []
    peaks: list[float] = []
    discarded = 0
    while len(races) < runs:
        before = run("kernels.py", "peak")
        if before < quiet and discarded < DISCARDED_MAX:
            discarded += 1
            time.sleep(PAUSE_S)
            continue
        found = race(plan, steps)
        after = run("kernels.py", "peak")
        if after < quiet and discarded < DISCARDED_MAX:
            discarded += 1
            continue
        races.append(found)
        peaks += [before, after]
    row: dict[str, Any] = {"peak_gflops": median(peaks), "peak_gflops_all": peaks, "discarded": discarded}
    for key in plan:
        row[key] = {m: median(r[key][m] for r in races) for m in MEASURES}
        row[key]["ms_all"] = [round(r[key]["ms"], 3) for r in races]
        for m in MEASURES[:-1]:
            row[key][f"{m}_ratio"] = median(r[key][m] / r["fedfleet"][m] for r in races)
    return row


def report(name: str, row: dict[str, Any]) -> None:
    """One network's figures for people."""
    mine, peak = row["fedfleet"], row["peak_gflops"]
    rate, best = (row["gflop"] / mine[k] * 1e3 for k in ("ms", "ms_5"))
    print(f"\n{name}: {row['gflop']:.3f} GFLOP a step; a large matrix product runs at {peak:.0f} GFLOP/s")
    print(f"  {'':14s} {'median ms':>9s} {'best 5 %':>9s}  ratio, in the best 5 %")
    for key in ("fedfleet", "fedfleet@int8", "fedfleet@head", "torch", "ort-training"):
        if key in row:
            it = row[key]
            ratios = f"{it['ms_ratio']:6.2f}  {it['ms_5_ratio']:6.2f}"
            print(f"  {key:14s} {it['ms']:9.2f} {it['ms_5']:9.2f}  {ratios}")
    saved = 100 * (1 - row["activations_bytes"]["@head"] / row["activations_bytes"][""])
    print(f"  {rate:.1f} GFLOP/s, {100 * rate / peak:.0f} % of the product's; {best:.1f} in the best 5 %")
    print(f"  the head alone keeps {saved:.0f} % less of the activations")
    for rival in ("torch", "ort-training"):
        if rival in row:
            it = row[rival]
            memory = f"{mine['peak_bytes'] / 1e6:.0f} against {it['peak_bytes'] / 1e6:.0f} MB (1/{it['peak_bytes_ratio']:.1f})"
            start = f"{mine['first_step_s']:.2f} against {it['first_step_s']:.2f} s (1/{it['first_step_s_ratio']:.1f})"
            print(f"  {rival}: peak memory {memory}, import and first step {start}")
    if "torch" in row:
        print(f"  last losses {mine['loss']:.6f} and, of PyTorch, {row['torch']['loss']:.6f}")
    if row["refused"]:
        print(f"  ort-training cannot train it: {row['refused'].splitlines()[-1][:120]}")
    if "bound_ms" in row:
        parts = ", ".join(f"{k} {v:.1f}" for k, v in row["bound_ms"].items())
        print(f"  bare kernels {sum(row['bound_ms'].values()):.1f} ms: {parts}")
    total = sum(row["profile_ms"].values())
    top = ", ".join(f"{k} {100 * v / total:.0f} %" for k, v in list(row["profile_ms"].items())[:8])
    print(f"  time goes to {top}")


def main() -> None:
    """Measure the chosen networks, print the tables, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--nets", default=",".join(n for n in NETS if not n.endswith("_plain")))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quiet", type=float, default=0.0, metavar="GFLOPS", help="count only quiet runs")
    parser.add_argument(
        "--ort-training", default="", metavar="PYTHON", help="interpreter that has the package"
    )
    options = parser.parse_args()
    probe = [sys.executable, "-c", "import torch; print(torch.__version__)"]
    torch = subprocess.run(probe, capture_output=True, text=True, check=False)
    if torch.returncode:
        print("PyTorch is not installed (pip install torch==2.13.0): fedfleet is measured without it")
    print(f"seeds: networks 0, data {SEED}; PyTorch {torch.stdout.strip() or 'absent'}")
    rows = {}
    for name in options.nets.split(","):
        with tempfile.TemporaryDirectory() as place:
            row = prepare(name, Path(place))
            plan, refused = commands(
                name, Path(place), torch=not torch.returncode, ort_training=options.ort_training
            )
            row |= measured(plan, runs=options.runs, steps=options.steps, quiet=options.quiet) | {
                "refused": refused
            }
            row["profile_ms"] = run("kernels.py", "profile", name, place)
        if name.removesuffix("_plain") in BOUND:
            row["bound_ms"] = run("kernels.py", "bound", name)
        report(name, row)
        rows[name] = row
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
