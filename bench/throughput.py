"""How many updates a second go through broker, bridge, log and fold, and how long a device waits for its receipt.

    python bench/throughput.py [--seconds 30] [--loaders 2] [--devices 600] [--buffer 500] [--out results.json]

A real server (`fedfleet up`) on mosquitto, and loader processes on the same cores that play many devices over one
MQTT connection each: every device has its own identity, sequence numbers and at most one update without a receipt,
made from the version that was announced last. Frames are real ones of a 1-D CNN of 51 231 parameters in 8 tensors at a
density of 1 %, encoded beforehand and given each update's name. Four measurements of so many seconds each:

- `updates`: each device sends its next update when it has a receipt. Its rate is what was folded, not what was sent.
- `half`: devices send at half that rate whatever comes back; the times are from publish to receipt.
- `leases`: each update has its ask, its assignment and its lease.
- `viewed`: as `half`, while 200 viewers follow all events over HTTP; `viewers_cost` is by how much the server's processor
  time for an update, all its processes together, is over that of `half`.
"""

import argparse
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from aggregator.sdk import Fleet, FleetError
from broker_bridge.broker import free_port
from edge_client.wire import messages, sparse, topics
from edge_client.wire.messages import Ask, Assignment, Receipt, VersionNotice
from edge_client.wire.topics import Uid
from edge_client.wire.weights import Sparse, SparseTensor
from firmware_tools import compile_training
from firmware_tools.zoo import cnn1d

JOB = "bench"
WIDTHS = (48, 72, 88)  # 51 231 parameters
DENSITY = 0.01
FRAMES = 64  # different ones; each is sent under many names
EPOCH = "0123456789abcdef"
WARM_S = 3.0  # before each measurement
READY_S = 60.0
DRAIN_S = 60.0
VIEWERS = 200


def templates(sizes: tuple[int, ...], seed: int) -> list[bytes]:
    """Update frames of random places and signs."""
    rng = np.random.default_rng(seed)
    frames = []
    for _ in range(FRAMES):
        tensors = []
        for size in sizes:
            k = max(1, round(size * DENSITY))
            places = np.sort(rng.choice(size, k, replace=False)).astype(np.int64)
            tensors.append(SparseTensor(places, rng.random(k) < 0.5, 0.01))
        frames.append(sparse.encode(sparse.Update(0, bytes(8), 0, 50, Sparse.of(tensors)), sizes))
    return frames


def named(frame: bytes, uid: str, version: int, base_hash: bytes) -> bytes:
    """The frame under a name and from a base: to encode each anew would make the loaders the bottleneck."""
    tag = sha256(uid.encode()).digest()[:4]
    data = b"".join((frame[:8], version.to_bytes(4, "little"), tag, base_hash, frame[24:-4]))
    return data + zlib.crc32(data).to_bytes(4, "little")


@dataclass(slots=True)
class Device:
    """One simulated device."""

    name: str
    seq: int = 0
    ask: int = 0
    sent_at: float = 0.0  # of the update without a receipt, 0 when there is none


