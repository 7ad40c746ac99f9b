"""Messages that no device of ours would send, on every topic that the bridge listens to; each is to be refused."""

import random
import threading
import time
import zlib

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from broker_bridge.bridge import SAVE_S
from edge_client.wire import topics
from edge_client.wire.topics import Uid
from tests.soak.devices import EPOCH, JOB, named
from tests.soak.rig import until

NAMES = 64  # of made-up devices
IN_FLIGHT = 256
JSON = (
    b"[" * 60_000,
    b'{"job":7}',
    b'{"state":',
    b"null",
    b'{"job":"soak","ask":"x"}',
    b"\xff\xfe",
    b'"\\ud800"',
    b"{}",
)


def flood(rig, count, seed):
    """Send so many hostile messages, wait until all are refused; what the server's counters say of them.

    Devices must be quiet: their last verdicts heard and the buffer empty.
    """
    before, rng = _still(rig), random.Random(seed)
    client = paho.Client(CallbackAPIVersion.VERSION2, f"hostile-{seed}", protocol=paho.MQTTv5)
    client.max_inflight_messages_set(0)
    room = threading.Semaphore(IN_FLIGHT)
    client.on_publish = lambda *_: room.release()
    client.connect("127.0.0.1", rig.supervisor.mqtt_port)
    client.loop_start()
    try:
        for number in range(count):
            assert room.acquire(timeout=60), "the broker takes no more"
            client.publish(*_message(rng, number, rig.swarm.frames), 1)
        until(lambda: _refused(rig.api.health()["bridge"]) - _refused(before) >= count, "all refused", 300)
    finally:
        client.disconnect()
        client.loop_stop()
    after = rig.api.health()["bridge"]
    return {
        "sent": count, "refused": _refused(after) - _refused(before), "accepted": after["accepted"] - before["accepted"],
        "codes": {c: n - before["rejected"].get(c, 0) for c, n in sorted(after["rejected"].items())},
    }  # fmt: skip


def _still(rig):
    """The bridge's counters once they stand: it writes them down every SAVE_S, so the last verdicts come later."""
    seen = []

    def stands():
        seen.append(rig.api.health()["bridge"])
        time.sleep(2 * SAVE_S)
        now = rig.api.health()["bridge"]
        return all(seen[-1][kind] == now[kind] for kind in ("accepted", "rejected"))

    until(stands, "counters that stand")
    return seen[-1]


def _refused(bridge):
    return sum(bridge["rejected"].values())


def _message(rng, number, frames):
    device = f"bad-{rng.randrange(NAMES)}"
    uid = Uid(device, rng.choice([JOB, JOB, JOB, "none"]), EPOCH, number)
    control = (
        topics.state(device), topics.info(device), topics.ask(device), topics.get(device),
        topics.task(device, JOB), topics.evaluation(uid), f"{topics.ROOT}/d/{device}/nothing",
    )  # fmt: skip
    if rng.random() < 0.5:
        topic = rng.choice(control)
        return topic, rng.choice([*JSON, rng.randbytes(rng.randrange(1, 300))])
    frame = named(rng.choice(frames), uid, rng.choice([0, 0, 10**6]), rng.randbytes(8))
    return topics.update(uid, rng.choice([0, 0, 3])), _spoilt(rng, frame)


def _spoilt(rng, frame):
    kind = rng.randrange(5)
    if kind == 0:
        return rng.randbytes(rng.randrange(1, 2000))
    if kind == 1:
        return frame[: rng.randrange(1, len(frame))]
    if kind == 2:
        return frame  # whole, from a base that is not any version's
    body = bytearray(frame[:-4])
    if kind == 3:
        for _ in range(3):
            body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
        return bytes(body) + frame[-4:] if bytes(body) != frame[:-4] else b"\0"
    for _ in range(rng.randrange(1, 4)):
        body[rng.randrange(26, len(body))] = rng.randrange(256)
    return bytes(body) + zlib.crc32(body).to_bytes(4, "little")
