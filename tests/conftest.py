"""Fixtures that tests of all packages share: real brokers."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from broker_bridge import broker as brokers
from broker_bridge.broker import Broker, find_mosquitto

TESTS = Path(__file__).parent
# Directories whose tests start processes: those of one are never beside each other, and the longest come first.
ONE_BY_ONE = ("chaos", "soak", "e2e", "browser", "conformance", "pi")
# Workers of pytest-xdist choose among ports of their own: one that is chosen is not yet taken.
_WORKER, _WORKERS = (
    int(os.environ.get(f"PYTEST_XDIST_WORKER{what}", "1").strip("gw")) for what in ("", "_COUNT")
)
brokers.PORTS = brokers.PORTS[_WORKER % _WORKERS :: _WORKERS]
settings.register_profile("fedfleet", deadline=None)  # how long an example takes is the machine's affair
settings.load_profile("fedfleet")
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # tests import ONNX Runtime themselves (edge_client/runtime.py)


def pytest_collection_modifyitems(items):
    """Under `pytest -n 2 --dist loadgroup` a directory of ONE_BY_ONE is one worker's; other tests are anybody's.

    pytest-randomly comes before this, so its order stays within a directory.
    """

    def turn(item):
        directory = item.path.relative_to(TESTS).parts[0]
        return ONE_BY_ONE.index(directory) if directory in ONE_BY_ONE else len(ONE_BY_ONE)

    items.sort(key=turn)
    for item in items:
        for directory in ONE_BY_ONE[turn(item) :][:1]:
            item.add_marker(pytest.mark.xdist_group(directory))


@pytest.fixture(params=["mosquitto", "iotcore"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Broker]:
    """A loopback broker of each kind on a free port; a test may kill it and start another in its place."""
    if request.param == "mosquitto" and find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
    if request.param == "iotcore":
        pytest.importorskip("iotcore", reason="iotcore comes with the extra [server]")
    started = Broker.start(request.param, state_dir=tmp_path / "broker")
    yield started
    started.stop()


@pytest.fixture(scope="session", autouse=True)
def interrupts_are_heard():
    """A run that was started in the background ignores SIGINT, and all that its tests start would inherit that."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
