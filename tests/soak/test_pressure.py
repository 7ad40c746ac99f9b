"""What stands still behind the bridge is felt by devices, which wait, and not by the bridge's memory."""

import os
import signal
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from broker_bridge.broker import find_mosquitto
from tests.soak.rig import Rig, until

DEVICES = 80
STILL_S = 5.0
GRACE_S = 1.0  # for what was on its way
GROWTH_MB = 16.0  # what the allocator may do; 80 updates are 40 kB
PACE_S = 3.0


@pytest.fixture
def rig(tmp_path):
    """A server with devices at work, which start within PACE_S of their assignments."""
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
    rig = Rig(tmp_path, devices=DEVICES, seed=7, selection={"pace_s": PACE_S})
    try:
        until(lambda: len(rig.swarm.verdicts) > DEVICES, "each device has had its turn")
        yield rig
    finally:
        rig.close()


def test_a_disk_that_stands_still_makes_devices_wait(rig):
    """I1, I6: while nothing can be written no receipt is given and the bridge keeps its size; then all goes on."""
    before = _resident_mb(rig, "broker_bridge")
    with closing(sqlite3.connect(rig.directory / "server" / "fleet.db", isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        time.sleep(GRACE_S)
        receipts = rig.swarm.receipts
        time.sleep(STILL_S)
        during = rig.swarm.receipts - receipts
        grown = _resident_mb(rig, "broker_bridge") - before
        db.execute("ROLLBACK")
    until(lambda: rig.swarm.receipts > receipts + DEVICES, "receipts again")

    assert during == 0
    assert grown < GROWTH_MB
    _assert_exact(rig)


def test_devices_come_back_spread_when_a_stopped_aggregator_goes_on(rig):
    """I1, I6: without an aggregator nobody is assigned and nothing piles up; assignments then spread the updates."""
    before, aggregator = _resident_mb(rig, "broker_bridge"), rig.pids()["aggregator"]
    os.kill(aggregator, signal.SIGSTOP)
    try:
        time.sleep(PACE_S + GRACE_S)  # who was assigned trains and sends
        receipts = rig.swarm.receipts
        time.sleep(STILL_S)
        during = rig.swarm.receipts - receipts
        grown = _resident_mb(rig, "broker_bridge") - before
    finally:
        os.kill(aggregator, signal.SIGCONT)
    began = time.monotonic()
    until(lambda: len(_first_sent(rig, began)) == DEVICES, "each device has had a turn")
    arrivals = _first_sent(rig, began).values()
    busiest = max(sum(start <= at < start + 1 for at in arrivals) for start in arrivals)
    sys.stdout.write(
        f"{busiest} of {DEVICES} devices in the busiest second after {STILL_S:g} s, {grown:.1f} MB\n"
    )

    assert during == 0
    assert grown < GROWTH_MB
    assert busiest < 0.6 * DEVICES, f"{busiest} of {DEVICES} devices in one second"
    _assert_exact(rig)


def _first_sent(rig, began):
    """When each device first sent an update after `began`."""
    first = {}
    for at, device in list(rig.swarm.sent):
        if at > began:
            first.setdefault(device, at)
    return first


def _resident_mb(rig, part):
    return int(Path(f"/proc/{rig.pids()[part]}/statm").read_text().split()[1]) * 4096 / 1e6


def _assert_exact(rig):
    rig.settle()
    rig.close()
    assert rig.audit()["lost"] == 0
