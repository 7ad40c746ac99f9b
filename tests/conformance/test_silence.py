"""A peer that is silent without having gone: who notices, and when."""

import asyncio

import pytest

from edge_client.transport import Down, Up
from edge_client.wire.errors import LocalWireError
from tests.conformance.peer import WAIT_S, Site
from tests.conformance.product import Device, linked
from tests.proxy import Proxy


class Through(Site):
    """A broker behind a proxy."""

    def __init__(self, site, **options):
        super().__init__(site.broker, site.version)
        self.proxy = Proxy(site.port, **options)

    @property
    def port(self):
        return self.proxy.port

    def close(self):
        self.proxy.close()
        super().close()


@pytest.fixture
def through(site):
    """The broker behind a proxy that carries all until it is told otherwise."""
    made = Through(site)
    yield made
    made.close()


@pytest.fixture(params=[("mosquitto", "5"), ("iotcore", "3.1.1")], ids="-".join)
def silent(request, started, sites):
    """Two brokers behind a proxy: which one it is that says nothing makes no difference."""
    kind, version = request.param
    made = Through(sites(started(kind), version))
    yield made
    made.close()


def test_a_broker_gives_a_silent_client_up(site, through):
    """R-031: of a client that says nothing for one and a half keep-alives the broker publishes the will."""
    topic = site.topic("state")
    watcher = site.peer("watcher")
    watcher.subscribe(topic)
    through.peer("device", lasting=True, keepalive=1, will=(topic, b"lost"))
    through.proxy.hang()

    assert watcher.payloads(1) == [b"lost"]


def test_a_device_gives_a_silent_broker_up(silent, monkeypatch):
    """R-031: a device whose broker falls silent without a FIN or RST takes it for gone and connects anew."""
    monkeypatch.setattr("edge_client.transport.SILENCE_FACTOR", 1.5)
    device = Device(silent, "device", keepalive=1)
    try:
        silent.proxy.hang()
        word = device.until(lambda word: isinstance(word, Down), "the broker's silence is noticed")
        assert word.reason == "the broker has been silent"
        device.until(lambda word: isinstance(word, Up), "another connection")
    finally:
        device.close()


def test_the_bridge_gives_a_silent_broker_up(silent, monkeypatch):
    """R-031: so does the bridge, and what it published without a PUBACK, and should last, goes over the next one."""
    monkeypatch.setattr("broker_bridge.mqtt.KEEPALIVE_S", 1)
    topic = silent.topic("x")

    async def main():
        async with linked(silent, "bridge") as link:
            silent.proxy.hang()
            passing = link.publish(topic, b"for this connection", lasting=False)
            lasting = link.publish(topic, b"into the silence")
            await asyncio.wait_for(link.connection(after=1), WAIT_S)
            await asyncio.wait_for(lasting, WAIT_S)
            with pytest.raises(LocalWireError, match="the connection was lost"):
                await passing

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["mosquitto", "iotcore"])
def test_a_broker_that_hangs_up_on_mqtt_5_gets_mqtt_311(started, sites, kind):
    """R-032: where MQTT 5 is answered by the end of the connection, device and bridge go on in 3.1.1."""
    old = Through(sites(started(kind), "3.1.1"), refuse5=True)
    try:
        old.version = "auto"
        device = Device(old, "device")
        assert device.transport.protocol == "3.1.1"
        device.close()

        async def main():
            async with linked(old, "bridge") as link:
                await asyncio.wait_for(link.publish(old.topic("x"), b"taken"), WAIT_S)

        asyncio.run(main())
    finally:
        old.close()
