"""Hundreds of devices in one thread: a real MQTT connection and the device's protocol each, no trainer.

What a device would keep on its disk (`Device`) survives whatever happens to its connection. The ledger of what it
produced, and of every verdict that came, is written here and by nothing of the product.
"""

import asyncio
import contextlib
import random
import socket
import threading
import time
import zlib
from hashlib import sha256

import numpy as np
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edge_client.wire import messages, sparse, topics
from edge_client.wire.messages import Ask, Assignment, DeviceState, Receipt, ServiceState
from edge_client.wire.topics import Uid
from edge_client.wire.weights import Sparse, SparseTensor

JOB = "soak"
EPOCH = "0123456789abcdef"
FRAMES = 16  # different ones
RECEIPT_WAIT_S = (
    5.0  # before an update is sent again; a device's own 30 s would make few duplicates in a short test
)
ASK_WAIT_S = 3.0  # the same for an ask
RECONNECT_S = (0.2, 1.5)
TICK_S = 0.1


def frames(sizes, rng):
    """Real update frames of random places."""
    made = []
    for _ in range(FRAMES):
        kept = [max(1, size // 10) for size in sizes]
        places = [
            np.sort(rng.choice(n, k, replace=False)).astype(np.int64)
            for n, k in zip(sizes, kept, strict=True)
        ]
        parts = [SparseTensor(p, rng.random(len(p)) < 0.5, 2.0**-8) for p in places]
        made.append(sparse.encode(sparse.Update(0, bytes(8), 0, 50, Sparse.of(parts)), sizes))
    return made


def named(frame, uid, version, base_hash):
    """The frame under this name, from this base."""
    head = (frame[:8], version.to_bytes(4, "little"), uid.tag.to_bytes(4, "little"), base_hash)
    data = b"".join((*head, frame[24:-4]))
    return data + zlib.crc32(data).to_bytes(4, "little")


class Device:
    """One device: its connection, and what outlives it."""

    def __init__(self, name, swarm):
        self.name, self._swarm, self._rng = name, swarm, swarm.rng
        self._number = self._seq = 0
        self._ask = 1
        self._update = None  # uid and frame without a verdict
        self._due = 0.0  # when what waits is sent again
        self._assigned = None  # an assignment that is being trained, and until when
        self._client, self._up, self._dial_at = None, False, self._rng.uniform(0, 2)

    def tick(self, now):
        """Dial, finish a training, send again."""
        if self._client is None:
            if now >= self._dial_at:
                self._dial(now)
            return
        self._client.loop_misc()
        if self._assigned is not None and now >= self._assigned[1]:
            self._train(self._assigned[0])
        if self._up and now >= self._due:
            self._send(now)

    def drop(self):
        """Break the connection, as a network does."""
        broken = self._client.socket() if self._client is not None else None
        if broken is not None:
            with contextlib.suppress(OSError):  # it broke by itself
                broken.shutdown(socket.SHUT_RDWR)

    def settled(self):
        """Whether nothing waits for a verdict."""
        return self._update is None and self._assigned is None

    def _dial(self, now):
        self._number += 1
        client = paho.Client(
            CallbackAPIVersion.VERSION2, self.name, protocol=paho.MQTTv5, reconnect_on_failure=False
        )
        loop = asyncio.get_running_loop()
        client.on_connect, client.on_disconnect, client.on_message = self._connected, self._lost, self._take
        client.on_socket_open = lambda c, _u, s: loop.add_reader(s, c.loop_read)
        client.on_socket_close = lambda _c, _u, s: (loop.remove_reader(s), loop.remove_writer(s))
        client.on_socket_register_write = lambda c, _u, s: loop.add_writer(s, c.loop_write)
        client.on_socket_unregister_write = lambda _c, _u, s: loop.remove_writer(s)
        state = topics.state(self.name)
        client.will_set(state, messages.encode(DeviceState("lost", self._number)), 1, retain=True)
        lasting = Properties(PacketTypes.CONNECT)
        lasting.SessionExpiryInterval = 3600
        try:
            client.connect("127.0.0.1", self._swarm.port, 30, clean_start=False, properties=lasting)
        except OSError:
            self._dial_at = now + self._rng.uniform(*RECONNECT_S)
            return
        self._client = client

    def _connected(self, client, _data, _flags, reason, _properties):
        if reason.is_failure:
            return
        self._up, self._due = True, 0.0
        client.subscribe([(f"{topics.ROOT}/c/{self.name}/#", 1), (topics.service_state("+"), 1)])
        client.publish(
            topics.state(self.name), messages.encode(DeviceState("ready", self._number)), 1, retain=True
        )

    def _lost(self, *_):
        self._up, self._client = False, None
        self._dial_at = time.monotonic() + self._rng.uniform(*RECONNECT_S)

    def _send(self, now):
        if self._update is not None:
            uid, frame = self._update
            self._due = now + RECEIPT_WAIT_S * self._rng.uniform(1, 1.2)
            self._swarm.sent.append((now, self.name))
            for _ in range(2 if self._rng.random() < 0.05 else 1):  # some brokers deliver twice
                self._client.publish(topics.update(uid, 0), frame, 1)
        elif self._assigned is None and not self._swarm.ending:
            self._due = now + ASK_WAIT_S * self._rng.uniform(1, 1.2)
            ask = messages.encode(Ask(JOB, self._ask, 100, 0))
            self._client.publish(topics.ask(self.name), ask, 1)

    def _take(self, _client, _data, message):
        _, _, tree, _, kind, *_ = message.topic.split("/")
        if tree == "s":
            if message.payload and messages.decode(ServiceState, message.payload).state == "up":
                self._due = 0.0
        elif kind == "receipt":
            self._verdict(messages.decode(Receipt, message.payload))
        elif kind == "assign":
            assignment = messages.decode(Assignment, message.payload)
            waits = self._assigned is None and self._update is None and not self._swarm.ending
            if waits and assignment.ask == self._ask:
                train_s = assignment.not_before_s + self._rng.uniform(0.02, 0.2)
                self._assigned = assignment, time.monotonic() + train_s

    def _train(self, assignment):
        self._assigned = None
        uid = Uid(self.name, JOB, EPOCH, self._seq)
        number = self._rng.randrange(FRAMES)
        base = bytes.fromhex(assignment.version_hash)
        frame = named(self._swarm.frames[number], uid, assignment.version, base)
        self._seq += 1
        self._update, self._due = (uid, frame), 0.0
        self._swarm.produced[str(uid)] = frame

    def _verdict(self, receipt):
        self._swarm.verdicts.setdefault(receipt.uid, set()).add((receipt.verdict, receipt.code))
        self._swarm.receipts += 1
        if (
            self._update is not None
            and receipt.uid == str(self._update[0])
            and receipt.verdict != "incomplete"
        ):
            self._update, self._due = None, 0.0
            self._ask += 1


class Swarm:
    """The devices, in a thread of their own; `produced` and `verdicts` are the ledger, by uid."""

    def __init__(self, port, count, sizes, seed):
        self.port, self.rng, self.frames = (
            port,
            random.Random(seed),
            frames(sizes, np.random.default_rng(seed)),
        )
        self.produced, self.verdicts, self.receipts = {}, {}, 0
        self.sent = []  # when, and by which device, updates were published, again ones included
        self.ending = False
        self.devices = [Device(f"dev-{number}", self) for number in range(count)]
        self._stopped = threading.Event()
        self._drops = 0
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()

    def drop(self):
        """Break a random device's connection."""
        self._drops += 1

    def digests(self):
        """Of each update produced, what the log's mark of it must hold."""
        return {uid: sha256(frame).digest()[:8] for uid, frame in self.produced.items()}

    def stop(self):
        """End all connections and the thread."""
        self._stopped.set()
        self._thread.join(30)

    async def _run(self):
        while not self._stopped.is_set():
            for device in self.devices:
                device.tick(time.monotonic())
            while self._drops:
                self._drops -= 1
                self.rng.choice(self.devices).drop()
            await asyncio.sleep(TICK_S)
        for device in self.devices:
            device.drop()
        await asyncio.sleep(TICK_S)
