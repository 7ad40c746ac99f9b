"""An aggregator process on its own: its port, how it stops, and what it says of damaged state."""

import socket

import pytest

from broker_bridge.broker import free_port
from tests.e2e.server import TRACEBACK, WAIT_S, Aggregator, refused, small_bundle


@pytest.fixture
def alone(tmp_path):
    """An aggregator for one test, which starts it."""
    alone = Aggregator(tmp_path / "state")
    yield alone
    alone.close()


def test_a_taken_port_ends_the_process_with_its_number(alone):
    """An aggregator that cannot have its port says which, and opens no storage before."""
    with socket.create_server(("127.0.0.1", free_port())) as listener:
        port = listener.getsockname()[1]
        alone.start(port)
        assert alone.process.wait(WAIT_S) == 1

    assert f"port {port} on 127.0.0.1 is not free" in alone.log.read_text()
    assert TRACEBACK not in alone.log.read_text()
    assert not (alone.directory / "fleet.db").exists()
    assert not list(alone.temporary.iterdir())


def test_stopping_does_not_wait_for_viewers(alone):
    """A server that is stopped ends the streams of those who follow it, in order."""
    alone.start()
    with alone.client() as client, client.stream("GET", "/events") as response:
        lines = response.iter_lines()
        assert next(lines) == ": connected"
        alone.process.terminate()
        assert [line for line in lines if line] == []
        assert alone.process.wait(WAIT_S) == 0
    assert TRACEBACK not in alone.log.read_text()


def test_stopping_leaves_no_files_and_damaged_state_is_named(alone):
    """I3: SIGTERM ends with code 0 and an empty temporary directory; a lost manifest then damages its job alone."""
    server = alone
    server.start()
    with server.client() as client:
        digest = client.post("/bundles", content=small_bundle().to_bytes()).json()["digest"]
        assert client.post("/jobs", json={"name": "one", "bundle": digest, "dataset": "d"}).status_code == 201
        assert server.stop() == 0
    assert not list(server.temporary.iterdir())

    for path in (server.directory / "blobs").glob("??/*"):
        if path.name != digest:
            path.unlink()
    server.start(free_port())
    with server.client() as client:
        assert client.get("/health").json()["damaged"] == ["one"]
        refused(client.get("/jobs/one"), 500, "damaged", "fedfleet doctor")
        refused(client.delete(f"/bundles/{digest}"), 409, "in_use", "one")
        assert client.get("/jobs").json()["jobs"] == []
        assert server.stop() == 0
    assert TRACEBACK not in server.log.read_text()
