"""The product's two MQTT clients, driven by a test: the bridge's Link and the device's Transport."""

import asyncio
import contextlib
import queue
import random
import time

from paho.mqtt import client as paho

from broker_bridge.mqtt import Link, Presence
from edge_client.config import BrokerSection
from edge_client.transport import Down, Identity, Transport, Up
from tests.conformance.peer import WAIT_S


async def eventually(condition, what, seconds=WAIT_S):
    """Wait for a condition with a deadline, while the loop goes on; return its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        await asyncio.sleep(0.01)
    return value


@contextlib.asynccontextmanager
async def linked(site, name, *topics):
    """A Link with its own session, running."""
    number = 0

    async def present():
        nonlocal number
        number += 1
        topic = site.topic(f"state-of-{name}")
        return Presence(topic, b"up %d" % number, b"down %d" % number)

    wanted = [*topics, site.topic("commands")]
    link = Link("127.0.0.1", site.port, f"{name}-{site.number}", wanted, present)
    if site.version == "3.1.1":  # as after a broker that refused MQTT 5
        link._protocol = paho.MQTTv311
        link._client = link._new_client()
    running = asyncio.ensure_future(link.run())
    try:
        await asyncio.wait_for(link.connection(), WAIT_S)
        yield link
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


class Device:
    """A Transport of which the test takes the words; it is up when this returns."""

    def __init__(self, site, name, **section):
        self.words = queue.SimpleQueue()
        self.ups = 0
        self.transport = Transport(
            BrokerSection("127.0.0.1", site.port, protocol=site.version, **section),
            password=None,
            identity=Identity(f"{name}-{site.number}", persistent=True),
            put=self.words.put,
            waiting=self.words.qsize,
            rng=random.Random(0),
        )
        self.until(lambda _word: self.transport.connected, "connected")

    def until(self, wanted, what):
        """Take words until one, already noted, is wanted; return it."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            self.transport.tick(time.monotonic())
            try:
                word = self.words.get(timeout=0.05)
            except queue.Empty:
                continue
            if not isinstance(word, Up | Down) or self.transport.take(word, time.monotonic()):
                self.ups += isinstance(word, Up)
                if wanted(word):
                    return word
        raise AssertionError(f"not within {WAIT_S:g} s: {what}")

    def close(self):
        """Disconnect."""
        self.transport.stop()
