"""What a simulated fleet costs: memory of an idle device, and wall time and memory of a large fleet.

    python bench/simulation.py [--config examples/simulate/large.toml] [--out FILE]        (make bench-simulation)

Memory of the run is the sum of the proportional set sizes of all its processes, sampled every half second, so that
pages that workers share count once.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from aggregator.simulate import config  # noqa: E402 - runs from a source tree
from aggregator.simulate.availability import availability  # noqa: E402
from aggregator.simulate.devices import Devices, Pool  # noqa: E402

GOAL_S, GOAL_MB = 900, 4000
SAMPLE_S = 0.5


def idle_bytes(settings: config.Config) -> float:
    """Bytes in memory of a device that has nothing to do, its samples' row numbers (4 B each) aside."""
    count = settings.fleet.devices
    tracemalloc.start()
    kept = [
        Devices(settings.fleet, count, 0),
        availability(settings.fleet, count, 0),
        Pool(count, np.random.default_rng(0)),
        np.zeros(count, np.bool_),  # of Residuals: whether there is one
        np.zeros(count, np.int64),  # of Shards: where its samples begin
    ]
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return size / count if kept else 0.0


def memory_mb(session: int) -> float:
    """Proportional set size of all processes of a session."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int((folder / "stat").read_text().rpartition(")")[2].split()[3]) == session:
                rollup = (folder / "smaps_rollup").read_text()
                total += int(rollup.partition("\nPss:")[2].split()[0])
    return total / 1024


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--config", type=Path, default=ROOT / "examples/simulate/large.toml")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    settings = config.load(options.config)
    idle = idle_bytes(settings)
    print(f"an idle device: {idle:.0f} B in memory, 0 B on disk")
    with tempfile.TemporaryDirectory() as folder:
        words = ["simulate", str(options.config), "--out", folder, "--fresh"]
        began, peak = time.monotonic(), 0.0
        with subprocess.Popen(
            [sys.executable, "-m", "edge_client", *words],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        ) as process:
            while process.poll() is None:
                peak = max(peak, memory_mb(process.pid))
                time.sleep(SAMPLE_S)
        seconds = time.monotonic() - began
        if process.returncode:
            sys.exit(process.returncode)
        summaries = [json.loads(file.read_text().splitlines()[-1]) for file in Path(folder).glob("*.jsonl")]
    uploads = sum(summary["accepted"] for summary in summaries)
    print(f"{settings.fleet.devices:,} devices, {uploads:,} updates: {seconds:.0f} s, peak {peak:,.0f} MB")
    print(f"against the goals of {GOAL_S} s and {GOAL_MB} MB: {seconds / GOAL_S:.2f}x, {peak / GOAL_MB:.2f}x")
    if options.out:
        facts = {"idle_device_bytes": idle, "devices": settings.fleet.devices, "updates": uploads}
        facts |= {"seconds": seconds, "peak_mb": peak, "accuracy": summaries[0]["accuracy"]}
        options.out.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
