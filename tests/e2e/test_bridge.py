"""The bridge between a real broker and a real log: verdicts, receipts, crashes, downlink and blobs."""

import asyncio
import json
import os
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from aggregator.doctor import examine
from broker_bridge import cells, deadletters, records
from broker_bridge.ports import Kind
from edge_client.wire import chunks, frame, messages, sparse, topics
from edge_client.wire.messages import Ask, BlobRequest, DeviceState, Evaluation, Metrics
from edge_client.wire.weights import Sparse, SparseTensor
from tests.e2e.conftest import kinds

CHUNK = 1024
CRASH = Path(__file__).parents[1] / "chaos" / "crash"


def damaged(data, position):
    """A copy with one bit flipped."""
    copy = bytearray(data)
    copy[position] ^= 1
    return bytes(copy)


def whole_update(uid):
    """An update that needs several chunks of CHUNK bytes."""
    rng = np.random.default_rng(uid.seq)
    indices = np.sort(rng.choice(60_000, 6000, replace=False)).astype(np.int64)
    tensor = SparseTensor(indices, rng.random(6000) < 0.5, 0.01)
    return sparse.encode(sparse.Update(7, bytes(8), uid.tag, 10, Sparse.of([tensor])), [60_000])


def test_update_is_logged_once_and_answered_each_time(rig, tools):
    """I1, I12: an update becomes one entry, a duplicate gets the same receipt, another body is `conflict`."""
    device = rig.device("pi-1")
    uid = device.uid(1)
    frame_bytes = tools.update(uid)
    for _ in range(3):
        assert device.verdict(uid, frame_bytes).verdict == "accepted"
    refused = device.verdict(uid, tools.update(uid, scale=0.25))
    assert (refused.verdict, refused.code) == ("rejected", "conflict")
    (entry,) = rig.entries("pi-1")
    assert (entry.kind, entry.uid) == (Kind.UPDATE, str(uid))
    assert records.decode(records.UpdateRecord, entry.body).frame == frame_bytes


def test_refusals_are_answered_counted_and_leave_the_model_alone(rig, tools):
    """I11, I12: whatever is wrong with an update gets its own code, again when repeated, and no UPDATE entry.

    A frame that was made under another name (an earlier one replayed, or another device's) is `bad_uid`.
    """
    device = rig.device("pi-2")
    two = np.array([0, 1])
    infinite = SparseTensor(two, two > 0, float("inf"))
    nan = SparseTensor(two, two > 0, float("nan"))
    rest = SparseTensor(two, two > 0, 0.1)

    def with_tensor(uid, tensor, base_hash=bytes(8)):
        return sparse.encode(sparse.Update(7, base_hash, uid.tag, 10, Sparse.of([tensor, rest])), (400, 30))

    cases = [
        ("bad_crc", lambda uid: damaged(tools.update(uid), 30)),
        ("bad_frame", lambda uid: tools.update(uid)[:-5]),
        ("bad_frame", lambda _: b""),
        ("bad_frame", lambda _: b"\x00" * 40),
        ("bad_version", lambda uid: tools.update(uid)[:1] + b"\x02" + tools.update(uid)[2:]),
        ("too_large", lambda _: bytes(500_000)),
        ("bad_tensors", lambda uid: tools.update(uid, sizes=(400, 900), k=450)),
        ("bad_uid", lambda uid: tools.update(topics.Uid("pi-2", "har", uid.epoch, 99))),
        ("bad_uid", lambda uid: tools.update(topics.Uid("pi-999", "har", uid.epoch, uid.seq))),
        ("not_finite", lambda uid: with_tensor(uid, infinite)),
        ("not_finite", lambda uid: with_tensor(uid, nan)),
        ("norm", lambda uid: tools.update(uid, scale=1000.0)),
        ("stale", lambda uid: tools.update(uid, base=3)),
        ("unknown_base", lambda uid: tools.update(uid, base=8)),
        ("resync", lambda uid: with_tensor(uid, rest, b"\x01" * 8)),
    ]
    for number, (code, make) in enumerate(cases):
        uid = device.uid(number)
        data = make(uid)
        for _ in range(2):
            receipt = device.verdict(uid, data)
            assert (receipt.verdict, receipt.code) == ("rejected", code), data[:20]
    unknown = device.uid(1, job="not-mine")
    assert device.verdict(unknown, tools.update(unknown)).code == "unknown_job"
    assert kinds(rig, "pi-2") == [Kind.REJECTION] * (len(cases) + 1)
    tools.until(lambda: rig.counters().rejected.get("not_finite") == 2, "rejections are counted")
    tools.until(lambda: rig.counters().duplicates == len(cases), "duplicates are counted")


