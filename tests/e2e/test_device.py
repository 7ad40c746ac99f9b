"""The device daemon against real brokers and a scripted bridge: what it says, survives and cleans up."""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from broker_bridge.broker import Broker, free_port
from edge_client.bundle import open_bundle
from edge_client.daemon import ROWS_MAX
from edge_client.store import open_store, read_report
from edge_client.wire import grid, messages, topics
from edge_client.wire.messages import (
    Assignment,
    DataSchema,
    Evaluation,
    JobEnd,
    Metrics,
    Offer,
    TrainingPlan,
)
from firmware_tools.compiler import compile_training
from firmware_tools.zoo import cnn1d
from tests.e2e.fleet import ROOT, SCHEMA, WAIT_S, Bridge, Node

STATUS = (sys.executable, "-c", "from edge_client.commands import device; device()", "status", "--json")


def until(condition):
    """Wait for a condition with a deadline."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.02)


@pytest.fixture
def bridge(broker):
    """A scripted bridge on the broker."""
    made = Bridge(broker.port)
    yield made
    made.close()


@pytest.fixture
def node(broker, tmp_path):
    """A daemon that is stopped at the end."""
    made = Node(tmp_path, broker.port)
    yield made
    if made.process is not None:
        made.stop()


def test_participation_from_offer_to_receipt_and_on(bridge, node):
    """A device asks, pulls, trains, sends chunks, and after the receipt asks again with its new version."""
    bridge.offer()
    node.start()
    first = bridge.ask()
    assert (first["n_samples"], first["holds"]) == (40, 0)
    bridge.assign(first, size=3_000_000, version=7)
    for state in ("pulling", "training", "uploading"):
        bridge.task(state)
    uid, frame = bridge.update()
    assert frame[8:].startswith(f"uid {uid} residual None ".encode())
    bridge.receipt(uid)
    second = bridge.wait("ask", lambda b: b["ask"] > first["ask"])[1]
    assert second["holds"] == 7
    bridge.assign(second, version=8)
    later, frame = bridge.update()
    assert frame[8:].startswith(f"uid {later} residual b'accepted {uid}'".encode())


def test_killed_while_training_goes_on_without_reusing_a_name(bridge, node):
    """I4, I12: after kill -9 in a training the same ask is repeated, trained anew, and no seq comes twice."""
    bridge.offer()
    node.start()
    first = bridge.ask()
    bridge.assign(first)
    uid, _ = bridge.update()
    bridge.receipt(uid)
    second = bridge.wait("ask", lambda b: b["ask"] > first["ask"])[1]
    bridge.assign(second, steps=200)
    bridge.task("training")
    child = node.children()
    node.kill()
    until(lambda: not any(Path(f"/proc/{pid}/fd/0").exists() for pid in child))  # dies with its parent
    node.start()
    again = bridge.ask()
    assert again["ask"] == second["ask"]
    bridge.assign(again)
    later, frame = bridge.update()
    assert (later.epoch, later.seq > uid.seq) == (uid.epoch, True)
    assert b"residual b'accepted" in frame


def test_killed_with_unreceipted_update_sends_the_same_again(bridge, node):
    """I1, I4, R-029: an update without a receipt survives kill -9 and is sent again, same uid and bytes."""
    bridge.offer()
    node.start()
    bridge.assign(bridge.ask())
    sent = bridge.update()
    node.kill()
    node.start()
    assert bridge.update() == sent
    bridge.receipt(sent[0])
    bridge.task("asking")


def test_only_missing_chunks_are_sent_again(bridge, node):
    """I1: `incomplete` is answered with exactly the chunks it names."""
    bridge.offer()
    node.start()
    bridge.assign(bridge.ask())
    uid, _ = bridge.update()
    bridge.receipt(uid, "incomplete", missing=((1, 1),))
    topic, _ = bridge.wait("up")
    assert topics.parse_up(topic).index == 1
    bridge.receipt(uid)
    bridge.task("asking")
    indices = [topics.parse_up(t).index for t, _ in bridge.heard if "/up/" in t]
    assert sorted(indices) == [0, 1, 1, 2]


def test_uploads_wait_for_the_bridge(bridge, node):
    """An update is held while the bridge says it is down, and sent when it is up again."""
    bridge.bridge_state("down", 1)
    bridge.offer()
    node.start()
    bridge.assign(bridge.ask())
    bridge.task("uploading")
    assert not [t for t, _ in bridge.heard if "/up/" in t]
    bridge.bridge_state("up", 2)
    bridge.update()


def test_killed_trainer_is_reported_and_the_daemon_goes_on(bridge, node):
    """A trainer child that is killed costs one participation, told with the signal's name."""
    bridge.offer()
    node.start()
    bridge.assign(bridge.ask(), steps=200)
    bridge.task("training")
    os.kill(node.children()[0], signal.SIGKILL)
    bridge.task("failed", "SIGKILL")
    assert node.process.poll() is None


