"""What brokers lose although they said that they have it, and that nothing of ours is lost with it."""

import signal

import pytest

from broker_bridge import cells
from broker_bridge.broker import Broker
from edge_client.wire import topics
from tests.conformance.peer import until
from tests.conformance.stock import Shop

QUEUE = 8  # messages that a mosquitto keeps for a session in these tests; its own default is 1000
SHORT = f"max_queued_messages {QUEUE}\n"


def again(broker):
    """Start a broker in the place of one that ended."""
    return Broker.start(
        broker.kind,
        state_dir=broker.state_dir,
        port=broker.port,
        port_v311=0 if broker.kind == "mosquitto" else broker.port_v311,
    )


def fill(site, count):
    """Have a lasting session go away, and so many messages acknowledged that are for it."""
    topic = site.topic("x")
    away = site.peer("away", lasting=True)
    away.subscribe(topic)
    away.close()
    sender = site.peer("sender")
    assert {sender.send(topic, b"%d" % number) for number in range(count)} == {"Success"}
    return topic


@pytest.mark.parametrize("kind", ["mosquitto", "iotcore"])
def test_what_a_broker_acknowledged_is_gone_with_kill_9(own, sites, version, kind):
    """R-023: a PUBACK proves nothing: kill -9 loses acknowledged messages, the session and what was retained."""
    site = sites(own(kind), version)
    topic = fill(site, 20)
    site.peer("offerer").send(site.topic("offer"), b"offer", retain=True)
    site.broker.kill()
    restarted = again(site.broker)
    try:
        back = site.peer("away", lasting=True)
        resumed = back.resumed
        back.subscribe(topic, site.topic("offer"))
        site.peer("other").send(topic, b"last")
        assert (resumed, back.upto(b"last")) == (False, [])
    finally:
        restarted.stop()


def test_mosquitto_keeps_sessions_and_retained_messages_over_sigterm(own, sites, version):
    """R-024: with persistence an orderly restart of mosquitto loses nothing."""
    site = sites(own(), version)
    fill(site, 20)
    site.peer("offerer").send(site.topic("offer"), b"offer", retain=True)
    site.broker.stop()
    restarted = again(site.broker)
    try:
        back = site.peer("away", lasting=True)
        assert back.resumed
        assert back.payloads(20) == [b"%d" % number for number in range(20)]
        back.subscribe(site.topic("offer"))
        assert back.payloads(1) == [b"offer"]
    finally:
        restarted.stop()


def test_messages_beyond_a_full_queue_are_acknowledged_and_dropped(own, sites, version):
    """R-028: mosquitto says Success to what it drops because the queue of a session that is away is full."""
    site = sites(own(lines=SHORT), version)
    topic = fill(site, 3 * QUEUE)
    back = site.peer("away", lasting=True)
    got = back.payloads(QUEUE)
    site.peer("other").send(topic, b"last")

    assert got == [b"%d" % number for number in range(QUEUE)]
    assert back.upto(b"last") == []


def test_updates_that_the_broker_dropped_from_a_full_queue_are_sent_again(own, sites, version, tmp_path):
    """R-028, I1: what a broker acknowledged and dropped while the bridge was away is folded all the same."""
    site = sites(own(lines=SHORT), version)
    with Shop(site, tmp_path, jobs=QUEUE) as shop:
        shop.open()  # its session is there from now on
        shop.rig.kill_bridge()
        shop.forget_bridge(site)
        watcher = site.peer("watcher")
        watcher.subscribe(f"{topics.ROOT}/d/dev/up/#", f"{topics.ROOT}/d/dev/eval/#")
        shop.node.start()
        watcher.payloads(2 * QUEUE)  # the broker has taken every one, and kept half of them at most
        assert len(shop.waiting()) == 2 * QUEUE
        shop.open()
        until(lambda: shop.waiting() == [], "every row has its receipt", 60)

        assert shop.logged() == shop.uids


@pytest.mark.parametrize("kind", ["mosquitto", "iotcore"])
def test_updates_that_died_with_the_broker_are_sent_again(own, sites, tmp_path, kind):
    """R-023, I1: updates that only a killed broker had are sent again by the device, and each is logged once."""
    site = sites(own(kind), "5")
    with Shop(site, tmp_path, jobs=5) as shop:
        shop.open()
        shop.rig.kill_bridge()
        shop.forget_bridge(site)
        watcher = site.peer("watcher")
        watcher.subscribe(f"{topics.ROOT}/d/dev/up/#", f"{topics.ROOT}/d/dev/eval/#")
        shop.node.start()
        watcher.payloads(10)
        site.broker.kill()
        restarted = again(site.broker)
        try:
            shop.open()
            until(lambda: shop.waiting() == [], "every row has its receipt", 60)
            assert shop.logged() == shop.uids
        finally:
            restarted.stop()


def test_a_device_that_is_killed_sends_the_same_again(site, tmp_path):
    """R-029, I4: paho keeps nothing on the disk; the outbox does, so what was on its way at a kill -9 goes again."""
    with Shop(site, tmp_path, jobs=2) as shop:
        watcher = site.peer("watcher")
        watcher.subscribe(f"{topics.ROOT}/d/dev/up/#")

        def sent():
            shop.node.start()
            found = [watcher.next() for _ in range(2)]
            shop.node.kill()
            return sorted((m.topic, bytes(m.payload)) for m in found)

        shop.forget_bridge(site)
        assert sent() == sent()
        assert shop.waiting() == shop.uids


def test_an_offer_that_an_old_database_brings_back_is_cleared(own, sites, version, tmp_path):
    """R-030: a withdrawn offer that a killed mosquitto has in an older database goes when the bridge is back."""
    site = sites(own(), version)
    with Shop(site, tmp_path, jobs=0) as shop:
        topic = topics.offer("all", "har")
        shop.rig.swing(cells.down_key(topic), b"offer")
        shop.open()
        watcher = site.peer("watcher")
        watcher.subscribe(topic)
        assert watcher.payloads(1) == [b"offer"]
        database = site.broker.state_dir / "mosquitto.db"
        site.broker.process.send_signal(signal.SIGUSR1)  # write the database now
        until(lambda: database.exists() and b"offer" in database.read_bytes(), "the offer is in the database")
        shop.rig.swing(cells.down_key(topic), b"")
        assert watcher.payloads(1) == [b""]
        shop.rig.kill_bridge()
        site.broker.kill()
        restarted = again(site.broker)
        try:
            late = site.peer("late")
            late.subscribe(topic)
            assert late.payloads(1) == [b"offer"]
            shop.open()
            assert late.payloads(1) == [b""]
        finally:
            restarted.stop()


def test_a_retained_offer_is_there_again_after_the_broker_lost_it(own, sites, tmp_path):
    """R-023: the bridge publishes what is retained on every connection, so a broker that lost it has it again."""
    site = sites(own("iotcore"), "5")
    with Shop(site, tmp_path, jobs=0) as shop:
        topic = topics.offer("all", "har")
        shop.rig.swing(cells.down_key(topic), b"offer")
        shop.open()
        site.broker.kill()
        restarted = again(site.broker)
        try:
            late = site.peer("late")
            late.subscribe(topic)
            assert late.payloads(1) == [b"offer"]
        finally:
            restarted.stop()
