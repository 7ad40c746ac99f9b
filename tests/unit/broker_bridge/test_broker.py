"""The embedded broker: it starts, refuses what it must, and never outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from broker_bridge.broker import Broker, BrokerError, _accepts, free_port

ORPHAN = """
import sys, time
from pathlib import Path
from broker_bridge.broker import Broker
broker = Broker.start(sys.argv[1], state_dir=Path(sys.argv[2]))
print(broker.port, flush=True)
time.sleep(60)
"""


def test_started_broker_takes_connections_and_stops(broker: Broker) -> None:
    """A started broker accepts connections on both ports; a stopped one does not."""
    assert _accepts(broker.host, broker.port)
    assert _accepts(broker.host, broker.port_v311)
    broker.stop()
    assert not _accepts(broker.host, broker.port)


def test_port_in_use_is_named(broker: Broker, tmp_path: Path) -> None:
    """A taken port is refused with its number and what to do."""
    with pytest.raises(BrokerError, match=rf"port {broker.port} .*choose another port"):
        Broker.start(broker.kind, state_dir=tmp_path / "second", port=broker.port)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "localhost.example", "::"])
def test_only_loopback_is_served(host: str, tmp_path: Path) -> None:
    """A broker without authentication refuses any address but loopback."""
    with pytest.raises(BrokerError, match="loopback only"):
        Broker.start(host=host, state_dir=tmp_path)


def test_broker_dies_with_its_parent(broker: Broker, tmp_path: Path) -> None:
    """Kill -9 of the process that started a broker ends the broker too."""
    command = [sys.executable, "-c", ORPHAN, broker.kind, str(tmp_path / "orphan")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        port = int(parent.stdout.readline())
        assert _accepts("127.0.0.1", port)
        os.kill(parent.pid, signal.SIGKILL)
        deadline = time.monotonic() + 5
        while _accepts("127.0.0.1", port):
            assert time.monotonic() < deadline, "the broker outlived its parent"
            time.sleep(0.02)


def test_free_port_is_free(tmp_path: Path) -> None:
    """A broker can be started on the port that free_port names."""
    port = free_port()
    broker = Broker.start("auto", state_dir=tmp_path, port=port)
    assert broker.port == port
    broker.stop()


def test_a_free_port_is_none_that_a_connection_could_be_given() -> None:
    """A port that waits for its owner is not taken by a client's end of a connection meanwhile."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])

    assert all(free_port() < lowest for _ in range(20))


def test_a_machine_without_any_broker_is_told_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With neither mosquitto nor iotcore the error names both ways out, and nothing is left behind."""
    monkeypatch.setattr("broker_bridge.broker.find_mosquitto", lambda: None)
    monkeypatch.setattr("broker_bridge.broker.find_spec", lambda _: None)
    with pytest.raises(BrokerError, match="install mosquitto, or iotcore"):
        Broker.start("auto", state_dir=tmp_path / "broker")
    assert not (tmp_path / "broker").exists()
