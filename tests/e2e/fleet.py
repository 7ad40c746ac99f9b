"""A real daemon in its own process, and a scripted bridge that speaks paho: what the device tests talk to."""

import hashlib
import os
import queue
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from edge_client.wire import chunks, frame, topics
from edge_client.wire.messages import (
    Assignment,
    BlobRef,
    BlobRequest,
    DataSchema,
    Offer,
    Receipt,
    ServiceState,
    TrainingPlan,
    decode,
    encode,
)

ROOT = Path(__file__).parents[2]
FAKE_CHILD = Path(__file__).with_name("fake_child.py")
WAIT_S = 20.0  # deadline of a condition; each is met within a second on a quiet machine
SCHEMA = DataSchema(shape=(2, 8), n_classes=3, axes=("channel", "time"))
_RUN = """
import sys
from pathlib import Path
from edge_client import config, process, trainer
if sys.argv[2]:
    trainer.COMMAND = (sys.executable, sys.argv[2])
process.run(config.load(Path(sys.argv[1])), log_json=True)
"""


class Node:
    """A daemon process with its configuration; `child` empty means the real trainer child."""

    def __init__(self, folder, port, *, child=str(FAKE_CHILD), protocol="auto", data=""):
        self.folder = folder
        self.config = folder / "device.toml"
        self.child = child
        self.prelude = ""  # code that runs before the daemon's imports
        self.process = None
        declared = data or (
            '[data.demo]\npath = "demo.npz"\nshape = [2, 8]\nclasses = 3\naxes = ["channel", "time"]\n'
        )
        self.config.write_text(
            f'[device]\nid = "dev"\nstate_dir = "state"\n[broker]\nhost = "127.0.0.1"\nport = {port}\n'
            f'protocol = "{protocol}"\nkeepalive = 5\n{declared}'
        )
        self.log = folder / "daemon.log"

    def username(self, name):
        """Connect under this user name."""
        text = self.config.read_text()
        self.config.write_text(text.replace("[broker]\n", f'[broker]\nusername = "{name}"\n'))

    def start(self):
        """Start the daemon; its log goes on in the same file."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", self.prelude + _RUN, str(self.config), self.child],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stderr=log,
            )
        return self

    def kill(self):
        """Kill -9, as a power cut would."""
        self.process.kill()
        self.process.wait()

    def stop(self):
        """SIGTERM, and the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(WAIT_S)

    def children(self):
        """Process ids of the daemon's children."""
        text = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in text.split()]

    def events(self):
        """Names of the events logged so far."""
        lines = self.log.read_bytes().splitlines()
        return [msgspec.json.decode(line)["event"] for line in lines if line.startswith(b"{")]


class Bridge:
    """The bridge and aggregator of a test: collects what the device publishes, says what the test says."""

    def __init__(self, port):
        self.blobs = {}
        self.heard = []
        self._queue = queue.SimpleQueue()
        self.client = mqtt.Client(
            CallbackAPIVersion.VERSION2, "scripted-bridge", protocol=MQTTProtocolVersion.MQTTv5
        )
        self.client.on_connect = lambda c, *_: c.subscribe(topics.UP_FILTER, 1)
        subscribed = queue.SimpleQueue()
        self.client.on_subscribe = lambda *_: subscribed.put(True)
        self.client.on_message = lambda _c, _u, m: self._queue.put((m.topic, bytes(m.payload)))
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        subscribed.get(timeout=WAIT_S)

    def close(self):
        """Disconnect and end the network thread."""
        self.client.disconnect()
        self.client.loop_stop()

    def say(self, topic, message, *, retain=False):
        """Publish a message, or bytes as they are."""
        payload = message if isinstance(message, bytes) else encode(message)
        self.client.publish(topic, payload, 1, retain=retain).wait_for_publish(WAIT_S)

    def wait(self, kind, accept=lambda _body: True):
        """The next message from the device on a topic of `kind` whose body `accept` takes; serves blobs."""
        deadline = time.monotonic() + WAIT_S
        seen = []
        while True:
            try:
                topic, payload = self._queue.get(timeout=max(0.01, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {kind} within {WAIT_S:g} s; saw {seen}") from None
            name = topic.split("/")[4]
            self.heard.append((topic, payload))
            if name == "get":
                self._serve(decode(BlobRequest, payload))
            body = payload if name == "up" else (msgspec.json.decode(payload) if payload else None)
            seen.append((topic, body if name != "up" else len(payload)))
            if name == kind and accept(body):
                return topic, body

    def task(self, state, reason=""):
        """Wait for a TaskStatus."""
        return self.wait("task", lambda b: b["state"] == state and reason in b.get("reason", ""))[1]

    def ask(self):
        """Wait for an ask."""
        return self.wait("ask")[1]

    def blob(self, data):
        """Have a blob to serve."""
        digest = hashlib.sha256(data).hexdigest()
        self.blobs[digest] = data
        return BlobRef(digest, len(data))

    def offer(self, data=SCHEMA, job="job", **more):
        """Publish a retained offer; asks are repeated each second."""
        bundle = self.blob(b"bundle of " + job.encode())
        self.say(topics.offer("all", job), Offer(job, "demo", data, bundle, 1.0, **more), retain=True)

    def assign(self, ask, *, size=200_000, steps=2, version=0):
        """Answer an ask with a model of `size` bytes."""
        model = self.blob(bytes(range(251)) * (size // 251))
        plan = TrainingPlan(steps, 4, 0.1, 0.1, 1.0)
        bundle = self.blob(b"bundle of " + ask["job"].encode())
        answer = Assignment(ask["job"], ask["ask"], version, "00" * 8, bundle, (model,), plan, 60.0)
        self.say(topics.assign("dev", ask["job"]), answer)

    def update(self):
        """Wait for all chunks of an update; its uid and frame."""
        topic, payload = self.wait("up")
        parsed = topics.parse_up(topic)
        kind, _codec, body = frame.decode(payload)
        if kind is not frame.Kind.CHUNK:
            return parsed.uid, payload
        first = chunks.decode(body)
        parts = {first.index: first.data}
        while len(parts) < first.count:
            topic, payload = self.wait("up")
            part = chunks.decode(frame.decode(payload)[2])
            parts[part.index] = part.data
        return parsed.uid, b"".join(parts[i] for i in range(first.count))

    def receipt(self, uid, verdict="accepted", code="", missing=()):
        """Judge an update."""
        self.say(topics.receipt("dev"), Receipt(str(uid), verdict, code, "", missing))

    def bridge_state(self, state, conn_seq):
        """Publish the bridge's retained birth or will."""
        self.say(topics.service_state("bridge"), ServiceState(state, conn_seq), retain=True)

    def _serve(self, request):
        data = self.blobs.get(request.digest)
        size = request.chunk_bytes
        if data is None:
            self.client.publish(topics.blob("dev", request.digest, 0), b"", 1)
            return
        total = chunks.count(len(data), size)
        for index in range(request.start, min(request.start + request.count, total)):
            packet = chunks.cut(data, index, size).encode()
            self.client.publish(topics.blob("dev", request.digest, index), packet, 1)
