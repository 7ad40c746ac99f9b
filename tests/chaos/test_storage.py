"""A server whose disk takes nothing, and processes that hang: all wait, nothing is lost, and all go on."""

import os
import resource
import signal
import time

import pytest

from broker_bridge.broker import find_mosquitto
from tests.chaos.conftest import Fleet, until
from tests.chaos.test_kill import DEVICES, finish, run_until

SERVERS = ("aggregator", "broker_bridge")
STOP_S = 5.0
HANG_S = 5.0  # far longer than a device needs from its assignment to an update


@pytest.fixture
def site(tmp_path, bundle):
    """A server with a job and devices at work, on whichever broker there is."""
    fleet = Fleet(tmp_path, "mosquitto" if find_mosquitto() else "iotcore")
    try:
        fleet.start()
        fleet.start_job(bundle)
        for name in DEVICES:
            fleet.start_device(name)
        run_until(fleet, 2)
        yield fleet
    finally:
        fleet.close()


def pids(fleet):
    return [child.process.pid for child in fleet.supervisor.children if child.name in SERVERS]


def limit_files(fleet, size):
    """What a full disk is to bridge and aggregator: no file grows beyond so many bytes; None lifts it."""
    for pid in pids(fleet):
        hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard if size is None else size, hard))


def test_a_server_on_a_full_disk_waits_and_goes_on(site):
    """I1: while nothing can be written no process ends and no update is lost; then all are folded exactly once."""
    before = pids(site)
    for _ in range(2):
        limit_files(site, 0)
        until(lambda: site.api.health()["status"] == "waiting", "the API says that it waits")
        version = site.job()["version"]
        limit_files(site, None)
        until(lambda: site.api.health()["status"] == "ok", "the API says that all is well")
        run_until(site, version + 2)
    assert pids(site) == before
    assert [child.process.poll() for child in site.supervisor.children] == [None] * 3

    assert finish(site) >= 12


def hangs_while_an_update_comes(site, pid):
    """Stop a process for a while; False when no update came: an aggregator that hangs lets no device begin."""
    until(lambda: site.job()["training"], "a device trains")
    sent, end = len(site.ledger.frames), time.monotonic() + HANG_S
    os.kill(pid, signal.SIGSTOP)
    try:
        while len(site.ledger.frames) == sent and time.monotonic() < end:
            time.sleep(0.05)
    finally:
        os.kill(pid, signal.SIGCONT)
    return len(site.ledger.frames) > sent


@pytest.mark.parametrize("victim", SERVERS)
def test_a_server_process_that_hangs_loses_nothing(site, victim):
    """I1: what a stopped process did not take waits at the broker and on devices until it goes on."""
    (pid,) = [child.process.pid for child in site.supervisor.children if child.name == victim]
    until(lambda: hangs_while_an_update_comes(site, pid), "a device sends an update to the one that hangs")
    run_until(site, until(site.job, "the API answers")["version"] + 2)

    assert finish(site) >= 12


def test_a_server_ends_within_its_time_even_when_a_process_hangs(site):
    """SIGTERM is not held up: who does not end when asked is killed, and nothing is lost by that."""
    for pid in pids(site):
        os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    site.supervisor.stop()
    assert time.monotonic() - began < STOP_S
    assert [child.process.poll() is None for child in site.supervisor.children] == [False] * 3
