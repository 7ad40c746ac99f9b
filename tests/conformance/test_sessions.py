"""What a session is: what waits for who is away, what comes again, in which order, and who is thrown out."""

import pytest
from paho.mqtt.subscribeoptions import SubscribeOptions

from edge_client.wire import topics

MESSAGES = [b"%d" % n for n in range(50)]


def test_messages_wait_for_a_session_that_is_away(site):
    """R-001: what is published at QoS 1 while a lasting session is away is delivered when it comes back."""
    topic = site.topic("x")
    away = site.peer("away", lasting=True)
    away.subscribe(topic)
    away.close()
    sender = site.peer("sender")
    for payload in MESSAGES:
        sender.send(topic, payload)
    back = site.peer("away", lasting=True)

    assert back.resumed
    assert back.payloads(len(MESSAGES)) == MESSAGES


def test_messages_wait_for_a_connection_that_broke(site):
    """R-001: a session outlives a connection that ends without a DISCONNECT, with its subscriptions."""
    topic = site.topic("x")
    site.peer("away", lasting=True).subscribe(topic)
    site.peers[-1].cut()
    site.peer("sender").send(topic, b"while away")
    back = site.peer("away", lasting=True)

    assert back.payloads(1) == [b"while away"]


def test_a_session_that_does_not_last_begins_empty(site):
    """R-002: without a lasting session nothing of an earlier connection of that name comes."""
    topic = site.topic("x")
    gone = site.peer("gone")
    gone.subscribe(topic)
    gone.close()
    sender = site.peer("sender")
    sender.send(topic, b"missed")
    back = site.peer("gone")
    back.subscribe(topic)
    sender.send(topic, b"last")

    assert not back.resumed
    assert back.upto(b"last") == []


def test_what_was_not_acknowledged_comes_again_in_order(site):
    """R-003: messages received but not acknowledged are delivered again to the next connection, first to last."""
    topic = site.topic("x")
    first = site.peer("bridge", lasting=True, manual=True)
    first.subscribe(topic)
    sender = site.peer("sender")
    for payload in MESSAGES:
        sender.send(topic, payload)
    received = [first.next() for _ in MESSAGES]
    for message in received[:20]:
        first.ack(message)
    sender.send(site.topic("y"))  # the broker has worked through what came before it from others, too
    first.cut()
    second = site.peer("bridge", lasting=True)
    again = second.payloads(30)

    assert [bytes(message.payload) for message in received] == MESSAGES
    while again[0] in MESSAGES[:20]:  # an acknowledgement may be lost with its connection
        again = [*again[1:], *second.payloads(1)]
    assert again == MESSAGES[20:]


def test_a_topic_keeps_its_order(site):
    """R-004: what one client publishes on a topic arrives in that order, also behind a window of one."""
    topic = site.topic("x")
    reader = site.peer("reader", window=1)
    reader.subscribe(topic)
    sender = site.peer("sender")
    for payload in MESSAGES:
        sender.client.publish(topic, payload, 1)

    assert reader.payloads(len(MESSAGES)) == MESSAGES


def test_a_name_belongs_to_the_connection_that_came_last(site):
    """R-005: a second connection of a name ends the first and takes its session over, waiting messages included."""
    topic = site.topic("x")
    first = site.peer("name", lasting=True, manual=True)
    first.subscribe(topic)
    sender = site.peer("sender")
    sender.send(topic, b"taken over")
    assert bytes(first.next().payload) == b"taken over"
    second = site.peer("name", lasting=True)

    assert first.ended.get(timeout=30)
    assert second.payloads(1) == [b"taken over"]
    sender.send(topic, b"later")
    assert second.payloads(1) == [b"later"]


def test_an_unacknowledged_message_of_many_is_not_lost_by_later_ones(site):
    """R-003: acknowledgements in order of some messages never drop those after them."""
    topic = site.topic("x")
    reader = site.peer("reader", lasting=True, manual=True)
    reader.subscribe(topic)
    sender = site.peer("sender")
    sender.send(topic, b"a")
    sender.send(topic, b"b")
    held = reader.next()
    later = reader.next()
    reader.cut()
    back = site.peer("reader", lasting=True)

    assert [bytes(held.payload), bytes(later.payload)] == [b"a", b"b"]
    assert back.payloads(2) == [b"a", b"b"]


def test_nothing_waits_for_a_subscription_of_qos_0(site):
    """R-006: of a topic subscribed to with QoS 0 mosquitto keeps nothing for who is away; rumqttd does."""
    delta, command = site.topic("delta"), site.topic("command")
    away = site.peer("away", lasting=True)
    away.subscribe(delta, qos=0)
    away.subscribe(command)
    sender = site.peer("sender")
    sender.send(delta, b"live")
    assert away.payloads(1) == [b"live"]
    away.close()
    sender.send(delta, b"missed")
    sender.send(command, b"kept")
    back = site.peer("away", lasting=True)

    assert back.upto(b"kept") == ([] if site.kind == "mosquitto" else [b"missed"])


