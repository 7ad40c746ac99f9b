"""A fleet of real MQTT connections under faults: nothing lost, nothing twice, nothing grows.

SOAK_SECONDS (180 in the test suite, 1800 with `make soak`), SOAK_DEVICES and SOAK_SEED say how long and hard.
"""

import random
import statistics
import sys
import time
from pathlib import Path

import pytest

from broker_bridge.broker import find_mosquitto
from tests.settings import number
from tests.soak.hostile import flood
from tests.soak.rig import Rig, until

SECONDS = number("SOAK_SECONDS", 180.0, float)
DEVICES = number("SOAK_DEVICES", 60)
SEED = number("SOAK_SEED", random.SystemRandom().randrange(1, 10**6))
CALM_S = min(
    max(2.0, SECONDS / 20), 12.0
)  # between faults and measuring: a process that just came back is small
FAULTS_S = 8.0  # of each round of faults, after which sizes are taken
RSS_GROWTH = 1.3  # of the later half of a long run over its first half; caches fill for some minutes
RSS_SPARE_MB = 40.0
HANDLES_SPARE = 12  # of one process: a connection or a file that happens to be open
DISK_SPARE_BYTES = (
    40_000_000  # SQLite's write-ahead log and thirty seconds of entries that wait to be trimmed
)


@pytest.fixture
def rig(tmp_path):
    """A server with devices."""
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
    sys.stdout.write(f"SOAK_SEED={SEED}\n")  # pytest shows it with a failure
    rig = Rig(tmp_path, devices=DEVICES, seed=SEED)
    yield rig
    rig.close()


@pytest.mark.timeout(SECONDS * 1.5 + 300)
def test_a_fleet_under_faults_loses_nothing_and_nothing_grows(rig):
    """I1, I2, I3, I6: kills and broken connections; the devices' own ledger is exact, memory, files and disk flat."""
    until(lambda: len(rig.swarm.verdicts) > DEVICES, "each device has had its turn")
    sizes, deadline = [], time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        rig.disturb(min(FAULTS_S, SECONDS / 4), (0.5, 1.5))
        until(rig.healthy, "the server is back")
        time.sleep(CALM_S)
        sizes.append(_sizes(rig))
    rig.settle()
    rig.close()

    figures = rig.audit()
    assert figures["accepted"] > 2 * DEVICES
    assert sum(figures["kills"].values()) > SECONDS / 4
    sys.stdout.write(f"{figures}\n{sizes[0]}\n{sizes[-1]}\n")
    _assert_flat(sizes)


def test_hostile_messages_change_nothing_but_the_counters(rig):
    """I6, I11: on every topic; each is refused and counted, no version is made, no process ends."""
    until(lambda: (f := rig.facts()) and f["version"] >= 2, "two versions")
    rig.swarm.ending = True
    until(lambda: all(d.settled() for d in rig.swarm.devices) and not rig.facts()["buffered"], "quiet", 90)
    versions, pids = rig.api.job("soak").versions(), rig.pids()

    counted = flood(rig, 2000, SEED)

    assert (counted["refused"], counted["accepted"]) == (2000, 0)
    assert rig.api.job("soak").versions() == versions
    assert rig.pids() == pids


def _sizes(rig):
    """Resident MB and open files of each process, and bytes on the disk."""
    found = {"disk": sum(_bytes(path) for path in rig.directory.rglob("*"))}
    for part, pid in rig.pids().items():
        found[f"{part} MB"] = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 1e6
        found[f"{part} files"] = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return found


def _bytes(path):
    """Of a file, but for logs, which have a bound of their own, and SQLite's write-ahead log, which comes and goes."""
    if path.suffix in {".log", ".old"} or path.name.endswith(("-wal", "-shm")):
        return 0
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:  # it was a temporary one
        return 0


def _assert_flat(sizes):
    """The median of the later half is no more than that of the first half and a fixed rest, by kind."""
    half = len(sizes) // 2
    assert half, "too short to compare"
    for name in sizes[0]:
        first, later = (statistics.median(s[name] for s in part) for part in (sizes[:half], sizes[half:]))
        if name == "disk":
            assert later <= first + DISK_SPARE_BYTES, f"{name}: {first} to {later}"
        elif name.endswith("files"):
            assert later <= first + HANDLES_SPARE, f"{name}: {first} to {later}"
        else:
            assert later <= RSS_GROWTH * first + RSS_SPARE_MB, f"{name}: {first} to {later}"
