"""How long a server and a device take to be back after a kill, and what keeping that short costs.

    python bench/recovery.py [--versions 1000] [--entries 100000] [--devices 10000] [--rows 10000] [--out results.json]

Server: a state with so many versions, log entries and devices is made, then loaded anew: with the snapshot of the
history, and with that snapshot missing, which reads every manifest (the baseline); then a whole process from exec to
the API's first answer. Device: a state with so many outbox rows, far above the bound that the daemon keeps, from exec
to its first ask at a broker. The memo's cost is what the engine pays while it runs. Seeds fix everything but time.
"""

import argparse
import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from aggregator.engine import Engine
from aggregator.memo import MEMO_KEY
from aggregator.snapshot import PREFIX
from aggregator.spec import parse
from broker_bridge.broker import Broker, free_port
from broker_bridge.ports import Kind, Ports, open_ports
from broker_bridge.records import EventRecord, UpdateRecord, encode
from edge_client import store
from edge_client.events import JobRow
from edge_client.store import NewUpdate, open_store
from edge_client.wire import messages, sparse, topics
from edge_client.wire.messages import Ask, BlobRef, DataSchema, DeviceState, Evaluation, Metrics, Offer
from edge_client.wire.topics import Uid
from edge_client.wire.weights import Sparse, SparseTensor
from firmware_tools import compile_training
from firmware_tools.zoo import cnn1d

JOB = "bench"
EPOCH = "0123456789abcdef"
GROUP = 500  # log entries that share a sync
REPEATS = 3
START_S = 120.0


def main() -> None:
    """Make, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--versions", type=int, default=1000)
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--devices", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures: dict[str, Any] = {"options": {k: str(v) for k, v in vars(options).items() if k != "out"}}
        figures |= server(Path(folder) / "server", options.versions, options.entries, options.devices)
        figures |= device(Path(folder) / "device", options.rows)
    for name, value in figures.items():
        print(f"{name:44} {value}")
    if options.out:
        options.out.write_text(json.dumps(figures, indent=2) + "\n")


# -- the server ---------------------------------------------------------------------------------------


def server(folder: Path, versions: int, entries: int, devices: int) -> dict[str, float]:
    """Seconds of a server's start, and milliseconds of its memo."""
    folder.mkdir()
    figures = asyncio.run(_grown(folder, versions, entries, devices))
    for name, before in (("snapshot", None), ("no snapshot", _without_snapshot)):
        times = []
        for _ in range(REPEATS):
            if before is not None:
                asyncio.run(before(folder))
            times.append(asyncio.run(_loaded(folder)))
        figures[f"server: load, {name} (s, median)"] = round(float(np.median(times)), 3)
    asyncio.run(_with_snapshot(folder))
    asyncio.run(_without_memo(folder))
    figures[f"server: load and read {entries} entries again, memo lost (s)"] = round(
        asyncio.run(_read_again(folder, entries)), 3
    )
    empty = folder / "empty"
    empty.mkdir()
    for name, home in (("empty state", empty), ("this state", folder)):
        times = [_answered(home) for _ in range(REPEATS)]
        figures[f"server: exec to first answer, {name} (s, median)"] = round(float(np.median(times)), 3)
    return figures


def _engine(folder: Path) -> tuple[Ports, Engine]:
    ports = open_ports(f"sqlite:///{folder}/fleet.db")
    cache = folder / "cache"
    cache.mkdir(exist_ok=True)
    return ports, Engine(ports, cache)