def test_ended_job_refuses_even_if_just_ended(rig, tools):
    """A job that ends refuses updates from then on; one that is new takes them at once."""
    device = rig.device("pi-3")
    rig.swing(cells.job_key("har"), cells_job(state="ended"))

    def refused():
        uid = device.uid(next(SEQ))
        return device.verdict(uid, tools.update(uid)).code == "job_ended"

    tools.until(refused, "the job ends")
    rig.swing(cells.job_key("new"), cells_job())
    rig.swing(cells.version_key("new"), b'{"version":7,"manifest":"m","hashes":{"7":"0000000000000000"}}')
    uid = device.uid(5, "new")
    assert device.verdict(uid, tools.update(uid)).verdict == "accepted"


SEQ = iter(range(1000, 2000))


def cells_job(**changes):
    """A job cell like the rig's with some fields changed."""
    fields = {"state": "running", "sizes": (400, 30), "norm_max": 10.0, "staleness_max": 3}
    fields |= {"frame_bytes_max": 400_000} | changes
    return msgspec.json.encode(cells.JobCell(**fields))


def test_lost_chunk_is_asked_for(rig):
    """I1: when a chunk is lost the device is told which, and the update is accepted once it came."""
    rig.swing(cells.job_key("big"), cells_job(sizes=(60_000,)))
    rig.swing(cells.version_key("big"), b'{"version":7,"manifest":"m","hashes":{"7":"0000000000000000"}}')
    device = rig.device("pi-4")
    uid = device.uid(1, "big")
    data = whole_update(uid)
    total = chunks.count(len(data), CHUNK)
    assert total >= 4
    for index in reversed(range(total)):
        if index not in (1, 2):
            device.send(topics.update(uid, index), chunks.cut(data, index, CHUNK).encode())
    asked = device.receipt(uid)
    assert (asked.verdict, asked.missing) == ("incomplete", ((1, 2),))
    for index in (0, 2, 2, 1):
        device.send(topics.update(uid, index), chunks.cut(data, index, CHUNK).encode())
    assert device.receipt(uid).verdict == "accepted"
    device.send(topics.update(uid, 3), chunks.cut(data, 3, CHUNK).encode())
    assert device.receipt(uid).verdict == "accepted"
    assert kinds(rig, "pi-4") == [Kind.UPDATE]


def test_damaged_chunk_refuses_the_update(rig):
    """I11: a chunk with a wrong checksum, index or update is refused as such, and nothing is folded."""
    rig.swing(cells.job_key("big"), cells_job(sizes=(60_000,)))
    device = rig.device("pi-5")
    first, second = (whole_update(device.uid(seq, "big")) for seq in (1, 2))
    cases = [
        ("bad_crc", 0, damaged(chunks.cut(first, 0, CHUNK).encode(), 50)),
        ("bad_chunk", 1, chunks.cut(first, 0, CHUNK).encode()),
        ("bad_chunk", 0, frame.encode(frame.Kind.CHUNK, b"short")),
    ]
    for seq, (code, index, packet) in enumerate(cases):
        uid = device.uid(seq, "big")
        device.send(topics.update(uid, index), packet)
        assert device.receipt(uid).code == code
    uid = device.uid(9, "big")
    device.send(topics.update(uid, 0), chunks.cut(first, 0, CHUNK).encode())
    device.send(topics.update(uid, 1), chunks.cut(second, 1, CHUNK).encode())
    assert device.receipt(uid).code == "conflict"
    assert Kind.UPDATE not in kinds(rig, "pi-5")


