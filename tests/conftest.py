"""Fixtures that tests of all packages share: real brokers."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker_bridge.broker import Broker, find_mosquitto

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # tests import ONNX Runtime themselves (edge_client/runtime.py)


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
