"""Reads over HTTP while 10 000 devices and 1 000 versions are stored, and what viewers of live events cost.

    python bench/api.py [--devices 10000] [--versions 1000] [--rate 100] [--seconds 20] [--viewers 200] [--out FILE]

A real aggregator process over SQLite, filled through its log.

- Latency: it is asked at a fixed rate by a process of its own. A latency counts from the moment a request was due, so
  that a slow answer delays those behind it (no coordinated omission).
- Processor time of the server for one request of each path, asked one after another: it does not depend on what else
  runs on the machine, as latencies do.
- Viewers: updates are put into the log while the server is stopped; then it takes them as fast as it can, without viewers
  and with them, in turns. Compared is its processor time per update. Each viewer must have seen every update.

With the right to (root) server and clients run with priority (nice -10), because other work shares this machine.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

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
    "/devices?state=ready&limit=1",
    "/updates",
    "/events/recent",
)
EPOCH = "0123456789abcdef"
T = TypeVar("T")
FILL_S = 300.0
SEED = 0
ALONE_S = 2.0  # each path is asked for so long, one request after another
BURST = 8000  # updates that are taken with and without viewers
ROUNDS = 3
PRIORITY = ("nice", "-n", "-10") if os.geteuid() == 0 else ()
TICKS_S = os.sysconf("SC_CLK_TCK")


async def fill(url: str, devices: int) -> None:
    """Append a birth of each device."""
    birth = messages.encode(messages.DeviceState("ready", 1))
    await append(
        url,
        (
            (name, f"event:{name}:birth", Kind.EVENT, encode(EventRecord(1.0, "state", name, "", birth)))
            for name in (f"dev-{n:05d}" for n in range(devices))
        ),
    )


async def update(url: str, job: str, seqs: range, devices: int, sizes: Sequence[int], base: bytes) -> None:
    """Append updates of version 0 of a job."""

    def entry(seq: int) -> tuple[str, str, Kind, bytes]:
        uid = topics.Uid(f"dev-{seq % devices:05d}", job, EPOCH, seq)
        tensors = tuple(
            SparseTensor(np.arange(min(3, s)), np.zeros(min(3, s), dtype=np.bool_), 0.01) for s in sizes
        )
        frame = sparse.encode(sparse.Update(0, base, uid.tag, 10, Sparse.of(tensors)), sizes)
        return uid.device, str(uid), Kind.UPDATE, encode(UpdateRecord(time.time(), frame, len(frame)))

    await append(url, map(entry, seqs))


async def append(url: str, entries: Iterable[tuple[str, str, Kind, bytes]]) -> None:
    """Append (device, uid, kind, body) to the log."""
    ports = open_ports(url)
    try:
        for group in batched(entries, 500):
            await asyncio.gather(
                *(
                    ports.log.append(topics.partition(d, ports.partitions), uid, k, b)
                    for d, uid, k, b in group
                )
            )
    finally:
        await ports.close()


def batched(entries: Iterable[T], size: int) -> Iterator[list[T]]:
    """Groups of so many."""
    iterator = iter(entries)
    while group := list(islice(iterator, size)):
        yield group


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


async def view(url: str, viewers: int) -> None:
    """Follow all events on so many connections until stdin ends; prints "ready", then the updates each has seen."""
    host, port = url.removeprefix("http://").split(":")
    seen = [0] * viewers
    connected = asyncio.Semaphore(0)

    async def one(number: int) -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"GET /api/v1/events HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
        await reader.readuntil(b": connected")
        connected.release()
        rest = b""
        while data := await reader.read(1 << 20):
            data = rest + data
            seen[number] += data.count(b"event: update\n")
            rest = data[-13:] if not data.endswith(b"event: update\n") else b""

    tasks = [asyncio.create_task(one(number)) for number in range(viewers)]
    for _ in range(viewers):
        await connected.acquire()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    for task in tasks:
        task.cancel()
    print(json.dumps(seen))


def line(name: str, values: list[float], alone_ms: float | None = None) -> str:
    """One path's percentiles, and the server's processor time for a request."""
    cuts = statistics.quantiles(values, n=100)
    cost = "" if alone_ms is None else f" {alone_ms:8.2f}"
    return f"{name:36} {len(values):6} {cuts[49]:8.1f} {cuts[98]:8.1f} {max(values):8.1f}{cost}"


def used_s(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_S


def alone(fleet: Fleet, pid: int) -> dict[str, float]:
    """Processor time in ms that the server takes for a request of each path, less what it takes when idle."""
    before = used_s(pid)
    time.sleep(ALONE_S)
    idle = (used_s(pid) - before) / ALONE_S
    found = {}
    with httpx.Client(base_url=f"{fleet.url}/api/v1", timeout=30) as client:
        for path in PATHS:
            before, began, count = used_s(pid), time.monotonic(), 0
            while time.monotonic() - began < ALONE_S:
                client.get(path).raise_for_status()
                count += 1
            spent = used_s(pid) - before - idle * (time.monotonic() - began)
            found[path] = 1000 * spent / count
    return found


def taken(fleet: Fleet, job: str) -> int:
    """Updates of a job that the server has folded."""
    facts = fleet.job(job).facts
    return int(facts["updates"] + facts["buffered"])


def burst(url: str, fleet: Fleet, pid: int, first: int, plan: "Plan", viewers: int) -> dict[str, float]:
    """Have a burst of updates taken while so many viewers follow; processor and wall time per update in ms."""
    command = [*PRIORITY, sys.executable, __file__, "--view", fleet.url, "--viewers", str(viewers)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        assert watching.stdin is not None
        if watching.stdout.readline() != "ready\n":
            sys.exit("the viewers do not connect")
        os.kill(pid, signal.SIGSTOP)
        asyncio.run(update(url, "burst", range(first, first + BURST), plan.devices, plan.sizes, plan.base))
        before, began = used_s(pid), time.monotonic()
        os.kill(pid, signal.SIGCONT)
        while taken(fleet, "burst") < first - 1 + BURST:
            time.sleep(0.1)
        wall = time.monotonic() - began
        time.sleep(1.0)  # what viewers are still to be told is part of the price
        spent = used_s(pid) - before
        watching.stdin.close()
        seen = json.loads(watching.stdout.read())
    if any(count != BURST for count in seen):
        sys.exit(f"viewers saw {min(seen)} to {max(seen)} of {BURST} updates")
    return {"viewers": viewers, "cpu_ms": 1000 * spent / BURST, "wall_ms": 1000 * wall / BURST}


class Plan(NamedTuple):
    """What updates are made of."""

    devices: int
    sizes: Sequence[int]
    base: bytes


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


def measure(url: str, fleet: Fleet, pid: int, options: argparse.Namespace) -> dict[str, Any]:
    """Fill the server, then measure everything."""
    bundle = compile_training(cnn1d(channels=2, length=8, classes=3, widths=(4, 4)))
    spec: dict[str, Any] = {"staleness_max": 1000, "robust": {"device_share_max": None}}
    fleet.federate(bundle, name="bench", dataset="d", buffer_size=1, **spec)
    fleet.federate(bundle, name="burst", dataset="d", buffer_size=100, **spec)
    plan = Plan(options.devices, bundle.manifest.sizes, bytes.fromhex(fleet_hash(fleet)))
    asyncio.run(fill(url, plan.devices))
    asyncio.run(update(url, "bench", range(1, options.versions + 1), plan.devices, plan.sizes, plan.base))
    wait(fleet, options.devices, options.versions)
    command = [*PRIORITY, sys.executable, __file__, "--ask", fleet.url, "--rate", str(options.rate)]
    asked = subprocess.run(
        [*command, "--seconds", str(options.seconds)], stdout=subprocess.PIPE, check=True
    ).stdout
    load = os.getloadavg()[0]
    cost = alone(fleet, pid)
    bursts = [
        burst(url, fleet, pid, 1 + BURST * (2 * number + (viewers > 0)), plan, viewers)
        for number in range(ROUNDS)
        for viewers in (0, options.viewers)
    ]
    return {"latency_ms": json.loads(asked), "cpu_ms": cost, "bursts": bursts, "load": load}


def show(found: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Print what was measured; the same in short."""
    print(f"{options.devices} devices, {options.versions} versions, {options.rate:g} requests/s")
    print(
        f"{'path':36} {'n':>6} {'p50 ms':>8} {'p99 ms':>8} {'max ms':>8} {'cpu ms':>8}   load {found['load']:.1f}"
    )
    latencies: dict[str, list[float]] = found["latency_ms"]
    for path in PATHS:
        print(line(path, latencies[path], found["cpu_ms"][path]))
    everything = [value for values in latencies.values() for value in values]
    print(line("all", everything))
    cuts = statistics.quantiles(everything, n=100)
    medians = {
        viewers: {
            figure: statistics.median(b[figure] for b in found["bursts"] if b["viewers"] == viewers)
            for figure in ("cpu_ms", "wall_ms")
        }
        for viewers in (0, options.viewers)
    }
    for viewers, median in medians.items():
        print(
            f"{viewers:4} viewers: {median['cpu_ms']:.3f} ms of processor an update, {median['wall_ms']:.3f} ms wall"
        )
    price = medians[options.viewers]["cpu_ms"] / medians[0]["cpu_ms"] - 1
    print(
        f"viewers cost {100 * price:.1f} % of processor time an update (median of {ROUNDS} bursts of {BURST})"
    )
    return {
        "p50_ms": cuts[49], "p99_ms": cuts[98], "max_ms": max(everything), "load": found["load"],
        "cpu_ms": found["cpu_ms"], "bursts": found["bursts"], "viewers_cost": price,
    }  # fmt: skip