def test_a_message_on_which_the_bridge_fails_blocks_nothing(rig, tools):
    """I1, I11: it is kept with its reason and answered for good, those behind it go on, and doctor and heads name it."""
    rig.kill_bridge()
    bug = {"broker_bridge.admit:NORM_TOLERANCE": "a bug that only updates with a norm meet"}
    path = os.pathsep.join([str(CRASH), *sys.path])
    rig.environment = {**os.environ, "CHAOS_SET": json.dumps(bug), "PYTHONPATH": path}
    rig.start_bridge()
    device = rig.device("pi-18")
    poison, frame_bytes = device.uid(1), tools.update(device.uid(1))
    for _ in range(2):  # the same again gets the same verdict, and is kept once
        receipt = device.verdict(poison, frame_bytes)
        assert (receipt.verdict, receipt.code) == ("rejected", "internal")
    behind = device.uid(2)
    device.send(topics.evaluation(behind), messages.encode(Evaluation(7, Metrics(10, 0.5, 0.9))))
    assert device.receipt(behind).verdict == "accepted"

    (letter,) = rig.call(lambda ports: deadletters.read(ports.heads))
    assert (letter.topic, letter.payload) == (topics.update(poison, 0), frame_bytes)
    assert letter.reason.startswith("TypeError")
    named = [finding for finding in examine(rig.directory) if letter.topic in finding.what]
    assert [finding.ok for finding in named] == [False]
    rig.kill_bridge()
    rig.environment = None
    rig.start_bridge()
    later = device.uid(3)
    assert device.verdict(later, tools.update(later)).verdict == "accepted"
    assert device.verdict(poison, frame_bytes).code == "internal"


def test_dead_messages_are_bounded_in_number_and_bytes(rig):
    """I6: the newest are kept, each with a bounded part of what it was, across restarts of the bridge."""
    most, size = deadletters.LETTERS_MAX, deadletters.PAYLOAD_BYTES_MAX

    async def fill(ports):
        for begin in (0, most):
            dead = deadletters.DeadMessages(ports.heads)  # as after a restart
            for number in range(begin, begin + most + (5 if begin else 0)):
                await dead.put(f"topic {number}", bytes(size + number), "why", 0.0)
        return await deadletters.read(ports.heads)

    kept = rig.call(fill)
    assert [letter.topic for letter in kept] == [f"topic {n}" for n in range(most + 5, 2 * most + 5)]
    assert {len(letter.payload) for letter in kept} == {size}
    assert kept[-1].size == size + 2 * most + 4


def test_messages_put_aside_at_once_are_all_kept(rig):
    """I6: devices meet a bug side by side; each letter has its place, beside one that is damaged."""

    async def fill(ports):
        await ports.heads.swing(f"{deadletters.PREFIX}7", 0, b"damaged")
        dead = deadletters.DeadMessages(ports.heads)
        await asyncio.gather(*(dead.put(f"topic {n}", b"", "why", 0.0) for n in range(16)))
        return await deadletters.read(ports.heads)

    assert sorted(letter.topic for letter in rig.call(fill)) == sorted(f"topic {n}" for n in range(16))


