"""Latency of reads over HTTP while 10 000 devices and 1 000 versions are stored.

    python bench/api.py [--devices 10000] [--versions 1000] [--rate 100] [--seconds 20]

A real aggregator process over SQLite, filled through its log, then asked at a fixed rate by a process of its own. A
latency counts from the moment a request was due, so that a slow answer delays those behind it (no coordinated
omission). Prints percentiles for each path and of all, in ms; they hold for the load of the machine they ran on.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np

from aggregator.sdk import Fleet, FleetError
from broker_bridge.broker import free_port
from broker_bridge.ports import Kind, open_ports
from broker_bridge.records import EventRecord, UpdateRecord, encode
from edge_client.wire import messages, sparse, topics
from edge_client.wire.weights import Sparse, SparseTensor
from firmware_tools.compiler import compile_training
from firmware_tools.zoo import cnn1d

PATHS = (
    "/health",
    "/jobs",
    "/jobs/bench",
    "/jobs/bench/versions?order=newest",
    "/jobs/bench/versions/500",
    "/devices",
    "/devices?q=dev-09&limit=50",
    "/devices/dev-00500",
    "/updates",
    "/events/recent",
)
EPOCH = "0123456789abcdef"
FILL_S = 300.0
SEED = 0


async def fill(url: str, devices: int, versions: int, sizes: tuple[int, ...], base_hash: bytes) -> None:
    """Append a birth of each device, and updates of version 0, of which each makes a version."""
    ports = open_ports(url)

    async def append(device: str, uid: str, kind: Kind, body: bytes) -> None:
        await ports.log.append(topics.partition(device, ports.partitions), uid, kind, body)

    birth = messages.encode(messages.DeviceState("ready", 1))
    try:
        names = [f"dev-{n:05d}" for n in range(devices)]
        for start in range(0, devices, 500):
            await asyncio.gather(
                *(
                    append(n, f"event:{n}:birth", Kind.EVENT, encode(EventRecord(1.0, "state", n, "", birth)))
                    for n in names[start : start + 500]
                )
            )
        for seq in range(1, versions + 1):
            uid = topics.Uid(names[seq % devices], "bench", EPOCH, seq)
            tensors = tuple(
                SparseTensor(np.arange(min(3, s)), np.zeros(min(3, s), dtype=np.bool_), 0.01) for s in sizes
            )
            frame = sparse.encode(sparse.Update(0, base_hash, uid.tag, 10, Sparse.of(tensors)), sizes)
            await append(uid.device, str(uid), Kind.UPDATE, encode(UpdateRecord(1.0, frame, len(frame))))
    finally:
        await ports.close()


async def ask(url: str, rate: float, seconds: float) -> dict[str, list[float]]:
    """Latencies in ms by path, of requests that fall due at this rate."""
    rng = random.Random(SEED)
    found: dict[str, list[float]] = {path: [] for path in PATHS}
    async with httpx.AsyncClient(base_url=f"{url}/api/v1", timeout=30) as client:

        async def one(path: str, due: float) -> None:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            response = await client.get(path)
            response.raise_for_status()
            found[path].append(1000 * (time.perf_counter() - due))

        start = time.perf_counter() + 0.5
        count = round(rate * seconds)
        await asyncio.gather(*(one(rng.choice(PATHS), start + n / rate) for n in range(count)))
    return found


def line(name: str, values: list[float]) -> str:
    """One path's percentiles."""
    cuts = statistics.quantiles(values, n=100)
    return f"{name:36} {len(values):6} {cuts[49]:8.1f} {cuts[98]:8.1f} {max(values):8.1f}"


def wait(fleet: Fleet, devices: int, versions: int) -> None:
    """Until all that was appended is taken."""
    deadline = time.monotonic() + FILL_S
    while True:
        job, known = fleet.job("bench").facts, fleet.health()["devices"]
        if job["version"] >= versions and known >= devices:
            return
        if time.monotonic() > deadline:
            sys.exit(f"after {FILL_S:g} s only {job['version']} versions and {known} devices")
        time.sleep(0.5)


def answers(fleet: Fleet) -> bool:
    """Whether the server is up."""
    try:
        fleet.health()
    except FleetError:
        return False
    return True


def main() -> None:
    """Fill, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=10_000)
    parser.add_argument("--versions", type=int, default=1_000)
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--ask", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ask:
        print(json.dumps(asyncio.run(ask(options.ask, options.rate, options.seconds))))
        return
    with tempfile.TemporaryDirectory(prefix="fedfleet-bench-") as name:
        url, port = f"sqlite:///{Path(name) / 'fleet.db'}", free_port()
        command = [sys.executable, "-m", "aggregator", "--ports", url, "--port", str(port)]
        with (Path(name) / "log").open("wb") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            with Fleet(f"http://127.0.0.1:{port}") as fleet:
                while not answers(fleet):
                    time.sleep(0.1)
                bundle = compile_training(cnn1d(channels=2, length=8, classes=3, widths=(4, 4)))
                spec = {"buffer_size": 1, "staleness_max": 1000, "robust": {"device_share_max": None}}
                job = fleet.federate(bundle, name="bench", dataset="d", **spec)
                base = bytes.fromhex(fleet_hash(fleet))
                asyncio.run(fill(url, options.devices, options.versions, bundle.manifest.sizes, base))
                wait(fleet, options.devices, options.versions)
                print(
                    f"{job.name}: {options.devices} devices, {options.versions} versions, {options.rate:g} requests/s"
                )
                again = [sys.executable, __file__, "--ask", fleet.url, "--rate", str(options.rate)]
                asked = subprocess.run(
                    [*again, "--seconds", str(options.seconds)], stdout=subprocess.PIPE, check=True
                )
        finally:
            server.terminate()
            server.wait()
    found = json.loads(asked.stdout)
    print(f"{'path':36} {'n':>6} {'p50 ms':>8} {'p99 ms':>8} {'max ms':>8}   load {os.getloadavg()[0]:.1f}")
    for path in PATHS:
        print(line(path, found[path]))
    print(line("all", [value for values in found.values() for value in values]))


def fleet_hash(fleet: Fleet) -> str:
    """The hash of version 0, which updates name as their base."""
    answer = httpx.get(f"{fleet.url}/api/v1/jobs/bench/versions/0/manifest")
    found: str = answer.raise_for_status().json()["model_hash"]
    return found


if __name__ == "__main__":
    main()
