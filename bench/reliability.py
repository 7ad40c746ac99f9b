"""Kills over many updates, and hostile messages: what was lost, folded twice or changed. Meant to be all zeros.

    python -m bench.reliability [--seconds 1000] [--rigs 2] [--devices 100] [--pause 0.8] [--hostile 50000] [--out results.json]

Each rig is a server of its own on mosquitto, whose broker, bridge and aggregator are killed (SIGKILL) in an order that
follows from the seed, under devices of tests/soak that speak the real protocol and lose their connections as well. At
the end the devices' own ledger is compared with the server's files, and every version is made again of the frames that
devices hold: its model must be the same to the last bit. Then another server gets the hostile messages.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.soak.hostile import flood
from tests.soak.rig import PARTS, Rig, until


def kills(
    seed: int, devices: int, seconds: float, pause_s: float, results: "multiprocessing.Queue[dict[str, Any]]"
) -> None:
    """One rig's run; its audit raises what is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        rig = Rig(Path(folder), devices=devices, seed=seed)
        try:
            starts = {part: _start_s(rig, part) for part in PARTS}
            rig.killed = dict.fromkeys(PARTS, 0)
            rig.disturb(seconds, (0.6 * pause_s, 1.4 * pause_s))
            rig.settle()
        finally:
            rig.close()
        results.put({"seed": seed, "devices": devices, "pause_s": pause_s, "start_s": starts, **rig.audit()})


def _start_s(rig: Rig, part: str) -> float:
    """Seconds from a kill until receipts come and the API answers again."""
    until(rig.facts, "the API answers")
    began = time.monotonic()
    rig.kill(part)
    before = rig.swarm.receipts
    until(lambda: rig.swarm.receipts > before and rig.facts() is not None, f"receipts after a kill of {part}")
    return round(time.monotonic() - began, 2)


def hostile(count: int, seed: int) -> dict[str, Any]:
    """Flood a quiet server; what it counted, and whether anything else changed."""
    with tempfile.TemporaryDirectory() as folder:
        rig = Rig(Path(folder), devices=20, seed=seed)
        try:
            until(lambda: (f := rig.facts()) and f["version"] >= 3, "three versions")
            rig.swarm.ending = True
            until(
                lambda: all(d.settled() for d in rig.swarm.devices) and not rig.facts()["buffered"],
                "quiet",
                90,
            )
            before, pids = rig.api.job("soak").versions(), rig.pids()
            began = time.monotonic()
            counted = flood(rig, count, seed)
            seconds = time.monotonic() - began
            after = rig.api.job("soak").versions()
            return {
                "seed": seed, **counted, "per_s": round(count / seconds), "versions_identical": after == before,
                "same_processes": rig.pids() == pids,
            }  # fmt: skip
        finally:
            rig.close()


def main() -> None:
    """Run all rigs side by side, then the flood; print and keep the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=1000.0)
    parser.add_argument("--rigs", type=int, default=2)
    parser.add_argument("--devices", type=int, default=100)
    parser.add_argument("--pause", type=float, default=0.8, help="seconds between kills, on average")
    parser.add_argument("--hostile", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    results: multiprocessing.Queue[dict[str, Any]] = multiprocessing.Queue()
    workers = [
        multiprocessing.Process(
            target=kills, args=(options.seed + n, options.devices, options.seconds, options.pause, results)
        )
        for n in range(options.rigs)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    rigs = [results.get() for worker in workers if worker.exitcode == 0]
    figures = {
        "commit": commit, "failed_rigs": options.rigs - len(rigs), "load_average": os.getloadavg()[1],
        "kills": sum(sum(rig["kills"].values()) for rig in rigs),
        **{name: sum(rig[name] for rig in rigs) for name in ("produced", "accepted", "rejected", "lost", "folded_twice")},
        "rigs": rigs, "hostile": hostile(options.hostile, options.seed),
    }  # fmt: skip
    print(json.dumps(figures, indent=2))
    if options.out:
        options.out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