def test_a_chunked_update_on_which_the_bridge_fails_gets_one_verdict(rig):
    """I1: sent again it is told the same, and not that another body came under its name."""
    rig.swing(cells.job_key("big"), cells_job(sizes=(60_000,)))
    rig.swing(cells.version_key("big"), b'{"version":7,"manifest":"m","hashes":{"7":"0000000000000000"}}')
    rig.kill_bridge()
    bug = {"broker_bridge.admit:NORM_TOLERANCE": "a bug that only updates with a norm meet"}
    path = os.pathsep.join([str(CRASH), *sys.path])
    rig.environment = {**os.environ, "CHAOS_SET": json.dumps(bug), "PYTHONPATH": path}
    rig.start_bridge()
    device = rig.device("pi-20")
    uid = device.uid(1, "big")
    data = whole_update(uid)
    for _ in range(2):
        for index in range(chunks.count(len(data), CHUNK)):
            device.send(topics.update(uid, index), chunks.cut(data, index, CHUNK).encode())
        receipt = device.receipt(uid)
        assert (receipt.verdict, receipt.code) == ("rejected", "internal")


def test_downlink_publishes_each_cell_and_resumes(rig):
    """Offers are retained and cleared with their cell, commands are not, and a restart repeats no command."""
    device = rig.device("pi-10", topics.command_filter("pi-10"), topics.offer_filter("all"))
    offer, assign = topics.offer("all", "har"), topics.assign("pi-10", "har")
    rig.swing(cells.down_key(assign), b"first")
    rig.swing(cells.down_key(offer), b"offer")
    assert sorted(device.inbox.get(timeout=10)[:2] for _ in range(2)) == [
        (offer, b"offer"),
        (assign, b"first"),
    ]
    assert rig.stop_bridge() == 0
    late = rig.device("late", "fedfleet/1/c/#", topics.offer_filter("all"))
    assert late.inbox.get(timeout=10) == (offer, b"offer", True)
    rig.swing(cells.down_key(assign), b"second")
    rig.drop(cells.down_key(offer))
    rig.start_bridge()
    received = [late.inbox.get(timeout=10)[:2] for _ in range(2)]
    assert sorted(received) == [(offer, b""), (assign, b"second")]
    assert late.inbox.empty()


def test_oversized_cell_is_never_handed_to_the_broker(rig):
    """I9, R-020: a cell larger than the broker takes is skipped and logged, and what follows it is published."""
    device = rig.device("pi-11")
    rig.swing(cells.down_key(topics.assign("pi-11", "a")), bytes(1024 * 1024))
    rig.swing(cells.down_key(topics.assign("pi-11", "b")), b"small")
    assert device.inbox.get(timeout=10)[:2] == (topics.assign("pi-11", "b"), b"small")
    assert "not_published" in rig.log_text()
    assert rig.log_text().count("broker_connected") == 1


def test_blob_is_pulled_in_windows(rig, tools):
    """A device pulls a blob window by window; unknown ones are answered empty, wrong requests not at all."""
    data = bytes(range(256)) * 1000
    digest = rig.call(lambda ports: ports.blobs.put(data))
    device = rig.device("pi-12")
    total = chunks.count(len(data), 8192)
    parts = {}
    for start in range(0, total, 16):
        device.send(topics.get("pi-12"), messages.encode(BlobRequest(digest, start, 16, 8192)))
        for _ in range(min(16, total - start)):
            topic, payload, _ = device.inbox.get(timeout=10)
            chunk = chunks.decode(frame.decode(payload)[2])
            assert topic == topics.blob("pi-12", digest, chunk.index)
            assert chunk.digest == bytes.fromhex(digest)[:8]
            parts[chunk.index] = chunk.data
    assert b"".join(parts[i] for i in range(total)) == data
    for request in (
        BlobRequest(digest, 0, 17, 8192),
        BlobRequest(digest, 0, 1, 1),
        BlobRequest(digest, -1, 1, 8192),
        BlobRequest("../x", 0, 1, 8192),
    ):
        device.send(topics.get("pi-12"), messages.encode(request))
    device.send(topics.get("pi-12"), messages.encode(BlobRequest("0" * 64, 0, 1, 8192)))
    assert device.inbox.get(timeout=10)[:2] == (topics.blob("pi-12", "0" * 64, 0), b"")
    tools.until(lambda: rig.counters().rejected.get("bad_request") == 4, "wrong requests are counted")


