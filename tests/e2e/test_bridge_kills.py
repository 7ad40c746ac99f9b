"""A bridge and brokers that are killed, and what is sent again behind many later updates."""

import sqlite3

from broker_bridge import cells
from broker_bridge.ports import REMEMBERED, Kind
from edge_client.wire import topics
from tests.e2e.conftest import kinds


def test_killed_bridge_loses_and_repeats_nothing(rig, tools):
    """I1: a bridge killed before the commit gets the update again; exactly one entry and its receipt follow."""
    device = rig.device("pi-6")
    lock = sqlite3.connect(rig.directory / "fleet.db", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")  # the bridge receives but cannot commit
    uids = [device.uid(seq) for seq in range(20)]
    for uid in uids:
        device.send(topics.update(uid, 0), tools.update(uid))
    tools.until(lambda: "update_received" in rig.log_text(), "the bridge has an update")
    rig.kill_bridge()
    lock.execute("ROLLBACK")
    lock.close()
    assert kinds(rig, "pi-6") == []
    rig.start_bridge()
    for uid in uids:
        assert device.receipt(uid).verdict == "accepted"
    assert kinds(rig, "pi-6") == [Kind.UPDATE] * 20


def test_updates_sent_again_after_a_kill_are_logged_once(rig, tools):
    """I1: however a kill -9 cuts a stream of updates, sending all of them again leaves one entry each."""
    device = rig.device("pi-7")
    uids = [device.uid(seq) for seq in range(60)]
    for uid in uids:
        device.send(topics.update(uid, 0), tools.update(uid))
    device.receipts.get(timeout=10)
    rig.kill_bridge()
    rig.start_bridge()
    answered = set()
    for uid in uids:
        device.send(topics.update(uid, 0), tools.update(uid))
    while len(answered) < 60:
        receipt = device.receipts.get(timeout=10)
        assert receipt.verdict == "accepted"
        answered.add(receipt.uid)
    assert sorted(e.uid for e in rig.entries("pi-7")) == sorted(map(str, uids))


def test_a_copy_behind_many_later_updates_is_not_logged_again(rig, tools):
    """I1: brokers that are killed bring old copies back; those whose mark is gone are duplicates, and no update."""
    device = rig.device("pi-11")
    uids = [device.uid(seq) for seq in range(REMEMBERED + 1)]
    for uid in uids:
        assert device.verdict(uid, tools.update(uid)).verdict == "accepted"

    receipt = device.verdict(uids[0], tools.update(uids[0]))

    assert (receipt.verdict, receipt.code) == ("rejected", "conflict")
    assert kinds(rig, "pi-11") == [Kind.UPDATE] * len(uids)
    tools.until(lambda: rig.counters().duplicates == 1, "it is counted")
    assert rig.counters().rejected == {}


def test_killed_broker_is_survived(rig, tools):
    """R-023: a bridge whose broker was killed connects again, restores retained offers, and goes on."""
    rig.swing(cells.down_key(topics.offer("all", "har")), b'{"job":"har"}')
    watcher = rig.device("watcher", topics.offer_filter("all"))
    watcher.inbox.get(timeout=10)
    device = rig.device("pi-8")
    assert device.verdict(device.uid(1), tools.update(device.uid(1))).verdict == "accepted"
    connected = rig.log_text().count("broker_connected")
    rig.restart_broker()
    tools.until(lambda: rig.log_text().count("broker_connected") > connected, "the bridge is back")
    later = rig.device("later", topics.offer_filter("all"))
    assert later.inbox.get(timeout=10)[:2] == (topics.offer("all", "har"), b'{"job":"har"}')
    fresh = rig.device("pi-9")
    assert fresh.verdict(fresh.uid(2), tools.update(fresh.uid(2))).verdict == "accepted"


def test_bridge_waits_for_its_broker(rig, tools):
    """A bridge whose broker is not there yet says so and connects once it is."""
    rig.kill_bridge()
    rig.broker.kill()
    rig.start_bridge(event="broker_unreachable")
    connected = rig.log_text().count("broker_connected")
    rig.restart_broker()
    tools.until(lambda: rig.log_text().count("broker_connected") > connected, "the bridge connects")
    device = rig.device("pi-15")
    assert device.verdict(device.uid(1), tools.update(device.uid(1))).verdict == "accepted"


def test_backlog_beyond_all_windows_is_drained(rig, tools):
    """I6: while nothing can be stored reading stops at a bound, and afterwards every update is answered."""
    device = rig.device("pi-16")
    lock = sqlite3.connect(rig.directory / "fleet.db", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    uids = [device.uid(seq) for seq in range(600)]
    for uid in uids:
        device.send(topics.update(uid, 0), tools.update(uid))
    lock.execute("ROLLBACK")
    lock.close()
    answered = {device.receipts.get(timeout=10).uid for _ in uids}
    assert answered == set(map(str, uids))
    assert kinds(rig, "pi-16") == [Kind.UPDATE] * 600


def test_a_second_bridge_of_a_name_is_refused(rig, tools):
    """Two bridges under one name do not fight for the session for ever: the second names the first and ends."""
    older = rig.bridge
    rig.start_bridge(event="bridge_failed")
    assert rig.bridge.wait(15) == 1
    rig.bridge = older
    assert f"(process {older.pid})" in rig.log_text()
    device = rig.device("pi-17")
    assert device.verdict(device.uid(1), tools.update(device.uid(1))).verdict == "accepted"