def test_an_ended_subscription_delivers_nothing(site):
    """R-007: after UNSUBACK nothing of that filter comes."""
    topic, other = site.topic("delta/job/1"), site.topic("command")
    reader = site.peer("reader", lasting=True)
    reader.subscribe(site.topic("delta/#"), other)
    sender = site.peer("sender")
    sender.send(topic, b"one")
    assert reader.payloads(1) == [b"one"]
    reader.unsubscribe(site.topic("delta/#"))
    sender.send(topic, b"two")
    sender.send(other, b"last")

    assert reader.upto(b"last") == []


def test_filters_match_levels(site):
    """R-008: `+` is one level, `#` is all that follow, and a client gets what its filters name and nothing else."""
    reader = site.peer("reader")
    reader.subscribe(site.topic("offer/+"), site.topic("c/#"))
    sender = site.peer("sender")
    for name in ("offer/a", "offer/a/b", "offer", "c/x/y/z", "other", "last/x", "c/last"):
        sender.send(site.topic(name), name.encode())

    assert reader.upto(b"c/last") == [b"offer/a", b"c/x/y/z"]


def test_bytes_arrive_as_they_were_sent(site):
    """R-009: a payload of any bytes, of none, and of a whole chunk arrives unchanged."""
    topic = site.topic("x")
    reader = site.peer("reader")
    reader.subscribe(topic)
    sender = site.peer("sender")
    payloads = [bytes(range(256)), b"", b"\xff\x00" * 33_000]
    for payload in payloads:
        sender.send(topic, payload)

    assert reader.payloads(3) == payloads


@pytest.mark.parametrize("kind", ["mosquitto", "iotcore"])
def test_a_resumed_session_need_not_see_retained_messages_again(started, sites, kind):
    """R-010: with `retain handling 1` a resumed session gets no retained message again; a new one gets each."""
    site = sites(started(kind), "5")
    topic = site.topic("state")
    site.peer("sender").send(topic, b"birth", retain=True)
    options = SubscribeOptions(qos=1, retainHandling=SubscribeOptions.RETAIN_SEND_IF_NEW_SUB)

    def connect():
        peer = site.peer("bridge", lasting=True)
        peer.client.subscribe([(topic, options)])
        peer._granted.get(timeout=30)
        return peer

    new = connect()
    assert new.payloads(1) == [b"birth"]
    new.close()
    again = connect()
    site.peer("sender").send(topic, b"last")

    assert again.upto(b"last") == []
    site.peer("sender").send(topic, b"", retain=True)


@pytest.mark.parametrize("kind", ["mosquitto", "iotcore"])
def test_a_session_with_no_time_to_live_ends_with_its_connection(started, sites, kind):
    """R-011: a session whose expiry is 0 is gone with its connection, one of a week is not."""
    site = sites(started(kind), "5")
    for lasting in (False, True):
        site.peer(f"s-{lasting}", lasting=lasting).close()
    assert not site.peer("s-False", lasting=True).resumed
    assert site.peer("s-True", lasting=True).resumed


def test_a_members_share_is_stranded_when_it_is_away(site):
    """R-012: of a shared subscription a member that is away may get its share all the same: the bridge uses none."""
    topic, other = site.topic("x"), site.topic("other")
    here, away = (site.peer(name, lasting=True) for name in ("here", "away"))
    for member in (here, away):
        member.subscribe(f"$share/bridges/{topic}")
    here.subscribe(other)
    away.close()
    sender = site.peer("sender")
    for payload in MESSAGES:
        sender.send(topic, payload)
    sender.send(other, b"last")
    got = here.upto(b"last")
    back = site.peer("away", lasting=True)
    stranded = back.payloads(len(MESSAGES) - len(got))

    assert sorted(got + stranded) == sorted(MESSAGES)
    assert bool(stranded) == (site.kind == "mosquitto")
    assert not topics.UP_FILTER.startswith("$share")


def test_numbers_of_packets_may_begin_anew_on_a_resumed_session(site):
    """R-033: a client that lost its memory uses packet ids again on its session, and every message arrives."""
    topic = site.topic("x")
    reader = site.peer("reader")
    reader.subscribe(topic)
    for payload in (b"first", b"second", b"third"):
        sender = site.peer("sender", lasting=True)
        assert sender.send(topic, payload) == "Success"
        sender.cut()

    assert reader.payloads(3) == [b"first", b"second", b"third"]
