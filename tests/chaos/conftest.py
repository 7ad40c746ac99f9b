"""A whole server and real daemons, an observer that keeps its own ledger, and the audit at the end."""

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import numpy as np
import paho.mqtt.client as mqtt
import pytest

from aggregator import sdk
from aggregator.supervise import Supervisor
from broker_bridge.broker import find_mosquitto
from broker_bridge.ports import Kind
from broker_bridge.ports.open import open_ports
from broker_bridge.records import DIGEST_BYTES
from edge_client.bundle import open_bundle
from edge_client.wire import chunks, frame, messages, topics
from edge_client.wire.messages import Ask, Assignment, Receipt
from firmware_tools.compiler import compile_training
from firmware_tools.zoo import cnn1d
from tests.replay import replay
from tests.witness import Witness

WAIT_S = 60.0
SMALL_PACKET_BYTES = 5000  # a broker that takes no larger ones: near the least that devices can use
DENSE = {"steps": 3, "density": 0.5}  # training whose updates of `large_bundle` go in chunks
CONFIG = """
[device]
id = "{name}"
state_dir = "state"
[broker]
host = "127.0.0.1"
port = {port}
keepalive = {keepalive}
[data.waves]
path = "shard.npz"
shape = [2, 16]
classes = 3
"""


def until(condition, what, seconds=WAIT_S):
    """Wait for a condition with a deadline; return its value."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds:g} s: {what}")


class Ledger:
    """What an independent observer on the broker saw: frames sent by uid, and receipts by uid."""

    def __init__(self, port):
        self.frames = {}
        self.chunks = {}  # by uid and digest of the whole, those of its update by index
        self.verdicts = {}
        self.asks = {}  # by device and number
        self.assignments = []  # of each device in their order, with its name
        self._lock = threading.Lock()
        self._client = mqtt.Client(  # the version that both brokers speak on this port
            mqtt.CallbackAPIVersion.VERSION2, client_id="ledger", protocol=mqtt.MQTTv5
        )
        self._client.on_message = self._seen
        self._client.on_connect = lambda client, *_: client.subscribe(
            [(f"{topics.ROOT}/{tree}", 1) for tree in ("d/+/up/#", "d/+/ask", "c/+/assign/+", "c/+/receipt")]
        )
        self._client.reconnect_delay_set(1, 1)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def _seen(self, _client, _userdata, message):
        with self._lock:
            device = message.topic.split("/")[3]
            if message.topic.endswith("/ask"):
                ask = messages.decode(Ask, message.payload)
                self.asks[device, ask.ask] = ask
                return
            if "/assign/" in message.topic:
                assignment = messages.decode(Assignment, message.payload)
                self.assignments.append((device, assignment))
                return
            if message.topic.endswith("/receipt"):
                receipt = messages.decode(Receipt, message.payload)
                if receipt.verdict != "incomplete":
                    self.verdicts.setdefault(receipt.uid, set()).add((receipt.verdict, receipt.code))
                return
            uid = topics.parse_up(message.topic).uid
            whole = self._whole(str(uid), bytes(message.payload))
            if whole is not None:
                self.frames.setdefault(str(uid), set()).add(whole)

    def _whole(self, uid, packet):
        """The update that a packet is or completes, None while chunks of it are missing."""
        if packet[2] != frame.Kind.CHUNK:
            return packet
        chunk = chunks.decode(frame.decode(packet)[2])
        parts = self.chunks.setdefault((uid, chunk.digest), {})
        parts[chunk.index] = chunk.data
        return b"".join(parts[i] for i in range(chunk.count)) if len(parts) == chunk.count else None

    def stop(self):
        self._client.disconnect()
        self._client.loop_stop()


class Fleet:
    """A server under a supervisor thread, and daemons."""

    def __init__(self, directory: Path, kind: str):
        self.directory = directory
        self.keepalive = 60
        self.supervisor = Supervisor(directory / "server", 0, 0, kind)
        self.log = Witness(directory / "server" / "fleet.db", frames=True)
        self.daemons = {}

    def start(self):
        self.supervisor.start()
        self.mqtt_port = self.supervisor.broker.port
        self.api = sdk.Fleet(f"http://127.0.0.1:{self.supervisor.http_port}")
        until(self.healthy, "the API answers")
        self.log.start()
        self.ledger = Ledger(self.mqtt_port)

    def healthy(self):
        try:
            return self.api.health()["status"] == "ok"
        except sdk.FleetError:
            return False

    def job(self):
        try:
            return self.api.job("waves").facts
        except sdk.FleetError:
            return None

    def start_job(self, bundle, **fields):
        (self.directory / "job.bundle").write_bytes(bundle)
        spec = {
            "name": "waves",
            "bundle": self.api.upload(bundle),
            "dataset": "waves",
            "retry_s": 1,
            **fields,
        }
        self.api.start({"buffer_size": 3, "concurrency": 8, "training": {"steps": 3, "density": 0.1}, **spec})

    def start_device(self, name):
        home = self.directory / name
        if not home.exists():
            home.mkdir()
            rng = np.random.default_rng(len(name) + ord(name[-1]))
            y = np.arange(60) % 3
            waves = np.sin((1 + y)[:, None, None] * np.arange(16) / 3 + rng.uniform(0, 6, (60, 2, 1)))
            np.savez(home / "shard.npz", x=waves.astype(np.float32), y=y)
            (home / "device.toml").write_text(
                CONFIG.format(name=name, port=self.mqtt_port, keepalive=self.keepalive)
            )
        with (home / "daemon.log").open("ab") as log:
            self.daemons[name] = subprocess.Popen(
                [sys.executable, "-m", "edge_client", "device", "run", "--config", str(home / "device.toml")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def kill_device(self, name):
        daemon = self.daemons.pop(name)
        daemon.kill()
        daemon.wait()

    def kill_child(self, name):
        """SIGKILL a server process, then let the supervisor bring it back."""
        child = next(c for c in self.supervisor.children if c.name == name)
        os.kill(child.process.pid, signal.SIGKILL)
        child.process.wait()
        until(lambda: self.supervisor.tend() or child.process.poll() is None, f"{name} runs again")

    def kill_broker(self):
        killed = self.supervisor.broker
        killed.kill()
        until(lambda: self.supervisor.tend() or self.supervisor.broker is not killed, "another broker")

    def tend(self):
        """Start what has died again: server processes as a supervisor does, devices as systemd does."""
        self.supervisor.tend()
        for name, daemon in list(self.daemons.items()):
            if daemon.poll() is not None:
                self.start_device(name)
        return True

    def stop_devices(self):
        for daemon in self.daemons.values():
            daemon.terminate()
        for daemon in self.daemons.values():
            daemon.wait(20)
        self.daemons.clear()

    def close(self):
        for daemon in self.daemons.values():
            daemon.kill()
            daemon.wait()
        if hasattr(self, "ledger"):
            self.ledger.stop()
        self.log.end()
        if hasattr(self, "api"):
            self.api.close()
        self.supervisor.stop()

    def audit(self):
        """Stop the server and prove from its files that every accepted update was folded exactly once.

        Returns the number of updates folded.
        """
        self.ledger.stop()
        self.supervisor.stop()
        self.log.end()
        trained = open_bundle(self.directory / "job.bundle").manifest
        return asyncio.run(_audit(self.directory / "server" / "fleet.db", trained, self.ledger, self.log))


async def _audit(path, bundle, ledger, log):
    updates = {uid: mark for uid, mark in log.marks().items() if mark[2] == Kind.UPDATE}
    accepted = {uid for uid, seen in ledger.verdicts.items() if seen == {("accepted", "")} and ":" in uid}
    assert {uid for uid, seen in ledger.verdicts.items() if len(seen) > 1} == set(), "two verdicts"
    assert accepted, "the ledger saw nothing"
    assert accepted & set(ledger.frames) <= set(updates), "an accepted update is not in the log"
    for uid, sent in ledger.frames.items():
        if uid in updates:
            digests = {hashlib.sha256(frame).digest()[:DIGEST_BYTES] for frame in sent}
            assert digests == {updates[uid][3].digest}, "other bytes than were sent"
    frames = log.frames | {uid: min(sent) for uid, sent in ledger.frames.items()}
    entries = {(partition, offset): (uid, frames[uid]) for uid, (partition, offset, *_) in updates.items()}
    ports = open_ports(f"sqlite:///{path}")
    try:
        _, spec = await ports.heads.load("spec/waves")
        assert msgspec.json.decode(spec)["state"] == "ended"
        await replay(ports, "waves", bundle, entries)
    finally:
        await ports.close()
    return len(updates)


def compile_bundle(quantize="int8-weights", widths=(4, 8)):
    model = cnn1d(channels=2, length=16, classes=3, widths=widths)
    return compile_training(model, learning_rate=0.02, quantize=quantize)


@pytest.fixture(scope="session")
def bundle() -> bytes:
    return compile_bundle().to_bytes()


@pytest.fixture(scope="session")
def large_bundle() -> bytes:
    """One whose dense updates take several packets of SMALL_PACKET_BYTES."""
    return compile_bundle(widths=(64, 128)).to_bytes()


@pytest.fixture(params=["mosquitto", "iotcore"])
def fleet(request, tmp_path):
    """A started server with the named broker."""
    if request.param == "mosquitto" and find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
    if request.param == "iotcore":
        pytest.importorskip("iotcore", reason="iotcore comes with the extra [server]")
    fleet = Fleet(tmp_path, request.param)
    try:
        fleet.start()
        yield fleet
    finally:
        fleet.close()
