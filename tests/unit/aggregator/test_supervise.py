"""When dead processes are started again, and what a person is told of those that stay dead."""

import subprocess
import sys
import time

import pytest

from aggregator import restarts
from aggregator.restarts import Restarts
from aggregator.supervise import LOG_BYTES_MAX, Child, Supervisor, SupervisorError
from broker_bridge.broker import Broker, BrokerError


def test_pauses_double_up_to_their_limit():
    """I6: each short life makes the next pause longer, and a long one ends the row."""
    record, pauses = Restarts(), []
    for _ in range(40):
        record.died(1.0, now=100.0)
        pauses.append(record.due_at - 100.0)
    record.died(restarts.HEALTHY_S, now=100.0)

    assert pauses[:3] == pytest.approx([0.2, 0.4, 0.8])
    assert max(pauses) == pauses[-1] == restarts.PAUSE_S_MAX
    assert record.due_at == 100.0
    assert not record.hopeless


def child_of(tmp_path, code):
    log_path = tmp_path / "child.log"

    def launch():
        with log_path.open("ab") as output:
            return subprocess.Popen([sys.executable, "-c", code], stderr=output)

    return Child("child", launch, log_path)


def test_tending_never_waits(tmp_path):
    """A process in its pause keeps neither signals nor other processes waiting."""
    child = child_of(tmp_path, "raise SystemExit('why it died')")
    child.start()
    child.process.wait()
    child.restarts.short_lives = 20
    before = time.monotonic()
    child.tend()
    first = child.process
    child.tend()

    assert time.monotonic() - before < 1.0
    assert child.process is first
    assert child.restarts.short_lives == 21  # one death is counted once
    assert "why it died" in child.last_words()
    assert "21 times" in child.last_words()


def test_a_start_that_fails_is_a_death_and_tried_again(tmp_path, monkeypatch):
    """A broker whose port was taken meanwhile is tried again and again, with the pauses of one that dies."""
    monkeypatch.setattr(restarts, "PAUSE_S_MIN", 0.0)
    child = child_of(tmp_path, "")
    child.start()
    child.process.wait()
    works, tried = child.launch, []

    def taken():
        tried.append(1)
        raise BrokerError("port 1883 is not free")

    child.launch = taken
    for _ in range(3):
        child.tend()
    child.launch = works
    child.tend()
    child.process.wait()

    assert len(tried) == 3
    assert child.restarts.short_lives == 4
    assert child.restarts.hopeless


def test_one_port_for_two_is_refused(tmp_path):
    """API and broker cannot share a port, and nothing is started to find out."""
    supervisor = Supervisor(tmp_path, 18999, 18999)
    with pytest.raises(SupervisorError, match=r"--port and --mqtt-port are both 18999"):
        supervisor.start()

    assert supervisor.children == []


def test_the_port_of_the_api_is_kept_from_the_broker(tmp_path):
    """A broker that chooses its port while the API does not listen yet cannot choose the API's."""
    supervisor = Supervisor(tmp_path, 0, 0, "auto")
    with supervisor._choose_ports(), pytest.raises(BrokerError, match="not free"):
        Broker.start(state_dir=tmp_path / "broker", port=supervisor.http_port)
    assert supervisor.http_port


def test_a_long_log_is_put_aside(tmp_path):
    """I6: a log above its limit starts anew with its process, and the old one is kept once."""
    supervisor = Supervisor(tmp_path, 0, 0)
    child = supervisor._child("no_such_module")
    with child.log_path.open("wb") as log:
        log.truncate(LOG_BYTES_MAX + 1)
    child.start()
    child.process.wait()

    assert child.log_path.stat().st_size < 10_000
    assert (tmp_path / "no_such_module.log.old").stat().st_size > LOG_BYTES_MAX
