"""Updates per second through broker → bridge → log, with processes that play devices.

    python bench/bridge_throughput.py [--updates 20000] [--loaders 2] [--broker mosquitto] [--profile]

Each loader process has one MQTT connection and plays many devices: it keeps a window of unreceipted updates in
flight and counts only receipts, so that the figure is of durable updates. Model: 50 000 parameters in 8
tensors, density 1 %. Prints updates per second, CPU seconds of each party and the bytes of an update.
"""

import argparse
import asyncio
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from pathlib import Path

import msgspec
import numpy as np
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from broker_bridge import cells
from broker_bridge.broker import Broker
from broker_bridge.cells import BRIDGE_PREFIX, BridgeCell, JobCell, VersionCell
from broker_bridge.ports import open_ports
from edge_client.wire import messages, sparse, topics
from edge_client.wire.messages import Receipt
from edge_client.wire.topics import Uid

SIZES = (3200, 64, 12_000, 64, 33_000, 128, 1500, 44)  # 50 000 parameters
DENSITY = 0.01
DEVICES = 200  # that one loader plays
EPOCH = "0123456789abcdef"
WINDOW = 400  # unreceipted updates of one loader
JOB = JobCell("running", SIZES, norm_max=10.0, staleness_max=8, frame_bytes_max=1_000_000)
VERSION = VersionCell(3, "m", {3: bytes(8).hex()})


def template(seq: int) -> bytes:
    """An update frame of random indices."""
    rng = np.random.default_rng(seq)
    tensors = []
    for size in SIZES:
        k = max(1, round(size * DENSITY))
        indices = np.sort(rng.choice(size, k, replace=False)).astype(np.int64)
        tensors.append(sparse.SparseTensor(indices, rng.random(k) < 0.5, 0.01))
    return sparse.encode(sparse.Update(3, bytes(8), 0, 50, tuple(tensors)))


def named(frame: bytes, uid: Uid) -> bytes:
    """The frame under another uid: encoding each anew would make the generators the bottleneck."""
    data = frame[:12] + uid.tag.to_bytes(4, "little") + frame[16:-4]
    return data + zlib.crc32(data).to_bytes(4, "little")


def load(number: int, host: str, port: int, updates: int, results: "multiprocessing.Queue[tuple]") -> None:
    """Send `updates` updates and wait for all receipts."""
    rounds = -(-updates // DEVICES)
    frames = [template(seq) for seq in range(rounds)]
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
        uid = Uid(names[i % DEVICES], "har", EPOCH, seq)
        client.publish(topics.update(uid, 0), named(frames[seq], uid), qos=1)
    done.wait(120)
    ended = time.time()
    client.disconnect()
    client.loop_stop()
    results.put((started, ended, answered, refused[:3], time.process_time(), len(frames[0])))


async def prepare(url: str) -> None:
    """Set the job's cells."""
    ports = open_ports(url)
    await ports.heads.swing(cells.job_key("har"), 0, msgspec.json.encode(JOB))
    await ports.heads.swing(cells.version_key("har"), 0, msgspec.json.encode(VERSION))
    await ports.close()


async def stored(url: str) -> BridgeCell:
    """The bridge's counters at the end."""
    ports = open_ports(url)
    _, value = await ports.heads.load(f"{BRIDGE_PREFIX}main")
    await ports.close()
    return msgspec.json.decode(value, type=BridgeCell)


def cpu_seconds(pid: int) -> float:
    """User and system time of a live process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mb(pid: int) -> float:
    """Resident memory of a live process in MB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def measure(options: argparse.Namespace, directory: Path) -> None:
    """Run one measurement and print it."""
    url = f"sqlite:///{directory}/fleet.db"
    asyncio.run(prepare(url))
    broker = Broker.start(options.broker, state_dir=directory / "broker")
    command = [sys.executable]
    if options.profile:
        command += ["-m", "cProfile", "-o", str(directory / "profile")]
    command += ["-m", "broker_bridge", "--ports", url, "--broker", f"{broker.host}:{broker.port}"]
    bridge = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    time.sleep(1.5)
    results: multiprocessing.Queue[tuple] = multiprocessing.Queue()
    share = options.updates // options.loaders
    workers = [
        multiprocessing.Process(target=load, args=(i, broker.host, broker.port, share, results))
        for i in range(options.loaders)
    ]
    memory_before = rss_mb(bridge.pid)
    for worker in workers:
        worker.start()
    rows = [results.get() for _ in workers]
    wall = max(row[1] for row in rows) - min(row[0] for row in rows)
    cpu = {"bridge": cpu_seconds(bridge.pid), "broker": cpu_seconds(broker.process.pid)}
    memory = rss_mb(bridge.pid)
    for worker in workers:
        worker.join()
    bridge.terminate()
    bridge.wait()
    broker.stop()
    count = sum(row[2] for row in rows)
    cell = asyncio.run(stored(url))
    print(f"{count} updates of {rows[0][5]} B over {broker.kind} in {wall:.1f} s: {count / wall:.0f} /s")
    print(
        f"  CPU s: bridge {cpu['bridge']:.1f}, broker {cpu['broker']:.1f}, loaders {sum(r[4] for r in rows):.1f}"
    )
    print(
        f"  bridge: {cpu['bridge'] / count * 1e6:.0f} µs CPU an update; RSS {memory_before:.0f} → {memory:.0f} MB"
    )
    print(f"  accepted {cell.accepted}, duplicates {cell.duplicates}, refused {cell.rejected} {rows[0][3]}")
    if options.profile:
        script = f"import pstats; pstats.Stats({str(directory / 'profile')!r}).sort_stats('tottime').print_stats(28)"
        subprocess.run([sys.executable, "-c", script], check=True)


def main() -> None:
    """Read the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=20_000)
    parser.add_argument("--loaders", type=int, default=2)
    parser.add_argument("--broker", default="mosquitto", choices=("mosquitto", "iotcore"))
    parser.add_argument("--profile", action="store_true", help="slows the bridge; prints where its time goes")
    with tempfile.TemporaryDirectory() as directory:
        measure(parser.parse_args(), Path(directory))


if __name__ == "__main__":
    main()
