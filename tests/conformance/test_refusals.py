"""What a broker forbids and does not say, and who may call himself what; mosquitto, since rumqttd has no rules."""

import signal

import pytest

from edge_client.transport import Acked, Down, Up
from edge_client.wire import topics
from tests.conformance.peer import WAIT_S, until
from tests.conformance.product import Device
from tests.conformance.stock import Shop

RULES = f"pattern write {topics.ROOT}/d/%u/#\npattern read {topics.ROOT}/c/%u/#\n"
OPEN = f"pattern readwrite {topics.ROOT}/#\n"  # the bridge of the test has no user name
MUTE = f"topic read {topics.ROOT}/#\npattern write {topics.ROOT}/d/%u/state\n"  # all but the state is refused


@pytest.fixture
def ruled(own, sites, version, tmp_path):
    """A mosquitto with the two rules of a device, and one that may everything; its rules are in `rules`."""
    path = tmp_path / "rules"
    path.write_text(f"{RULES}user root\ntopic readwrite #\n")
    site = sites(own(lines=f"acl_file {path}\n"), version)
    site.rules = path
    return site


def test_a_refused_publish_is_hidden_by_mqtt_311(ruled):
    """R-025: a publish that the rules forbid is refused by name in MQTT 5; in 3.1.1 it is said to be taken, and is gone."""
    watcher = ruled.peer("watcher", username="root")
    watcher.subscribe(f"{topics.ROOT}/d/#")
    one = ruled.peer("one", username="dev-1")
    reason = one.send(topics.ask("dev-2"), b"as another device")
    one.send(topics.ask("dev-1"), b"as myself")

    assert reason == ("Not authorized" if ruled.version == "5" else "Success")
    assert watcher.payloads(1) == [b"as myself"]


def test_a_subscription_to_what_is_forbidden_is_granted_and_stays_silent(ruled):
    """R-026: a broker may grant a filter that the rules forbid; of it only what may be read comes."""
    one = ruled.peer("one", username="dev-1")
    assert one.subscribe(topics.command_filter("dev-2"), topics.command_filter("dev-1")) == [1, 1]
    root = ruled.peer("root", username="root")
    root.send(topics.receipt("dev-2"), b"not mine")
    root.send(topics.receipt("dev-1"), b"mine")

    assert one.payloads(1) == [b"mine"]


def test_a_device_hears_of_a_refusal_where_it_is_told(ruled):
    """R-025: the device's transport passes a refusal on; where the protocol hides it, nothing is taken from a PUBACK."""
    device = Device(ruled, "one", username="dev-1")
    try:
        message = device.transport.publish(topics.ask("dev-2"), b"as another device")
        word = device.until(lambda word: isinstance(word, Acked) and word.message == message, "a PUBACK")
        assert ("Not authorized" in word.refusal) == (ruled.version == "5")
    finally:
        device.close()


def test_an_update_that_was_refused_and_said_to_be_taken_is_not_lost(ruled, tmp_path):
    """R-025, I1: an update that the rules swallow stays in the outbox, and is folded once they let it through."""
    ruled.rules.write_text(f"user dev\n{MUTE}user root\ntopic readwrite #\n")
    ruled.broker.process.send_signal(signal.SIGHUP)
    watcher = ruled.peer("watcher", username="root")
    with Shop(ruled, tmp_path, jobs=1) as shop:
        shop.node.username("dev")
        shop.node.start()
        watcher.subscribe(topics.state("dev"))
        assert watcher.next()
        if ruled.version == "5":
            until(lambda: "refused" in shop.node.events(), "the daemon is told")
        until(shop.published, "the daemon published its update")
        shop.node.kill()
        assert shop.waiting() == shop.uids
        ruled.rules.write_text(OPEN)
        ruled.broker.process.send_signal(signal.SIGHUP)
        shop.open()
        shop.node.start()
        until(lambda: shop.waiting() == [], "every row has its receipt")
        assert shop.logged() == shop.uids


def test_a_name_can_be_taken_from_a_device_that_does_not_own_it(own, sites, version):
    """R-027: who connects under another's client id ends its connection, unless the broker makes names of users."""
    site = sites(own(), version)
    device = site.peer("device", username="device")
    site.peer("device", username="thief")
    assert device.ended.get(timeout=WAIT_S)


def test_a_name_is_its_users_where_the_broker_sees_to_it(own, sites, version):
    """R-027: with `use_username_as_clientid` another user under this client id is another client."""
    site = sites(own(lines="use_username_as_clientid true\n"), version)
    device = site.peer("device", username="device")
    device.subscribe(site.topic("x"))
    thief = site.peer("device", username="thief")
    thief.send(site.topic("x"), b"still there")

    assert device.payloads(1) == [b"still there"]
    assert device.ended.empty()


def test_a_device_comes_back_from_a_take_over(site):
    """R-005, R-027: a device whose name is used by another for a while connects again, and its session goes on."""
    topic = site.topic("c")
    device = Device(site, "device")
    try:
        device.transport.subscribe(topic)
        sender = site.peer("sender")
        thief = site.peer("device")
        device.until(lambda word: isinstance(word, Down), "the loss of its connection")
        thief.close()
        device.until(lambda word: isinstance(word, Up), "another connection")
        device.transport.subscribe(topic)
        message = device.transport.publish(site.topic("x"), b"I am back")
        device.until(lambda word: isinstance(word, Acked) and word.message == message, "a PUBACK")
        sender.send(topic, b"command")
        assert (
            device.until(lambda word: getattr(word, "topic", "") == topic, "a command").payload == b"command"
        )
    finally:
        device.close()
