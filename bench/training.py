"""A training step of fedfleet beside PyTorch eager: time, memory, import; and what the machine allows.

    python bench/training.py [--nets pilot,cnn1d,…] [--runs 5] [--steps 60] [--out bench/results/training.json]
                             [--ort-training PYTHON]

Same network, same initial parameters, same data, same optimiser (SGD, momentum 0.9), batch 32, one thread. Each
measurement is a process of its own, and the frameworks take turns, so that a slow minute of the machine is slow for
both. Reported are medians over the runs. The losses of both are compared: a faster step that computes something
else would be none. PyTorch comes with `pip install torch==2.13.0`, a CPU build; it is imported in its own process only.
onnxruntime-training is measured where its interpreter is named (step/ort_training.py says what that needs).
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx

HERE = Path(__file__).parent / "step"
sys.path.insert(0, str(HERE))

from nets import NETS  # noqa: E402
from onnx import numpy_helper  # noqa: E402

from edge_client.bundle import open_bundle  # noqa: E402
from edge_client.training import initial_params  # noqa: E402
from firmware_tools import compile_training  # noqa: E402
from firmware_tools.arithmetic import multiply_adds  # noqa: E402
from firmware_tools.autodiff.graph import Graph, shapes_of  # noqa: E402

BATCH = 32
SAMPLES = 512
SEED = 1
VARIANTS = {"": {"quantize": "none"}, "@int8": {"quantize": "int8-weights"}, "@head": {"quantize": "none"}}
BOUND = ("resnet8", "ds_cnn")
TIMEOUT_S = 600
REASON_MAX = 2000  # characters of a failed process's last words


def prepare(name: str, folder: Path) -> dict[str, Any]:
    """Write the bundles and the data of a network; returns what the compiler says of it."""
    net, rng = NETS[name], np.random.default_rng(SEED)
    model = net.build()
    figures = {}
    for suffix, options in VARIANTS.items():
        trainable = ("dense.*",) if suffix == "@head" else ("*",)
        norm = "frozen" if suffix == "@head" else "train"
        compiled = compile_training(model, trainable=trainable, batch_norm=norm, batch_size=BATCH, **options)
        compiled.save(folder / f"{name}{suffix}.bundle")
        figures[suffix] = compiled.pruning.chosen.activations_bytes
    start = initial_params(open_bundle(folder / f"{name}.bundle"))
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    x = rng.standard_normal((SAMPLES, *net.sample)).astype(np.float32)
    y = rng.integers(0, net.classes, SAMPLES)
    onnx.save(model, folder / f"{name}.onnx")
    np.savez(folder / f"{name}.npz", **{**values, **start}, **{"x%": x, "y%": y})
    return {"gflop": 2e-9 * multiply_adds_of(name), "activations_bytes": figures}


def multiply_adds_of(name: str) -> int:
    """Multiply-adds of a step: forward, and twice that backward but for the input gradient of the first layer."""
    model, net = NETS[name].build(), NETS[name]
    graph = Graph(model.opset_import[0].version)
    graph.nodes = list(model.graph.node)
    graph.constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    shapes = shapes_of(graph, {"x": (BATCH, *net.sample)}, ["logits"])
    forward = multiply_adds(graph.nodes, shapes, BATCH) or 0
    first = multiply_adds([n for n in graph.nodes if n.op_type == "Conv"][:1], shapes, BATCH) or 0
    for node in graph.nodes:
        if node.op_type in ("GRU", "LSTM"):
            length, batch = shapes[node.input[0]][:2]
            sizes = [length * batch * graph.constants[i].size for i in node.input[1:3]]
            forward, first = forward + sum(sizes), sizes[0]
    return 3 * forward - first


class MeasurementError(Exception):
    """A measuring process ended with an error; the message is its last lines."""


def started(script: str, *arguments: object, python: str = sys.executable) -> Any:
    """What a measuring process prints; raises MeasurementError."""
    command = [python, str(HERE / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if done.returncode:
        raise MeasurementError(f"{' '.join(command[1:])}:\n{done.stderr.strip()[-REASON_MAX:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measured(name: str, folder: Path, options: argparse.Namespace, rivals: Sequence[str]) -> dict[str, Any]:
    """Every framework and variant in turn, as often as asked; medians, with all single results beside them.

    A rival that cannot train the network at all is left out, with its own reason.
    """
    plans = [("fedfleet", name), *((rival, name) for rival in rivals)]
    plans += [("fedfleet", f"{name}@int8"), ("fedfleet", f"{name}@head")]
    lines: dict[str, list[dict[str, Any]]] = {}
    peaks, refused = [], {}
    for _ in range(options.runs):
        peaks.append(started("kernels.py", "peak"))
        for framework, variant in plans:
            script, python = "worker.py", sys.executable
            if framework == "ort-training":
                script, python = "ort_training.py", options.ort_training
            key = framework + variant.removeprefix(name)
            if key in refused:
                continue
            try:
                result = started(script, framework, variant, folder, options.steps, python=python)
            except MeasurementError as error:
                if framework != "ort-training":
                    raise
                refused[key] = str(error)
            else:
                lines.setdefault(key, []).append(result)
    keys = ("ms", "ms_5", "first_step_s", "peak_bytes")
    row: dict[str, Any] = {
        key: {k: median(line[k] for line in found) for k in keys}
        | {"ms_all": [round(line["ms"], 3) for line in found], "losses": found[0]["losses"]}
        for key, found in lines.items()
    }
    return row | {"refused": refused, "peak_gflops": median(peaks)}


def report(name: str, row: dict[str, Any]) -> None:
    """One network's figures for people."""
    mine, theirs = row["fedfleet"], row.get("torch")
    rate = row["gflop"] / mine["ms"] * 1e3
    print(
        f"\n{name}: {row['gflop']:.3f} GFLOP a step; one large matrix product runs at {row['peak_gflops']:.0f} GFLOP/s"
    )
    print(
        f"  fedfleet        {mine['ms']:8.2f} ms   {rate:5.1f} GFLOP/s, {100 * rate / row['peak_gflops']:.0f} % of that"
    )
    print(f"  int8 weights    {row['fedfleet@int8']['ms']:8.2f} ms")
    head, kept = row["fedfleet@head"], row["activations_bytes"]
    saved = 100 * (1 - kept["@head"] / kept[""])
    print(
        f"  head alone      {head['ms']:8.2f} ms   {mine['ms'] / head['ms']:.2f} x faster, {saved:.0f} % less activations kept"
    )
    if theirs:
        gap = abs(mine["losses"][1] - theirs["losses"][1]) / theirs["losses"][1]
        times, quick = (theirs[k] / mine[k] for k in ("ms", "ms_5"))
        print(
            f"  PyTorch eager   {theirs['ms']:8.2f} ms   fedfleet is {times:.2f} x as fast, {quick:.2f} x in each one's best 5 %"
        )
        print(f"                              its last loss differs by {gap:.1e}")
        for what, key, unit in (("peak memory", "peak_bytes", 1e6), ("import + step 1", "first_step_s", 1)):
            label = "MB" if key == "peak_bytes" else "s"
            print(
                f"  {what:15s} {mine[key] / unit:8.2f} {label:2s}   against {theirs[key] / unit:.2f}: 1/{theirs[key] / mine[key]:.1f}"
            )
    if "ort-training" in row:
        other = row["ort-training"]
        print(
            f"  ort-training    {other['ms']:8.2f} ms   fedfleet is {other['ms'] / mine['ms']:.2f} x as fast; {other['peak_bytes'] / 1e6:.0f} MB"
        )
    elif row["refused"]:
        print(f"  ort-training    cannot train it: {row['refused']['ort-training'].splitlines()[-1][:100]}")
    if "bound_ms" in row:
        parts = ", ".join(f"{k} {v:.1f}" for k, v in row["bound_ms"].items())
        print(f"  bare kernels    {sum(row['bound_ms'].values()):8.2f} ms   {parts}")
    total = sum(row["profile_ms"].values())
    top = ", ".join(f"{k} {100 * v / total:.0f} %" for k, v in list(row["profile_ms"].items())[:8])
    print(f"  time goes to    {top}")


def main() -> None:
    """Measure the chosen networks, print the tables, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--nets", default=",".join(n for n in NETS if not n.endswith("_plain")))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--out", type=Path)
    parser.add_argument(
        "--ort-training", default="", metavar="PYTHON", help="interpreter that has onnxruntime-training"
    )
    options = parser.parse_args()
    probe = [sys.executable, "-c", "import torch; print(torch.__version__)"]
    torch = subprocess.run(probe, capture_output=True, text=True, check=False)
    rivals: tuple[str, ...] = () if torch.returncode else ("torch",)
    if not rivals:
        print("PyTorch is not installed (pip install torch==2.13.0): fedfleet is measured alone")
    if options.ort_training:
        rivals += ("ort-training",)
    print(f"seeds: networks 0, data {SEED}; PyTorch {torch.stdout.strip() or 'absent'}")
    rows = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name in options.nets.split(","):
            row = prepare(name, folder)
            row |= measured(name, folder, options, rivals)
            row["profile_ms"] = started("kernels.py", "profile", name, folder)
            if name.partition("_plain")[0] in BOUND:
                row["bound_ms"] = started("kernels.py", "bound", name)
            report(name, row)
            rows[name] = row
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
