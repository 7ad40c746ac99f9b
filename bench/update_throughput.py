"""Updates per second through broker → bridge → log → fold, with processes that play devices.

    python bench/update_throughput.py [--updates 20000] [--loaders 2] [--broker mosquitto]

Each loader process has one MQTT connection and plays many devices: it keeps a window of unreceipted updates in
flight and counts only receipts, so that the figure is of durable updates. Model: a 1-D CNN of
about 50 000 parameters in 8 tensors, density 1 %. Prints updates per second until the receipt and until the fold,
and what each process used.
"""

import argparse
import multiprocessing
import os
import resource
import tempfile
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from aggregator.sdk import Fleet, FleetError
from aggregator.supervise import Supervisor
from broker_bridge.broker import free_port
from edge_client.bundle import PARAMS
from edge_client.wire import grid, messages, sparse, topics
from edge_client.wire.messages import Receipt
from edge_client.wire.topics import Uid
from edge_client.wire.weights import Sparse, SparseTensor
from firmware_tools import compile_training
from firmware_tools.zoo import cnn1d

JOB = "bench"
WIDTHS = (48, 72, 88)  # 51 159 parameters
DENSITY = 0.01
DEVICES = 200  # that one loader plays
EPOCH = "0123456789abcdef"
WINDOW = 400  # unreceipted updates of one loader
READY_S = 30.0
FOLD_S = 120.0


@dataclass(frozen=True)
class Frames:
    """What the generators must know of the job."""

    sizes: tuple[int, ...]
    base_hash: bytes


def template(seq: int, model: Frames) -> bytes:
    """An update frame of random indices."""
    rng = np.random.default_rng(seq)
    tensors = []
    for size in model.sizes:
        k = max(1, round(size * DENSITY))
        indices = np.sort(rng.choice(size, k, replace=False)).astype(np.int64)
        tensors.append(SparseTensor(indices, rng.random(k) < 0.5, 0.01))
    return sparse.encode(sparse.Update(0, model.base_hash, 0, 50, Sparse.of(tensors)), model.sizes)


def named(frame: bytes, uid: Uid) -> bytes:
    """The frame under another uid: encoding each anew would make the generators the bottleneck."""
    data = frame[:12] + uid.tag.to_bytes(4, "little") + frame[16:-4]
    return data + zlib.crc32(data).to_bytes(4, "little")