def test_unreachable_broker_is_tried_until_it_is_there(tmp_path):
    """A daemon started before its broker connects when the broker comes."""
    port = free_port()
    node = Node(tmp_path, port).start()
    try:
        until(lambda: "disconnected" in node.events())
        broker = Broker.start(state_dir=tmp_path / "broker", port=port)
        try:
            until(lambda: "connected" in node.events())
            assert node.stop() == 0
        finally:
            broker.stop()
    finally:
        node.stop()


def test_broker_of_the_old_protocol_is_spoken_to_in_it(broker, tmp_path):
    """R-032: MQTT 3.1.1 is the floor: where MQTT 5 gets no answer, the daemon falls back by itself."""
    bridge = Bridge(broker.port)
    node = Node(tmp_path, broker.port_v311, protocol="auto" if broker.kind == "iotcore" else "3.1.1").start()
    try:
        bridge.offer()
        bridge.assign(bridge.ask())
        bridge.update()
        assert b'"protocol": "3.1.1"' in node.log.read_bytes()
    finally:
        node.stop()
        bridge.close()


@pytest.mark.parametrize("how", ["job_end", "withdrawn"])
def test_end_of_a_job_removes_its_workspace(bridge, node, how):
    """A job that is over is stopped in its training, removed from the disk, and said to have ended."""
    bridge.offer()
    node.start()
    bridge.assign(bridge.ask(), steps=200)
    bridge.task("training")
    workspace = node.folder / "state" / "jobs" / "job"
    assert workspace.exists()
    if how == "job_end":
        bridge.say(topics.end("dev", "job"), JobEnd("job", "cancelled"))
    else:
        bridge.say(topics.offer("all", "job"), b"", retain=True)
    bridge.task("ended", "cancelled" if how == "job_end" else "withdrawn")
    assert not workspace.exists()
    assert node.children() == []
    assert list((node.folder / "state" / "blobs").iterdir()) == []


