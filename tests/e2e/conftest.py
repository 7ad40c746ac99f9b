"""A broker, a bridge process and paho clients as devices, with the ports open to look into."""

import asyncio
import hashlib
import queue
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from broker_bridge import cells
from broker_bridge.broker import Broker
from broker_bridge.cells import BridgeCell, JobCell, VersionCell
from broker_bridge.ports import Entry, Kind, Ports, open_ports
from edge_client.wire import messages, sparse, topics
from edge_client.wire.messages import Receipt, ServiceState
from edge_client.wire.topics import Uid
from edge_client.wire.weights import Sparse, SparseTensor

DEADLINE_S = 15.0
EPOCH = "0123456789abcdef"
SIZES = (400, 30)
HASH = bytes(8)
JOB = JobCell("running", SIZES, norm_max=10.0, staleness_max=3, frame_bytes_max=400_000)
VERSION = VersionCell(7, "m" * 64, {v: HASH.hex() for v in range(3, 8)})
T = TypeVar("T")


def until(condition: Callable[[], T], what: str, seconds: float = DEADLINE_S) -> T:
    """The first true value of `condition`, under a deadline."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)
    return value


def update(
    uid: Uid, scale: float = 0.5, *, base: int = 7, sizes: tuple[int, ...] = SIZES, k: int = 20
) -> bytes:
    """The frame of update `uid`, k values per tensor."""
    tensors = tuple(
        SparseTensor(np.arange(min(k, s)), np.zeros(min(k, s), dtype=np.bool_), scale) for s in sizes
    )
    return sparse.encode(sparse.Update(base, HASH, uid.tag, 10, Sparse.of(tensors)), sizes)


class Device:
    """A paho client that keeps what it receives; receipts apart from the rest."""

    def __init__(self, broker: Broker, name: str, *filters: str) -> None:
        self.name = name
        self.receipts: queue.Queue[Receipt] = queue.Queue()
        self.inbox: queue.Queue[tuple[str, bytes, bool]] = queue.Queue()
        self._filters = filters or (topics.command_filter(name),)
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=name, protocol=paho.MQTTv5, reconnect_on_failure=True
        )
        self._client.reconnect_delay_set(0.05, 0.2)  # type: ignore[arg-type]
        self._client.on_message = self._on_message
        self._client.on_connect = lambda client, *_: client.subscribe([(f, 1) for f in self._filters])
        self._subscribed = queue.Queue()
        self._client.on_subscribe = lambda *_: self._subscribed.put(True)
        self._client.connect(broker.host, broker.port)
        self._client.loop_start()
        self._subscribed.get(timeout=DEADLINE_S)

    def uid(self, seq: int, job: str = "har") -> Uid:
        """The name of this device's update `seq`."""
        return Uid(self.name, job, EPOCH, seq)

    def send(self, topic: str, payload: bytes) -> None:
        """Publish at QoS 1 and wait until the broker has it."""
        self._client.publish(topic, payload, qos=1).wait_for_publish(DEADLINE_S)

    def receipt(self, uid: Uid) -> Receipt:
        """The next receipt, which must be for `uid`."""
        receipt = self.receipts.get(timeout=DEADLINE_S)
        assert receipt.uid == str(uid), receipt
        return receipt

    def verdict(self, uid: Uid, frame: bytes) -> Receipt:
        """Send an update in one packet and wait for its receipt."""
        self.send(topics.update(uid, 0), frame)
        return self.receipt(uid)

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()

    def _on_message(self, _client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        if message.topic == topics.receipt(self.name):
            self.receipts.put(messages.decode(Receipt, bytes(message.payload)))
        else:
            self.inbox.put((message.topic, bytes(message.payload), message.retain))


class Rig:
    """One broker, one bridge process that may be killed and started again, and devices."""

    def __init__(self, broker: Broker, directory: Path) -> None:
        self.broker = broker
        self.directory = directory
        self.url = f"sqlite:///{directory}/fleet.db"
        self.bridge: subprocess.Popen[bytes] | None = None
        self.environment: dict[str, str] | None = (
            None  # what the next bridge is started with; None: this process's
        )
        self._devices: list[Device] = []
        self.swing(cells.job_key("har"), msgspec.json.encode(JOB))
        self.swing(cells.version_key("har"), msgspec.json.encode(VERSION))

    # -- processes

    def start_bridge(self, port: int | None = None, event: str = "broker_connected") -> None:
        """Start a bridge and wait until it logs that it is connected, or another event."""
        address = f"{self.broker.host}:{port or self.broker.port}"
        command = [sys.executable, "-m", "broker_bridge", "--ports", self.url, "--broker", address]
        before = self.log_text().count(event)
        with (self.directory / "bridge.log").open("ab") as log:
            self.bridge = subprocess.Popen(
                [*command, "--log-level", "debug"], stderr=log, env=self.environment
            )
        until(lambda: self.log_text().count(event) > before, f"the bridge logs {event}")

    def kill_bridge(self) -> None:
        """Kill -9."""
        assert self.bridge is not None
        self.bridge.kill()
        self.bridge.wait()

    def stop_bridge(self) -> int:
        """SIGTERM; the exit code."""
        assert self.bridge is not None
        self.bridge.terminate()
        return self.bridge.wait(DEADLINE_S)

    def log_text(self) -> str:
        """What the bridge has logged."""
        path = self.directory / "bridge.log"
        return path.read_text() if path.exists() else ""

    def restart_broker(self) -> None:
        """Kill -9 the broker and start another on its ports."""
        old = self.broker
        old.kill()
        self.broker = Broker.start(
            old.kind,
            state_dir=old.state_dir,
            port=old.port,
            port_v311=0 if old.kind == "mosquitto" else old.port_v311,
        )

    def device(self, name: str, *filters: str) -> Device:
        """Connect a device."""
        device = Device(self.broker, name, *filters)
        self._devices.append(device)
        return device

    def close(self) -> None:
        """End everything."""
        for device in self._devices:
            device.close()
        if self.bridge is not None and self.bridge.poll() is None:
            self.bridge.kill()
            self.bridge.wait()
        self.broker.stop()

    # -- ports

    def call(self, body: Callable[[Ports], Awaitable[T]]) -> T:
        """The result of `body` with the ports open for as long as it runs."""

        async def main() -> T:
            ports = open_ports(self.url)
            try:
                return await body(ports)
            finally:
                await ports.close()

        return asyncio.run(main())

    def entries(self, device: str) -> list[Entry]:
        """The log entries of a device's partition."""
        return self.call(lambda ports: ports.log.read(topics.partition(device, ports.partitions), 0, 10_000))

    def swing(self, key: str, value: bytes) -> None:
        """Set a head."""

        async def body(ports: Ports) -> None:
            revision, _ = await ports.heads.load(key)
            await ports.heads.swing(key, revision, value)

        self.call(body)

    def drop(self, key: str) -> None:
        """Drop a head."""

        async def body(ports: Ports) -> None:
            await ports.heads.drop(key, (await ports.heads.load(key))[0])

        self.call(body)

    def counters(self) -> BridgeCell:
        """The bridge's counters as stored."""
        _, value = self.call(lambda ports: ports.heads.load(f"{cells.BRIDGE_PREFIX}main"))
        return msgspec.json.decode(value, type=BridgeCell) if value else BridgeCell(at=0.0)


@pytest.fixture
def rig(broker: Broker, tmp_path: Path) -> Iterator[Rig]:
    """A broker of each kind with a running bridge that knows the job `har` at version 7."""
    made = Rig(broker, tmp_path)
    made.start_bridge()
    yield made
    made.close()


@pytest.fixture
def tools() -> type:
    """What the tests build messages with, since test modules do not import one another."""

    class Tools:
        update = staticmethod(update)
        until = staticmethod(until)
        sha256 = staticmethod(lambda data: hashlib.sha256(data).hexdigest())
        state = staticmethod(lambda payload: messages.decode(ServiceState, payload))

    return Tools


def kinds(rig, device):
    """Kinds of a device's verdicts in the log, events left out."""
    return [e.kind for e in rig.entries(device) if e.kind is not Kind.EVENT]
