"""Two processes of one role never share an engine: the second names the first."""

import asyncio
import os
import signal
import subprocess
import sys

import pytest

from broker_bridge import claim
from broker_bridge.bridge import Bridge
from broker_bridge.claim import claimed
from broker_bridge.ports import PortError, open_ports

HOLDER = """
import sys, time
from broker_bridge.claim import claimed
with claimed(sys.argv[1], "aggregator"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/fleet.db"


def test_a_second_process_is_refused_with_the_pid_of_the_first(url, monkeypatch):
    """I3: who holds a role is named, other roles are free, and kill -9 of the holder frees it."""
    monkeypatch.setattr(claim, "WAIT_S", 0.1)
    command = [sys.executable, "-c", HOLDER, url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(PortError, match=rf"fleet\.db.*another aggregator \(process {holder.pid}\)"):
                claimed(url, "aggregator").__enter__()
            with claimed(url, "bridge-main"):
                pass
        finally:
            os.kill(holder.pid, signal.SIGKILL)
    with claimed(url, "aggregator"):
        pass


def test_engines_in_memory_are_not_shared():
    """Each `memory:` is its own engine, so nothing is held."""
    with claimed("memory:", "aggregator"), claimed("memory:", "aggregator"):
        pass


@pytest.mark.parametrize(
    ("role", "arguments"),
    [
        ("aggregator", ["aggregator", "--port", "0"]),
        ("bridge-main", ["broker_bridge", "--broker", "127.0.0.1:1"]),
    ],
)
def test_processes_started_by_hand_are_refused(url, role, arguments):
    """`python -m` of bridge or aggregator on a database in use ends with code 1 and says whose it is."""
    with claimed(url, role):
        done = subprocess.run(
            [sys.executable, "-m", *arguments, "--ports", url],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert done.returncode == 1
    assert f"(process {os.getpid()})" in done.stdout + done.stderr


def test_two_bridges_of_a_name_on_two_machines_do_not_fight():
    """Where no lock reaches, who comes second takes the name over, and the first ends with the reason."""

    async def main():
        ports = open_ports("memory:")
        first, second = (Bridge(ports, "127.0.0.1", 1) for _ in range(2))
        for bridge in (first, second):
            await bridge._load()
        await second._store(conn_seq=1)
        with pytest.raises(PortError, match="another bridge runs"):
            await first._store(conn_seq=1)

    asyncio.run(main())