async def _grown(folder: Path, versions: int, entries: int, devices: int) -> dict[str, float]:
    ports, engine = _engine(folder)
    await engine.load()
    _, digest = await engine.shelf.add(
        compile_training(cnn1d(channels=2, length=8, classes=3, widths=(4, 4))).to_bytes()
    )
    spec = {"name": JOB, "bundle": digest, "dataset": "d", "buffer_size": 1, "concurrency": 1}
    await engine.create(parse(json.dumps(spec).encode()))
    job = engine.jobs[JOB]
    for version in range(versions):
        uid = Uid(f"dev-{version % devices}", JOB, EPOCH, version + 1)
        body = encode(UpdateRecord(time.time(), _frame(version, job), 100))
        await ports.log.append(topics.partition(uid.device, ports.partitions), str(uid), Kind.UPDATE, body)
        await engine._step()  # noqa: SLF001 - the bench drives the loop itself
        assert job.version == version + 1
    rest = max(0, entries - versions)
    for start in range(0, rest, GROUP):
        await asyncio.gather(*(_event(ports, n, devices) for n in range(start, min(start + GROUP, rest))))
    began = time.perf_counter()
    while sum(engine.cursor.values()) < versions + rest:
        await engine._step()  # noqa: SLF001
    taken = time.perf_counter() - began
    memos = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        await engine._save_memo()  # noqa: SLF001
        memos.append(time.perf_counter() - began)
        engine.fleet.device("dev-0", time.time())
    await ports.close()
    return {
        "server: log entries taken (1/s)": round(rest / taken),
        f"server: memo of {devices} devices (ms, median)": round(1000 * float(np.median(memos)), 1),
    }


async def _event(ports: Ports, number: int, devices: int) -> None:
    """An ask, and of each device at first its state."""
    device = f"dev-{number % devices}"
    if number < devices:
        record = EventRecord(
            time.time(), "state", device, "", messages.encode(DeviceState("ready", 1, "all"))
        )
    else:
        record = EventRecord(time.time(), "ask", device, JOB, messages.encode(Ask(JOB, number, 10, 0)))
    partition = topics.partition(device, ports.partitions)
    await ports.log.append(partition, f"event:{device}:{number}", Kind.EVENT, encode(record))


def _frame(seed: int, job: Any) -> bytes:
    rng = np.random.default_rng(seed)
    tensors = []
    for tensor in job.bundle.tensors:
        indices = np.flatnonzero(rng.random(tensor.size) < 0.2).astype(np.int64)
        scale = float(np.float16(0.01)) if len(indices) else 0.0
        tensors.append(SparseTensor(indices, rng.random(len(indices)) < 0.5, scale))
    changes = np.zeros(sum(t.size for t in job.bundle.statistics), dtype=np.float16)
    base = bytes.fromhex(job.manifest.model_hash)
    update = sparse.Update(job.version, base, seed, 10, Sparse.of(tensors), changes)
    return sparse.encode(update, [t.size for t in job.bundle.tensors])


async def _loaded(folder: Path) -> float:
    """Seconds until the stored state is taken up."""
    ports, engine = _engine(folder)
    began = time.perf_counter()
    await engine.load()
    taken = time.perf_counter() - began
    await ports.close()
    return taken


async def _without_snapshot(folder: Path) -> None:
    ports, _ = _engine(folder)
    revision, _ = await ports.heads.load(PREFIX + JOB)
    await ports.heads.drop(PREFIX + JOB, revision)
    await ports.close()


async def _without_memo(folder: Path) -> None:
    ports, _ = _engine(folder)
    revision, _ = await ports.heads.load(MEMO_KEY)
    await ports.heads.drop(MEMO_KEY, revision)
    await ports.close()


async def _read_again(folder: Path, entries: int) -> float:
    ports, engine = _engine(folder)
    began = time.perf_counter()
    await engine.load()
    while sum(engine.cursor.values()) < entries:
        await engine._step()  # noqa: SLF001
    taken = time.perf_counter() - began
    await engine._save_memo()  # noqa: SLF001
    await ports.close()
    return taken


async def _with_snapshot(folder: Path) -> None:
    ports, engine = _engine(folder)
    await engine.load()
    await engine.store._snapshots.save_due(engine.jobs[JOB])  # noqa: SLF001
    await ports.close()