def test_published_update_gets_its_verdict_before_the_job_goes(bridge, node):
    """I4: an update that was published waits for its verdict even when the job has ended."""
    bridge.offer()
    node.start()
    bridge.assign(bridge.ask())
    uid, _ = bridge.update()
    bridge.say(topics.end("dev", "job"), JobEnd("job", "done"))
    status = subprocess.run(
        [*STATUS, "--config", str(node.config)],
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert str(uid) in [row["uid"] for row in json.loads(status.stdout)["outbox"]]
    bridge.receipt(uid, "rejected", "job_ended")
    bridge.task("ended", "done")


def test_data_that_does_not_fit_is_declined_naming_the_axis(bridge, node):
    """A data set of another shape is never trained on; the reason names the axis and both sizes."""
    bridge.offer(DataSchema((2, 16), 3, ("channel", "time")))
    node.start()
    status = bridge.task("declined")
    assert "axis 1 (time) has 8 values, the job wants 16" in status["reason"]


def test_clean_stop_says_goodbye_and_kill_leaves_the_will(bridge, node):
    """SIGTERM publishes `disconnected` and exits 0; births, wills and farewells carry one growing number."""
    node.start()
    birth = bridge.wait("state", lambda b: b["state"] == "ready")[1]
    bridge.wait("info", lambda b: b["datasets"][0]["n_samples"] == 40)
    assert node.stop() == 0
    farewell = bridge.wait("state", lambda b: b["state"] == "disconnected")[1]
    assert farewell["conn_seq"] == birth["conn_seq"]
    node.start()
    again = bridge.wait("state", lambda b: b["state"] == "ready")[1]
    assert again["conn_seq"] > birth["conn_seq"]


def test_second_daemon_on_the_same_state_is_refused(bridge, node):
    """I12: two daemons never share a state database."""
    node.start()
    bridge.wait("state", lambda b: b["state"] == "ready")
    second = Node(node.folder, 1)
    second.log = node.folder / "second.log"
    second.start()
    assert second.process.wait(WAIT_S) == 1
    assert f"another daemon (process {node.process.pid}) uses this state".encode() in second.log.read_bytes()


def test_real_trainer_child_learns_and_no_sample_leaves(bridge, broker, tmp_path):
    """I8: the real child trains and evaluates; no message, log line or state file carries a sample."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 2, 8)).astype(np.float32)
    y = np.arange(60) % 3
    x[np.arange(60), 0, y] += 4
    np.savez(tmp_path / "demo.npz", x=x, y=y)
    compiled = compile_training(
        cnn1d(channels=2, length=8, classes=3, widths=(4, 4)), axes=("channel", "time")
    )
    path = tmp_path / "bundle.zip"
    path.write_bytes(compiled.to_bytes())
    opened = open_bundle(path)
    model = opened.member("params.keyframe")
    start = grid.decode(model, opened.manifest.sizes)
    bundle = bridge.blob(path.read_bytes())
    bridge.say(topics.offer("all", "job"), Offer("job", "demo", SCHEMA, bundle, 5.0), retain=True)
    node = Node(tmp_path, broker.port, child="").start()
    try:
        ask = bridge.ask()
        plan = TrainingPlan(40, 8, 0.05, 1.0, 100.0)
        given = Assignment(
            "job", ask["ask"], 0, start.model_hash.hex(), bundle, (bridge.blob(model),), plan, 60.0
        )
        bridge.say(topics.assign("dev", "job"), given)
        uid, frame = bridge.update()
        evaluation = bridge.wait("eval")[1]
        assert evaluation["after"]["loss"] < evaluation["before"]["loss"]
        bridge.receipt(uid)
        assert bridge.wait("ask", lambda b: b["ask"] > ask["ask"])[1]["holds"] == 0
    finally:
        node.stop()
    seen = b"".join(payload for _, payload in bridge.heard) + node.log.read_bytes() + frame
    kept = b"".join(p.read_bytes() for p in (tmp_path / "state").rglob("*") if p.is_file())
    for sample in x[:10]:
        for value in sample.ravel()[:4]:
            assert f"{value:.6f}".encode() not in seen
        assert sample.tobytes()[:16] not in seen + kept


def test_checkup_says_exactly_what_is_wrong(tmp_path):
    """`device check` exits 1 and names the axis of a data set and the address of a broker that do not fit."""
    np.savez(tmp_path / "demo.npz", x=np.zeros((9, 2, 7), np.float32), y=np.zeros(9, np.int64))
    node = Node(tmp_path, free_port())
    check = [sys.executable, "-c", "from edge_client.commands import device; device()", "check", "--json"]
    done = subprocess.run(
        [*check, "--config", str(node.config)],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    state, data, broker = json.loads(done.stdout)
    assert done.returncode == 1
    assert state["ok"]
    assert not (tmp_path / "state").exists()
    assert "axis 1 (time) has 7 values, the configuration declares 8" in data["detail"]
    assert not broker["ok"]
    assert broker["detail"] == "Connection refused; is an MQTT broker running there?"


def limit_files(pid, size):
    """Let a process write no file beyond `size` bytes; None lifts it. 0 is what a full disk is to it."""
    hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard if size is None else size, hard))


class FileLimit:
    """No file of the daemon may grow."""

    def __init__(self, node):
        self.node = node

    def fill(self):
        limit_files(self.node.process.pid, 0)

    def free(self):
        limit_files(self.node.process.pid, None)

    def close(self):
        """The limit goes with the process."""


class SmallDisk:
    """The state on a file system of 4 MB, which another file fills up."""

    def __init__(self, node):
        self.path = node.folder / "state"
        self.path.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(self.path)]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode:
            pytest.skip(f"a small tmpfs needs root: {made.stderr.strip()}")

    def fill(self):
        with (self.path / "other").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:  # until there is no space
                file.write(bytes(4096))

    def free(self):
        (self.path / "other").unlink()

    def close(self):
        subprocess.run(["umount", str(self.path)], check=True)


@pytest.fixture(params=[FileLimit, SmallDisk])
def disk(request, node):
    """A disk that can be filled up."""
    made = request.param(node)
    yield made
    if node.process is not None:
        node.stop()
    made.close()


def test_a_full_disk_is_waited_for_and_nothing_is_lost(bridge, node, disk):
    """I4: with a full disk a finished training waits, the server is told why, and it goes up once there is room."""
    bridge.offer()
    node.start()
    first = bridge.ask()
    bridge.assign(first, steps=20, version=7)
    bridge.task("training")
    disk.fill()
    assert bridge.task("training", "storage: ")["reason"].startswith("storage: state.db: ")
    assert not [topic for topic, _ in bridge.heard if "/up/" in topic]
    disk.free()
    uid, frame = bridge.update()
    assert frame[8:].startswith(f"uid {uid} residual None ".encode())
    disk.fill()
    bridge.receipt(uid)
    bridge.wait("task", lambda b: "storage: " in b.get("reason", ""))
    disk.free()
    second = bridge.wait("ask", lambda b: b["ask"] > first["ask"])[1]
    assert second["holds"] == 7
    bridge.assign(second, version=8)
    later, frame = bridge.update()
    assert frame[8:].startswith(f"uid {later} residual b'accepted {uid}'".encode())
    until(lambda: "storage_works" in node.events())


def test_a_pull_onto_a_full_disk_goes_on_when_there_is_room(bridge, node, disk):
    """A model that finds no room is pulled once there is some, without a new assignment."""
    bridge.offer()
    node.start()
    asked = bridge.ask()
    disk.fill()
    bridge.assign(asked, size=1_000_000)
    bridge.task("pulling", "storage: ")
    disk.free()
    bridge.task("training")
    bridge.update()


def test_a_daemon_started_on_a_full_disk_waits_for_room(bridge, node):
    """The daemon does not end when its state cannot be opened for now; SIGTERM still stops it at once."""
    node.prelude = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY));"
    bridge.offer()
    node.start()
    pid = node.process.pid
    until((node.folder / "state" / "lock").exists)
    limit_files(pid, None)
    bridge.ask()
    assert node.process.pid == pid
    assert node.stop() == 0
    (node.folder / "state" / "lock").unlink()
    node.start()
    until((node.folder / "state" / "lock").exists)
    assert node.stop() == 0


def test_an_outbox_beyond_memory_goes_up_page_by_page(bridge, node):
    """I6: rows of earlier runs are taken into memory some at a time, each is sent and settled, oldest first."""
    store = open_store(node.folder / "state")
    uids = [topics.Uid("dev", "old", store.epoch, seq) for seq in range(1, 2 * ROWS_MAX + 2)]
    with store._change("fill"):
        for uid in uids:
            store._insert(uid, "evaluation", messages.encode(Evaluation(1, Metrics(1, 1.0, 0.5))))
    store.close()
    node.start()
    heard = []
    while len(set(heard)) < len(uids):
        topic, _ = bridge.wait("eval")
        heard.append(topics.parse_up(topic).uid)
        bridge.receipt(heard[-1])
    assert list(dict.fromkeys(heard)) == uids
    until(lambda: read_report(node.folder / "state")["outbox"] == [])
