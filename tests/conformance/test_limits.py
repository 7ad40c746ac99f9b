"""How much at once: packets that a broker does not take, and windows of those who receive."""

import asyncio

import pytest

from broker_bridge.mqtt import PAUSE_AT
from edge_client.transport import Acked
from edge_client.wire.errors import LocalWireError
from tests.conformance.peer import until
from tests.conformance.product import Device, eventually, linked

PACKET_BYTES = 2_000
LIMITED = f"max_packet_size {PACKET_BYTES}\n"


@pytest.fixture
def narrow(own, sites, version):
    """A mosquitto that takes small packets only."""
    return sites(own(lines=LIMITED), version)


def test_a_packet_that_is_too_large_ends_the_connection_again_and_again(narrow):
    """R-020: a broker hangs up on a packet over its limit, and a client that sends it again gets nothing else through."""
    topic = narrow.topic("x")
    reader = narrow.peer("reader")
    reader.subscribe(topic)
    naive = narrow.peer("naive", again=True, lasting=True)
    naive.client.publish(topic, bytes(2 * PACKET_BYTES), 1)
    naive.client.publish(topic, b"behind", 1)
    for _ in range(3):
        naive.begun.get(timeout=30)

    assert naive.packet_max == (PACKET_BYTES if narrow.version == "5" else None)
    assert reader.inbox.empty()


def oversize(site):
    """The least payload that is one byte more than the product sends to this broker."""
    limit = 1024 * 1024 if site.kind == "mosquitto" and site.version == "5" else 128 * 1024
    return limit - 1024 + 1


def test_the_bridge_hands_no_packet_over_that_the_broker_refuses(site):
    """R-020, I9: what is too large is an error for who wanted to send it, also where no limit is stated; the next passes."""
    topic = site.topic("x")
    reader = site.peer("reader")
    reader.subscribe(topic)

    async def main():
        async with linked(site, "bridge") as link:
            with pytest.raises(LocalWireError, match="takes packets of"):
                link.publish(topic, bytes(oversize(site)))
            await asyncio.wait_for(link.publish(topic, bytes(oversize(site) - 1)), 30)
            await asyncio.wait_for(link.publish(topic, b"behind"), 30)
            assert link._connections == 1

    asyncio.run(main())
    assert [len(payload) for payload in reader.payloads(2)] == [oversize(site) - 1, len(b"behind")]


def test_a_device_hands_no_packet_over_that_the_broker_refuses(site):
    """R-020, I9: the same for a device: the packet is not sent, and the connection lives on."""
    topic = site.topic("x")
    reader = site.peer("reader")
    reader.subscribe(topic)
    device = Device(site, "device")
    try:
        assert device.transport.publish(topic, bytes(oversize(site))) is None
        message = device.transport.publish(topic, b"behind")
        device.until(lambda word: isinstance(word, Acked) and word.message == message, "a PUBACK")
        assert device.ups == 1
    finally:
        device.close()
    assert reader.payloads(1) == [b"behind"]


@pytest.mark.parametrize("kind", ["mosquitto", "iotcore"])
def test_a_window_bounds_what_is_on_its_way(started, sites, kind):
    """R-021: mosquitto keeps to a client's Receive Maximum; rumqttd does not."""
    site = sites(started(kind), "5")
    topic, other = site.topic("x"), site.topic("other")
    reader = site.peer("reader", window=5, manual=True)
    reader.subscribe(topic)
    sender = site.peer("sender")
    for number in range(20):
        sender.send(topic, b"%d" % number)
    site.peer("last").send(other)
    until(lambda: reader.inbox.qsize() >= (5 if kind == "mosquitto" else 20), "a window's worth")

    assert reader.inbox.qsize() == (5 if kind == "mosquitto" else 20)
    for _ in range(20):
        reader.ack(reader.next())


def test_the_bridge_stops_reading_where_no_window_is_kept(site):
    """R-021, I6: whatever a broker sends at once, the bridge takes in a bounded number and then all, in order."""
    topic, count = site.topic("x"), 3 * PAUSE_AT

    async def main():
        async with linked(site, "bridge", topic) as link:
            sender = site.peer("sender")
            for number in range(count):
                sender.client.publish(topic, b"%d" % number, 1)
            await asyncio.to_thread(sender.send, site.topic("other"))
            held = [await asyncio.wait_for(link.receive(), 30) for _ in range(32)]
            assert (
                len(held) + link._inbox.qsize() <= PAUSE_AT + 200
            )  # and what one read of the socket brought
            for message in held:
                link.ack(message)
            rest = []
            while len(rest) < count - len(held):
                rest.append(await asyncio.wait_for(link.receive(), 30))
                link.ack(rest[-1])
            assert [int(m.payload) for m in held + rest] == list(range(count))

    asyncio.run(main())


def test_the_bridge_acknowledges_in_the_order_of_the_messages(site):
    """R-022: however the bridge finishes messages, a broker that wants PUBACKs in order stays connected."""
    topic = site.topic("x")

    async def main():
        async with linked(site, "bridge", topic) as link:
            sender = site.peer("sender")
            for number in range(6):
                await asyncio.to_thread(sender.send, topic, b"%d" % number)
            held = [await asyncio.wait_for(link.receive(), 30) for _ in range(6)]
            for index in (5, 0, 2, 1, 4, 3):
                link.ack(held[index])
            await asyncio.to_thread(sender.send, topic, b"6")
            later = await asyncio.wait_for(link.receive(), 30)
            link.ack(later)
            assert later.payload == b"6"
            assert link._connections == 1

    asyncio.run(main())


def test_the_bridge_goes_on_after_a_connection_broke(site):
    """R-003, R-013: what was open comes again, what was not taken is sent again, and the birth is retained anew."""
    topic, down = site.topic("x"), site.topic("down")
    reader = site.peer("reader")
    reader.subscribe(down, site.topic("state-of-bridge"))

    async def main():
        async with linked(site, "bridge", topic) as link:
            sender = site.peer("sender")
            await asyncio.to_thread(sender.send, topic, b"open")
            held = await asyncio.wait_for(link.receive(), 30)
            link._close_socket()
            future = link.publish(down, b"sent in between")
            await asyncio.wait_for(link.connection(after=1), 30)
            link.ack(held)  # of a connection that is gone: the broker delivers it again
            again = await asyncio.wait_for(link.receive(), 30)
            link.ack(again)
            assert again.payload == b"open"
            await asyncio.wait_for(future, 30)
            await eventually(lambda: link._up, "up")

    asyncio.run(main())
    seen = set()
    while b"up 2" not in seen or b"sent in between" not in seen:
        seen.add(bytes(reader.next().payload))
