"""Each test runs against each broker of this machine in each protocol version; a broker is started once."""

import pytest

from broker_bridge import broker as product
from broker_bridge.broker import Broker, find_mosquitto
from tests.conformance.peer import Site

KINDS = ("mosquitto", "iotcore")


def need(kind):
    """Skip where this broker is not installed."""
    if kind == "mosquitto" and find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
    if kind == "iotcore":
        pytest.importorskip("iotcore", reason="iotcore comes with the extra [server]")


@pytest.fixture(scope="session")
def started(tmp_path_factory):
    """Brokers by kind, with the configuration that `fedfleet up` gives them, each started when first asked for."""
    running = {}

    def start(kind):
        need(kind)
        if kind not in running:
            running[kind] = Broker.start(kind, state_dir=tmp_path_factory.mktemp(kind))
        return running[kind]

    yield start
    for broker in running.values():
        broker.stop()


@pytest.fixture(params=[(kind, version) for kind in KINDS for version in ("5", "3.1.1")], ids="-".join)
def site(request, started):
    """A broker spoken to in one version; tests on it must leave it as it was."""
    kind, version = request.param
    made = Site(started(kind), version)
    yield made
    made.close()


@pytest.fixture(params=["5", "3.1.1"])
def version(request):
    """A protocol version."""
    return request.param


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Starts a broker for one test; of mosquitto also with lines of the test's own in its configuration."""
    running = []
    plain = product._mosquitto_config

    def start(kind="mosquitto", lines="", **options):
        need(kind)
        monkeypatch.setattr(product, "_mosquitto_config", lambda *facts: plain(*facts) + lines)
        running.append(Broker.start(kind, state_dir=tmp_path / "broker", **options))
        return running[-1]

    yield start
    for broker in running:
        broker.stop()


@pytest.fixture
def sites():
    """Makes a Site over a broker that a test started; its clients are disconnected at the end."""
    made = []

    def over(broker, version):
        made.append(Site(broker, version))
        return made[-1]

    yield over
    for each in made:
        each.close()