def main() -> None:
    """Start a server, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--devices", type=int, default=10_000)
    parser.add_argument("--versions", type=int, default=1_000)
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--viewers", type=int, default=200)
    parser.add_argument("--out", type=Path, help="JSON file of the figures")
    parser.add_argument("--ask", help=argparse.SUPPRESS)
    parser.add_argument("--view", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ask:
        print(json.dumps(asyncio.run(ask(options.ask, options.rate, options.seconds))))
        return
    if options.view:
        asyncio.run(view(options.view, options.viewers))
        return
    with tempfile.TemporaryDirectory(prefix="fedfleet-bench-") as name:
        url, port = f"sqlite:///{Path(name) / 'fleet.db'}", free_port()
        command = [*PRIORITY, sys.executable, "-m", "aggregator", "--ports", url, "--port", str(port)]
        with (Path(name) / "log").open("wb") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            with Fleet(f"http://127.0.0.1:{port}") as fleet:
                while not answers(fleet):
                    time.sleep(0.1)
                found = show(measure(url, fleet, server.pid, options), options)
        finally:
            server.send_signal(signal.SIGCONT)
            server.terminate()
            server.wait()
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


def fleet_hash(fleet: Fleet) -> str:
    """The hash of version 0, which updates name as their base."""
    answer = httpx.get(f"{fleet.url}/api/v1/jobs/bench/versions/0/manifest")
    found: str = answer.raise_for_status().json()["model_hash"]
    return found


if __name__ == "__main__":
    main()