def _answered(folder: Path) -> float:
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "aggregator",
        "--ports",
        f"sqlite:///{folder}/fleet.db",
        "--port",
        str(port),
    ]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            _until(lambda: _healthy(port), "the API answers")
            return time.perf_counter() - began
        finally:
            process.terminate()  # it removes its temporary directory


def _healthy(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/api/v1/health").is_success
    except httpx.TransportError:
        return False


# -- the device ---------------------------------------------------------------------------------------


def device(folder: Path, rows: int) -> dict[str, float]:
    """Seconds from exec to a device's first ask, with many rows in its outbox and with two."""
    figures = {}
    for count in (2, rows):
        home = folder / str(count)
        home.mkdir(parents=True)
        figures[f"device: exec to ask, {count} rows (s, median)"] = round(
            float(np.median([_asked(home, count) for _ in range(REPEATS)])), 3
        )
    return figures


def _asked(home: Path, rows: int) -> float:
    shutil.rmtree(home / "state", ignore_errors=True)
    _fill(home / "state", rows)
    np.savez(home / "d.npz", x=np.zeros((40, 2, 8), np.float32), y=np.arange(40) % 3)
    with tempfile.TemporaryDirectory() as folder:
        broker = Broker.start("auto", state_dir=Path(folder))
        heard: list[str] = []
        client = paho.Client(CallbackAPIVersion.VERSION2, client_id="bench", protocol=paho.MQTTv5)
        client.on_message = lambda _c, _d, message: heard.append(message.topic)
        client.connect("127.0.0.1", broker.port)
        client.subscribe(topics.UP_FILTER, 1)
        client.loop_start()
        schema = DataSchema((2, 8), 3)
        offer = Offer("fresh", "d", schema, BlobRef("0" * 64, 10), 60.0)
        client.publish(topics.offer("all", "fresh"), messages.encode(offer), 1, retain=True).wait_for_publish(
            10
        )
        (home / "device.toml").write_text(
            f'[device]\nid = "dev"\nstate_dir = "state"\n[broker]\nhost = "127.0.0.1"\nport = {broker.port}\n'
            '[data.d]\npath = "d.npz"\nshape = [2, 8]\nclasses = 3\n'
        )
        command = [
            sys.executable,
            "-m",
            "edge_client",
            "device",
            "run",
            "--config",
            str(home / "device.toml"),
        ]
        began = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                _until(lambda: topics.ask("dev") in heard, "an ask")
                return time.perf_counter() - began
            finally:
                process.kill()
                client.disconnect()
                client.loop_stop()
                broker.stop()


def _fill(folder: Path, rows: int) -> None:
    """An outbox of evaluations, and one update, as if nothing bounded it."""
    bound = store.EVALUATION_ROWS_MAX, store.EVALUATION_BYTES_MAX
    store.EVALUATION_ROWS_MAX = store.EVALUATION_BYTES_MAX = 10**9
    opened = open_store(folder)
    opened.save_job(JobRow(Offer("old", "d", DataSchema((2, 8), 3), BlobRef("0" * 64, 10)), 0, 1))
    body = messages.encode(Evaluation(1, Metrics(40, 1.0, 0.5)))
    uid = Uid("dev", "old", opened.epoch, opened.next_seq)
    opened.add_update(NewUpdate(uid, b"frame", body, 1, b"", b""))
    opened._db.execute("BEGIN")  # noqa: SLF001 - a row each through the front door takes a sync each
    for seq in range(uid.seq + 2, uid.seq + rows):
        name = Uid("dev", "old", opened.epoch, seq)
        opened._insert(name, "evaluation", body)  # noqa: SLF001
    opened._db.execute("COMMIT")  # noqa: SLF001
    assert len(opened.rows()) == rows
    opened.close()
    store.EVALUATION_ROWS_MAX, store.EVALUATION_BYTES_MAX = bound


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + START_S
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {START_S:g} s: {what}")
        time.sleep(0.01)


if __name__ == "__main__":
    main()
