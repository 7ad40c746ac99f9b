"""What a long history costs a server: memory, bytes written with each version, time of a snapshot and of a start.

    python bench/history.py [--versions 20000] [--devices 500] [--updates 50] [--out results.json]

Records of so many versions, made by so many devices drawn at random, are kept by a History and stored by Snapshots as
a job's are. The baseline in the same run is what came before: each name a string of its own, and all records in one
blob with each snapshot. Seeds fix everything but time.
"""

import argparse
import asyncio
import hashlib
import json
import random
import statistics
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec

from aggregator.history import History, VersionRecord
from aggregator.learner import Past
from aggregator.snapshot import INTERVAL_VERSIONS, Snapshots
from broker_bridge.ports import open_ports


class Counted:
    """Blobs that count the bytes put into them."""

    def __init__(self, blobs: Any) -> None:
        self.written, self._blobs = 0, blobs

    async def put(self, data: bytes) -> Any:
        """Store, and count."""
        self.written += len(data)
        return await self._blobs.put(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._blobs, name)


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--versions", type=int, default=20_000)
    parser.add_argument("--devices", type=int, default=500)
    parser.add_argument("--updates", type=int, default=50)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    figures: dict[str, Any] = {"options": {k: v for k, v in vars(options).items() if k != "out"}}
    figures |= asyncio.run(measure(options.versions, options.devices, options.updates))
    for name, value in figures.items():
        print(f"{name:52} {value}")
    if options.out:
        options.out.write_text(json.dumps(figures, indent=2) + "\n")


def records(versions: int, devices: int, updates: int) -> Iterator[VersionRecord]:
    """One of each version."""
    rng = random.Random(1)
    for version in range(versions):
        names = [f"dev-{rng.randrange(devices)}" for _ in range(updates)]
        digest = hashlib.sha256(str(version).encode()).hexdigest()
        yield VersionRecord(version, float(version), digest, updates, names, {0: updates})


def memory(*size: int, alone: bool) -> float:
    """MB of a History, each name a string of its own or not."""
    tracemalloc.start()
    history = History()
    for record in records(*size):
        if alone:
            record.devices = ["".join(name) for name in map(list, record.devices)]
        history.add(record)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return round(held / 1e6, 1)


async def measure(*size: int) -> dict[str, Any]:
    """All figures."""
    ports = open_ports("memory:")
    blobs = Counted(ports.blobs)
    snapshots = Snapshots(ports.heads, blobs)  # type: ignore[arg-type]  # it has their methods
    past, whole_bytes, times = Past({}, [], {}, [], []), 0, []
    job: Any = SimpleNamespace(history=History(), recent={})
    job.spec, job.learner = SimpleNamespace(name="bench"), SimpleNamespace(past=lambda: past)
    for record in records(*size):
        job.history.add(record)
        job.version, job.digest = record.version, record.manifest
        if record.version % INTERVAL_VERSIONS == INTERVAL_VERSIONS - 1:
            whole_bytes += len(msgspec.msgpack.encode(job.history.records))
            began = time.perf_counter()
            await snapshots.save_due(job)
            times.append(time.perf_counter() - began)
    began = time.perf_counter()
    msgspec.msgpack.encode(job.history.records)
    whole = time.perf_counter() - began
    began = time.perf_counter()
    found = await Snapshots(ports.heads, ports.blobs).load("bench")
    loaded = time.perf_counter() - began
    assert found is not None
    return {
        "memory (MB)": memory(*size, alone=False),
        "memory, each name a string of its own (MB)": memory(*size, alone=True),
        "written with a version (kB)": round(blobs.written / size[0] / 1e3, 1),
        "written with a version, all in one blob (kB)": round(whole_bytes / size[0] / 1e3, 1),
        "snapshot (ms, median)": round(1000 * statistics.median(times), 1),
        "last snapshot, all in one blob, encoding (ms)": round(1000 * whole, 1),
        "read at a start (s)": round(loaded, 2),
    }


if __name__ == "__main__":
    main()