def test_events_and_evaluations_reach_the_log(rig, tools):
    """State, asks and evaluations become entries; what does not parse is counted and kept out."""
    device = rig.device("pi-13")
    device.send(topics.state("pi-13"), messages.encode(DeviceState("ready", 1)))
    device.send(topics.ask("pi-13"), messages.encode(Ask("har", 1, 50)))
    device.send(topics.ask("pi-13"), b'{"job": 5}')
    device.send("fedfleet/1/d/pi-13/nonsense", b"")
    uid = device.uid(1)
    device.send(topics.evaluation(uid), messages.encode(Evaluation(7, Metrics(10, 0.5, 0.9))))
    assert device.receipt(uid).verdict == "accepted"
    future = device.uid(2)
    device.send(topics.evaluation(future), messages.encode(Evaluation(8, Metrics(10, 0.5, 0.9))))
    assert device.receipt(future).code == "unknown_base"
    entries = [e for e in rig.entries("pi-13") if "pi-13" in e.uid]
    assert [e.kind for e in entries] == [Kind.EVENT, Kind.EVENT, Kind.EVALUATION, Kind.REJECTION]
    events = [records.decode(records.EventRecord, e.body) for e in entries[:2]]
    assert [(e.topic, e.device, e.job) for e in events] == [("state", "pi-13", ""), ("ask", "pi-13", "har")]
    tools.until(lambda: rig.counters().rejected.get("bad_topic") == 1, "the wrong topic is counted")
    tools.until(lambda: rig.counters().rejected.get("bad_message") == 1, "the wrong message is counted")


def test_bridge_tells_whether_it_is_up(rig, tools):
    """The bridge's retained state is up while it runs and down after a stop and after a kill -9."""
    watcher = rig.device("watcher", topics.SERVICE_FILTER)
    first = tools.state(watcher.inbox.get(timeout=10)[1])
    rig.kill_bridge()
    lost = tools.state(watcher.inbox.get(timeout=10)[1])
    rig.start_bridge()
    second = tools.state(watcher.inbox.get(timeout=10)[1])
    assert rig.stop_bridge() == 0
    left = tools.state(watcher.inbox.get(timeout=10)[1])
    assert [s.state for s in (first, lost, second, left)] == ["up", "down", "up", "down"]
    assert first.conn_seq == lost.conn_seq < second.conn_seq == left.conn_seq


def test_older_protocol_is_fallen_back_to(rig, tools):
    """R-032: a broker that speaks MQTT 3.1.1 only is served as well."""
    if rig.broker.kind != "iotcore":
        pytest.skip("mosquitto speaks both versions on one port")
    assert rig.stop_bridge() == 0
    rig.start_bridge(port=rig.broker.port_v311)
    device = rig.device("pi-14")
    assert device.verdict(device.uid(1), tools.update(device.uid(1))).verdict == "accepted"


def test_the_birth_of_a_forgotten_device_is_cleared(rig, tools):
    """A cell of its retained topic that was emptied clears the topic, and is no message of the device."""
    birth = topics.state("pi-15")
    watcher = rig.device("watcher", birth)
    rig.device("pi-15")._client.publish(birth, messages.encode(DeviceState("lost", 1)), 1, retain=True)
    assert watcher.inbox.get(timeout=10)[1] != b""
    rig.swing(cells.down_key(birth), b"")
    assert watcher.inbox.get(timeout=10)[1] == b""
    late = rig.device("late", birth)
    rig.device("pi-15b").send(birth, b"not retained")
    said = iter(lambda: late.inbox.get(timeout=10)[1], b"not retained")
    assert set(said) <= {b""}, "clearing may come twice, and nothing else comes"
    tools.until(lambda: rig.counters().rejected == {"bad_message": 1}, "only that is refused")
    assert [records.decode(records.EventRecord, e.body).topic for e in rig.entries("pi-15")] == ["state"]
