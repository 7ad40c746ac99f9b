"""What a broker keeps on a topic, and what it says of a client that vanished."""

import pytest

from tests.conformance.peer import WAIT_S


def test_the_newest_retained_message_meets_a_new_subscriber(site):
    """R-013: a subscriber that is new to a topic gets its newest retained message, marked as such, and no older one."""
    topic = site.topic("offer")
    sender = site.peer("sender")
    sender.send(topic, b"old", retain=True)
    sender.send(topic, b"new", retain=True)
    reader = site.peer("reader")
    reader.subscribe(topic)
    found = reader.next()
    sender.send(topic, b"live", retain=True)
    live = reader.next()

    assert (bytes(found.payload), found.retain) == (b"new", True)
    assert (bytes(live.payload), live.retain) == (b"live", False)


def test_an_empty_payload_clears_a_retained_topic(site):
    """R-014: an empty retained payload reaches who listens, and a later subscriber gets nothing."""
    topic, other = site.topic("offer"), site.topic("other")
    sender, here = site.peer("sender"), site.peer("here")
    sender.send(topic, b"offer", retain=True)
    here.subscribe(topic)
    assert here.payloads(1) == [b"offer"]
    sender.send(topic, b"", retain=True)
    later = site.peer("later")
    later.subscribe(topic, other)
    sender.send(other, b"last")

    assert here.payloads(1) == [b""]
    assert later.upto(b"last") == []


def test_a_message_that_is_not_retained_does_not_replace_one_that_is(site):
    """R-015: commands and chunks, which are not retained, leave what is retained on a topic as it was."""
    topic = site.topic("x")
    sender = site.peer("sender")
    sender.send(topic, b"kept", retain=True)
    sender.send(topic, b"passing")
    later = site.peer("later")
    later.subscribe(topic)

    assert later.payloads(1) == [b"kept"]


@pytest.mark.parametrize("kind", ["mosquitto", "iotcore"])
def test_a_retained_message_expires(started, sites, kind):
    """R-016: MQTT 5 lets a retained offer go when its time is up; one without an expiry stays."""
    site = sites(started(kind), "5")
    sender = site.peer("sender")
    topic, stays = site.topic("offer/a"), site.topic("offer/b")
    sender.send(topic, b"offer", retain=True, expiry_s=1)
    sender.send(stays, b"stays", retain=True)
    found = [b"offer"]
    while b"offer" in found:  # ends with the test's time when it never expires
        reader = site.peer("reader")
        reader.subscribe(site.topic("offer/+"))
        sender.send(site.topic("offer/end"), b"end")
        found = reader.upto(b"end")
        reader.close()

    assert found == [b"stays"]


def test_a_will_is_published_when_a_connection_breaks(site):
    """R-017: a connection that ends without a DISCONNECT leaves its will, retained; one that says goodbye does not."""
    topic, other = site.topic("state"), site.topic("other")
    watcher = site.peer("watcher")
    watcher.subscribe(topic, other)
    site.peer("polite", lasting=True, will=(topic, b"lost 1")).close()
    site.peer("sender").send(other, b"no will")
    assert watcher.upto(b"no will") == []
    site.peer("device", lasting=True, will=(topic, b"lost 2")).cut()
    assert watcher.payloads(1) == [b"lost 2"]
    late = site.peer("late")
    late.subscribe(topic)

    assert late.payloads(1) == [b"lost 2"]


@pytest.mark.parametrize("kind", ["mosquitto", "iotcore"])
def test_a_delayed_will_is_withdrawn_by_coming_back(started, sites, kind):
    """R-018: with a will delay a client that is back in time was never lost; one that is not was."""
    site = sites(started(kind), "5")
    back, gone = site.topic("back"), site.topic("gone")
    watcher = site.peer("watcher")
    watcher.subscribe(back, gone)
    site.peer("one", lasting=True, will=(back, b"one is lost", 1)).cut()
    site.peer("one", lasting=True, will=(back, b"one is lost", 1))
    site.peer("two", lasting=True, will=(gone, b"two is lost", 1)).cut()

    assert watcher.payloads(1) == [b"two is lost"]


def test_a_take_over_publishes_the_will_of_the_connection_it_ends(site):
    """R-019: the will of a connection that was taken over may come after the birth of its successor, so it is numbered.

    What the number is for: whoever reads states drops a will below the newest birth (DeviceState, ServiceState).
    """
    topic, other = site.topic("state"), site.topic("other")
    watcher = site.peer("watcher")
    watcher.subscribe(topic, other)
    first = site.peer("device", lasting=True, will=(topic, b"lost 1"))
    first.send(topic, b"ready 1", retain=True)
    second = site.peer("device", lasting=True, will=(topic, b"lost 2"))
    second.send(topic, b"ready 2", retain=True)
    assert first.ended.get(timeout=WAIT_S)
    second.send(other, b"end")
    seen = watcher.upto(b"end")

    assert [b for b in seen if b != b"lost 1"] == [b"ready 1", b"ready 2"]
    assert b"lost 2" not in seen


def test_a_new_session_gets_every_birth(site):
    """R-034: who subscribes to all devices gets the retained birth of each, once; of rumqttd only the first hundred."""
    sender, births = site.peer("sender"), [b"ready %d" % number for number in range(150)]
    for birth in births:
        sender.client.publish(site.topic(f"{birth.decode()}/state"), birth, 1, retain=True)
    sender.send(site.topic("all"))
    reader = site.peer("reader", window=16)
    reader.subscribe(site.topic("+/state"), site.topic("end"))
    got = reader.payloads(100)
    sender.send(site.topic("end"), b"end")
    got += reader.upto(b"end") if site.kind == "iotcore" else reader.payloads(50)

    assert len(got) == len(set(got)) == (len(births) if site.kind == "mosquitto" else 100)
    for birth in births:
        sender.client.publish(site.topic(f"{birth.decode()}/state"), b"", 1, retain=True)
    sender.send(site.topic("all"))
