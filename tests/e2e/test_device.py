"""The device daemon against real brokers and a scripted bridge: what it says, survives and cleans up."""

import time

import pytest

from tests.e2e.fleet import WAIT_S, Bridge, Node


def until(condition):
    """Wait for a condition with a deadline."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.02)


@pytest.fixture
def bridge(broker):
    """A scripted bridge on the broker."""
    made = Bridge(broker.port)
    yield made
    made.close()


@pytest.fixture
def node(broker, tmp_path):
    """A daemon that is stopped at the end."""
    made = Node(tmp_path, broker.port)
    yield made
    if made.process is not None:
        made.stop()


def test_participation_from_offer_to_receipt_and_on(bridge, node):
    """A device asks, pulls, trains, sends chunks, and after the receipt asks again with its new version."""
    bridge.offer()
    node.start()
    first = bridge.ask()
    assert (first["n_samples"], first.get("holds")) == (40, None)
    bridge.assign(first, size=3_000_000, version=7)
    for state in ("pulling", "training", "uploading"):
        bridge.task(state)
    uid, frame = bridge.update()
    assert frame[8:].startswith(b"seq 1 residual None ")
    bridge.receipt(uid)
    second = bridge.wait("ask", lambda b: b["ask"] > first["ask"])[1]
    assert second["holds"] == 7
    bridge.assign(second, version=8)
    uid, frame = bridge.update()
    assert frame[8:].startswith(b"seq 3 residual b'accepted 1'")