def load(
    number: int, host: str, port: int, updates: int, model: Frames, results: "multiprocessing.Queue[tuple]"
) -> None:
    """Send `updates` updates and wait for all receipts."""
    rounds = -(-updates // DEVICES)
    frames = [template(seq, model) for seq in range(rounds)]
    free = threading.Semaphore(WINDOW)
    done = threading.Event()
    refused: list[str] = []
    answered = 0

    def on_message(_client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        nonlocal answered
        receipt = messages.decode(Receipt, bytes(message.payload))
        if receipt.verdict != "accepted":
            refused.append(receipt.code)
        answered += 1
        free.release()
        if answered == updates:
            done.set()

    client = paho.Client(CallbackAPIVersion.VERSION2, client_id=f"load-{number}", protocol=paho.MQTTv5)
    client.max_inflight_messages_set(0)
    client.on_message = on_message
    client.connect(host, port)
    client.loop_start()
    names = [f"l{number}-{device}" for device in range(DEVICES)]
    client.subscribe([(topics.receipt(name), 0) for name in names])
    time.sleep(0.5)
    started = time.time()
    for i in range(updates):
        free.acquire()
        seq = i // DEVICES
        uid = Uid(names[i % DEVICES], JOB, EPOCH, seq)
        client.publish(topics.update(uid, 0), named(frames[seq], uid), qos=1)
    done.wait(120)
    ended = time.time()
    client.disconnect()
    client.loop_stop()
    results.put((started, ended, answered, refused[:3], time.process_time(), len(frames[0])))


def cpu_seconds(pid: int) -> float:
    """User and system time of a live process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mb(pid: int) -> float:
    """Resident memory of a live process in MB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def start_job(fleet: Fleet) -> Frames:
    """Start the job and describe its updates."""
    compiled = compile_training(cnn1d(widths=WIDTHS))
    digest = fleet.upload(compiled.to_bytes())
    # Every update is made from version 0, so that the generators need not follow the versions.
    spec = {"name": JOB, "bundle": digest, "dataset": "bench", "buffer_size": 100, "staleness_max": 1000}
    fleet.start(spec)
    hash_0 = grid.decode(compiled.members[PARAMS], compiled.manifest.sizes).model_hash
    return Frames(compiled.manifest.sizes, hash_0)


def folded(fleet: Fleet) -> int:
    """Updates in versions and in the buffer."""
    job = fleet.job(JOB).facts
    return int(job["updates"]) + int(job["buffered"])


def measure(options: argparse.Namespace, directory: Path) -> None:
    """Run one measurement and print it."""
    supervisor = Supervisor(directory, free_port(), 0, options.broker)
    supervisor.start()
    try:
        with Fleet(f"http://127.0.0.1:{supervisor.http_port}") as fleet:
            wait_until(lambda: answers(fleet), READY_S)
            frames = start_job(fleet)
            run(options, supervisor, fleet, frames)
    finally:
        supervisor.stop()


def run(options: argparse.Namespace, supervisor: Supervisor, fleet: Fleet, frames: Frames) -> None:
    """Load the server, wait until everything is folded, and print who worked how much."""
    assert supervisor.broker is not None
    pids = {child.name: child.process.pid for child in supervisor.children if child.process is not None}
    pids["broker"] = supervisor.broker.process.pid
    before = {name: (cpu_seconds(pid), rss_mb(pid)) for name, pid in pids.items()}
    results: multiprocessing.Queue[tuple] = multiprocessing.Queue()
    share = options.updates // options.loaders
    port = supervisor.broker.port
    workers = [
        multiprocessing.Process(target=load, args=(i, "127.0.0.1", port, share, frames, results))
        for i in range(options.loaders)
    ]
    for worker in workers:
        worker.start()
    rows = [results.get() for _ in workers]
    count = sum(row[2] for row in rows)
    wait_until(lambda: folded(fleet) >= count, FOLD_S)
    began, received, ended = min(r[0] for r in rows), max(r[1] for r in rows), time.time()
    for worker in workers:
        worker.join()
    print(f"{count} updates of {rows[0][5]} B, {sum(frames.sizes)} parameters, over {supervisor.broker.kind}")
    print(f"  with a receipt: {count / (received - began):.0f} /s; folded: {count / (ended - began):.0f} /s")
    for name, pid in pids.items():
        used = cpu_seconds(pid) - before[name][0]
        print(
            f"  {name:13} {used / count * 1e6:6.0f} µs CPU an update, {100 * used / (ended - began):4.0f} % of a core, "
            f"RSS {before[name][1]:.0f} -> {rss_mb(pid):.0f} MB"
        )
    print(f"  loaders       {sum(r[4] for r in rows) / count * 1e6:6.0f} µs CPU an update")
    wait_until(lambda: fleet.health()["bridge"]["accepted"] >= count, FOLD_S)  # written once a second
    bridge = fleet.health()["bridge"]
    print(
        f"  accepted {bridge['accepted']}, duplicates {bridge['duplicates']}, refused {bridge['rejected']} {rows[0][3]}"
    )


def answers(fleet: Fleet) -> bool:
    """True once the server does."""
    try:
        fleet.health()
    except FleetError:
        return False
    return True


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    """Poll a condition; raise TimeoutError."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.05)


def main() -> None:
    """Read the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=20_000)
    parser.add_argument("--loaders", type=int, default=2)
    parser.add_argument("--broker", default="auto", choices=("auto", "mosquitto", "iotcore"))
    with tempfile.TemporaryDirectory() as directory:
        measure(parser.parse_args(), Path(directory))


if __name__ == "__main__":
    main()