@dataclass
class Loader:
    """Plays devices over one connection; runs in a process of its own."""

    number: int
    devices: int
    frames: list[bytes]
    base: tuple[int, bytes] = (-1, b"")
    leased: bool = False
    steady: bool = False  # answers are followed by the next update at once
    refused: dict[str, int] = field(default_factory=dict)
    receipts: list[tuple[float, float]] = field(default_factory=list)  # when, and after how long

    def serve(self, port: int, orders: "Connection[Any, Any]") -> None:
        """Connect, then run a measurement for each order: (mode, updates a second, seconds)."""
        self.fleet = [Device(f"l{self.number}-{i}") for i in range(self.devices)]
        self.by_name = {device.name: device for device in self.fleet}
        self.client = paho.Client(CallbackAPIVersion.VERSION2, f"loader-{self.number}", protocol=paho.MQTTv5)
        self.client.max_inflight_messages_set(0)
        self.client.on_message = self._take
        self.client.connect("127.0.0.1", port)
        filters = [f"{topics.ROOT}/b/all/version/#"]
        filters += [f"{topics.ROOT}/c/{device.name}/#" for device in self.fleet]
        for start in range(0, len(filters), 100):
            self.client.subscribe([(name, 1) for name in filters[start : start + 100]])
        while self.base[0] < 0:
            self.client.loop(0.01)
        orders.send("ready")
        while (order := orders.recv()) is not None:
            orders.send(self._measure(*order))

    def _measure(self, mode: str, rate: float, seconds: float) -> dict[str, Any]:
        self.leased, self.steady = mode == "leases", mode != "half"
        self.receipts.clear()
        began, spent, sent = time.monotonic(), time.process_time(), 0
        if self.steady:
            for device in self.fleet:
                self._next(device)
        while (now := time.monotonic()) < began + seconds:
            while not self.steady and sent < (now - began) * rate:
                device = self.fleet[sent % len(self.fleet)]
                sent += 1
                if (
                    not device.sent_at
                ):  # one that still waits for a receipt sends nothing: that is the protocol
                    self._send(device, *self.base)
            self.client.loop(0.002)
        self.steady = False
        deadline = time.monotonic() + DRAIN_S
        while any(device.sent_at for device in self.fleet) and time.monotonic() < deadline:
            self.client.loop(0.01)
        waiting = sum(device.sent_at > 0 for device in self.fleet)
        return {
            "receipts": list(self.receipts),
            "cpu_s": time.process_time() - spent,
            "refused": self.refused,
            "without_receipt": waiting,
        }

    def _next(self, device: Device) -> None:
        if not self.leased:
            self._send(device, *self.base)
            return
        device.ask += 1
        self._publish(topics.ask(device.name), messages.encode(Ask(JOB, device.ask, 100, 0)))

    def _send(self, device: Device, version: int, base_hash: bytes) -> None:
        uid = Uid(device.name, JOB, EPOCH, device.seq)
        frame = named(self.frames[device.seq % FRAMES], str(uid), version, base_hash)
        device.seq += 1
        device.sent_at = time.monotonic()
        self._publish(topics.update(uid, 0), frame)

    def _publish(self, topic: str, payload: bytes) -> None:
        self.client.publish(topic, payload, qos=1)

    def _take(self, _client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        _, _, tree, name, kind, *_ = message.topic.split("/")
        if tree == "b":
            notice = messages.decode(VersionNotice, message.payload)
            self.base = (notice.version, bytes.fromhex(notice.version_hash))
        elif kind == "receipt":
            receipt, device, now = (
                messages.decode(Receipt, message.payload),
                self.by_name[name],
                time.monotonic(),
            )
            if receipt.verdict != "accepted":
                self.refused[receipt.code] = self.refused.get(receipt.code, 0) + 1
            self.receipts.append((now, now - device.sent_at))
            device.sent_at = 0.0
            if self.steady:
                self._next(device)
        elif kind == "assign" and self.steady:
            assignment = messages.decode(Assignment, message.payload)
            device = self.by_name[name]
            if assignment.ask == device.ask and not device.sent_at:
                self._send(device, assignment.version, bytes.fromhex(assignment.version_hash))


def play(number: int, devices: int, frames: list[bytes], port: int, orders: "Connection[Any, Any]") -> None:
    """Entry point of a loader process."""
    Loader(number, devices, frames).serve(port, orders)


# -- the server ---------------------------------------------------------------------------------------


@contextmanager
def server(state: Path, broker: str) -> Any:
    """`fedfleet up` in a process of its own: its HTTP and MQTT port, and the ids of its processes by name."""
    http, mqtt = free_port(), free_port()
    command = [
        str(Path(sys.executable).with_name("fedfleet")),
        "up",
        "--state-dir",
        str(state),
        "--broker",
        broker,
    ]
    process = subprocess.Popen(
        [*command, "--port", str(http), "--mqtt-port", str(mqtt)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        with Fleet(f"http://127.0.0.1:{http}") as fleet:
            wait_until(lambda: answers(fleet), READY_S)
            pids = roles(process.pid)
            for pid in pids.values():
                prefer(pid)
            yield fleet, mqtt, pids
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def prefer(pid: int) -> None:
    """Give a process's session the priority of this one: each session has its share of a core whatever its niceness."""
    group = Path(f"/proc/{pid}/autogroup")
    if group.exists() and os.getpriority(os.PRIO_PROCESS, 0) < 0:
        group.write_text(str(os.getpriority(os.PRIO_PROCESS, 0)))


def roles(supervisor: int) -> dict[str, int]:
    """The server's processes by what they are."""
    found = {"supervisor": supervisor}
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    for pid in map(int, children):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        for role, word in (
            ("bridge", "broker_bridge"),
            ("aggregator", "aggregator"),
            ("broker", "mosquitto"),
        ):
            if any(part == word or part.endswith(f"/{word}") for part in words):
                found[role] = pid
                break
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time of a live process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mb(pid: int) -> float:
    """Resident memory of a live process in MB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def folded(fleet: Fleet) -> int:
    """Updates in versions and in the buffer."""
    job = fleet.job(JOB).facts
    return int(job["updates"]) + int(job["buffered"])


def answers(fleet: Fleet) -> bool:
    """True once the server does."""
    try:
        return bool(fleet.health()["status"] == "ok")
    except FleetError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    """Poll a condition; raise TimeoutError."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.05)


@contextmanager
def watched(url: str) -> Any:
    """Viewers of all events in a process of their own."""
    command = [
        sys.executable,
        str(Path(__file__).with_name("api.py")),
        "--view",
        url,
        "--viewers",
        str(VIEWERS),
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as viewers:
        assert viewers.stdout is not None
        assert viewers.stdin is not None
        prefer(viewers.pid)
        if viewers.stdout.readline() != "ready\n":
            sys.exit("the viewers do not connect")
        yield
        viewers.stdin.close()
        seen = json.loads(viewers.stdout.read())
    print(f"viewers saw {min(seen)} to {max(seen)} updates each", file=sys.stderr)


# -- measuring ----------------------------------------------------------------------------------------


def phase(
    mode: str,
    rate: float,
    seconds: float,
    fleet: Fleet,
    pids: dict[str, int],
    links: "list[Connection[Any, Any]]",
) -> dict[str, Any]:
    """One measurement, after a warm-up that belongs to it."""
    for link in links:
        link.send((mode, rate / len(links), WARM_S + seconds))
    time.sleep(WARM_S)
    cpu = {role: cpu_seconds(pid) for role, pid in pids.items()}
    memory = {role: rss_mb(pid) for role, pid in pids.items()}
    began, before = time.monotonic(), folded(fleet)
    time.sleep(seconds - 0.5)  # the loaders still send
    after, ended = folded(fleet), time.monotonic()
    cpu = {role: cpu_seconds(pid) - cpu[role] for role, pid in pids.items()}
    grown = {role: round(rss_mb(pid) - memory[role], 1) for role, pid in pids.items()}
    results = [link.recv() for link in links]
    waits = np.array([wait for r in results for at, wait in r["receipts"] if began <= at < ended])
    count, loaders_s = after - before, sum(r["cpu_s"] for r in results) * (ended - began) / (seconds + WARM_S)
    began_drain = time.monotonic()
    wait_until(lambda: _taken(fleet), DRAIN_S)
    return {
        "folded_per_s": round(count / (ended - began)),
        "receipts_per_s": round(len(waits) / (ended - began)),
        "receipt_ms": {f"p{q}": round(1e3 * float(np.percentile(waits, q)), 1) for q in (50, 90, 99, 100)},
        "cpu_ms_per_update": {
            role: round(1e3 * s / count, 3) for role, s in (cpu | {"loaders": loaders_s}).items()
        },
        "cpu_share_of_a_core": {role: round(s / (ended - began), 2) for role, s in cpu.items()},
        "rss_grown_mb": grown,
        "drained_s": round(time.monotonic() - began_drain, 2),
        "without_receipt": sum(r["without_receipt"] for r in results),
        "refused": [r["refused"] for r in results if r["refused"]],
    }


def _taken(fleet: Fleet) -> bool:
    before = folded(fleet)
    time.sleep(0.3)
    return folded(fleet) == before


def server_ms(result: dict[str, Any]) -> float:
    """Processor time of the server for an update."""
    spent: dict[str, float] = result["cpu_ms_per_update"]
    return sum(ms for role, ms in spent.items() if role != "loaders")


def measure(options: argparse.Namespace, state: Path) -> dict[str, Any]:
    """All measurements on one server."""
    compiled = compile_training(cnn1d(widths=WIDTHS))
    sizes = compiled.manifest.sizes
    with server(state, options.broker) as (fleet, port, pids):
        spec = {"name": JOB, "bundle": fleet.upload(compiled.to_bytes()), "dataset": "bench"}
        fleet.start(
            {**spec, "buffer_size": options.buffer, "concurrency": options.devices, "staleness_max": 100}
        )
        share = options.devices // options.loaders
        links, workers = [], []
        for number in range(options.loaders):
            ours, theirs = multiprocessing.Pipe()
            frames = templates(sizes, number)
            worker = multiprocessing.Process(target=play, args=(number, share, frames, port, theirs))
            worker.start()
            prefer(worker.pid or 0)
            links.append(ours)
            workers.append(worker)
        for link in links:
            link.recv()
        results: dict[str, Any] = {"frame_bytes": len(templates(sizes, 0)[0]), "parameters": sum(sizes)}
        results["updates"] = phase("updates", 0, options.seconds, fleet, pids, links)
        half = results["updates"]["folded_per_s"] / 2
        results["half"] = phase("half", half, options.seconds, fleet, pids, links)
        results["leases"] = phase("leases", 0, options.seconds, fleet, pids, links)
        with watched(fleet.url):
            results["viewed"] = phase("half", half, options.seconds, fleet, pids, links)
        cost = {name: server_ms(results[name]) for name in ("half", "viewed")}
        results["viewers_cost"] = round(cost["viewed"] / cost["half"] - 1, 3)
        for link, worker in zip(links, workers, strict=True):
            link.send(None)
            worker.join(10)
        return results


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--loaders", type=int, default=2)
    parser.add_argument("--devices", type=int, default=600)
    parser.add_argument("--buffer", type=int, default=500)
    parser.add_argument("--broker", default="mosquitto", choices=("mosquitto", "iotcore"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = {
            "options": {name: str(value) for name, value in vars(options).items() if name != "out"},
            "load_average": os.getloadavg()[0],
            **measure(options, Path(folder) / "server"),
        }
    print(json.dumps(results, indent=2))
    if options.out:
        options.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
