"""Networks, clocks and processes that fail one after another, from a seed that a failure prints."""

import functools
import itertools
import random
import sys
import time

import pytest

from broker_bridge.broker import find_mosquitto
from tests.chaos.conftest import until
from tests.chaos.faults import DAY_S, FAKETIME, FaultyFleet, Storm, settled
from tests.chaos.test_kill import DEVICES, finish
from tests.proxy import Proxy, faults
from tests.settings import number

SEED = number("CHAOS_SEED", random.SystemRandom().randrange(1, 2**31))
FAULTS = number("CHAOS_FAULTS", 15)  # of each storm; `make chaos-long` has many more
SETTLE_S = 120.0  # deadline: a hung connection is noticed after some seconds, and what was lost sent again
RATE = 2_000  # bytes a second
LATENCY_S = 0.15  # one way
MEAN_BYTES = 12_000  # through a connection until it is cut: within the bundle, a model or an update
HANGS = 6  # of a side's connections: each costs some ten seconds until it is noticed, so their number sets the deadline
KIND = "mosquitto" if find_mosquitto() else "iotcore"


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Makes a fleet with faults, and ends it."""
    made = []

    def build(kind=KIND, **options):
        made.append(FaultyFleet(tmp_path, kind, monkeypatch, **options))
        made[-1].start()
        return made[-1]

    sys.stdout.write(f"CHAOS_SEED={SEED}\n")  # shown with a failure
    yield build
    for fleet in made:
        fleet.close()


def work(fleet, bundle, devices=DEVICES, **fields):
    """Start a job and the devices."""
    fleet.start_job(bundle, **fields)
    for name in devices:
        fleet.start_device(name)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["cut", "hang"])
def test_connections_that_break_in_the_middle_lose_nothing(make, bundle, kind):
    """I1, R-036: TCP is cut in packets, or half open, of devices and bridge alike: each update is folded exactly once."""
    struck = HANGS if kind == "hang" else None
    plans = [itertools.islice(faults(SEED + n, MEAN_BYTES, (kind,)), struck) for n in range(2)]
    fleet = make(line=functools.partial(Proxy, plan=plans[0]), trunk=functools.partial(Proxy, plan=plans[1]))
    work(fleet, bundle)
    settled(fleet, 2, SETTLE_S)
    of_devices, of_bridge = (5, 3) if kind == "cut" else (2, 1)
    until(
        lambda: (
            fleet.tend() and len(fleet.line.struck) >= of_devices and len(fleet.trunk.struck) >= of_bridge
        ),
        "connections broke",
        SETTLE_S,
    )
    settled(fleet, 2, SETTLE_S)
    fleet.line.heal()
    fleet.trunk.heal()
    fleet.line.cut()  # what hangs would be noticed, too, only later
    fleet.trunk.cut()

    assert finish(fleet) >= 9


@pytest.mark.timeout(300)
def test_a_thin_and_late_network_carries_everything(make, bundle):
    """I1: with 2 kB/s and 300 ms there and back, for devices and bridge, a job goes on and loses nothing."""
    thin = functools.partial(Proxy, rate=RATE, down_rate=RATE, latency_s=LATENCY_S)
    fleet = make(line=thin, trunk=thin, short=False)
    work(fleet, bundle, DEVICES[:1], buffer_size=1)
    settled(fleet, 2, SETTLE_S)

    assert finish(fleet, DEVICES[:1]) >= 2


@pytest.mark.skipif(not FAKETIME, reason="libfaketime is not installed")
@pytest.mark.timeout(300)
def test_clocks_that_are_set_by_a_day_hold_nothing_up(make, bundle):
    """I1: while the clocks of server and devices jump a day ahead and back, places are given, and nothing is lost."""
    fleet = make(clocks=True)
    work(fleet, bundle, concurrency=3, lease_s=10)
    settled(fleet, 1, SETTLE_S)
    for side, shift in (
        ("server", DAY_S),
        ("devices", -DAY_S),
        ("server", -DAY_S),
        ("devices", DAY_S),
        ("server", 0),
    ):
        fleet.clocks[side].shift(shift)
        settled(fleet, 1, SETTLE_S)
        if side == "server":
            at = fleet.job()["version"]
            assert abs(fleet.api.job("waves").versions()[at]["at"] - (time.time() + shift)) < DAY_S / 2
    fleet.kill_device("dev-a")  # holding a place, perhaps, from a clock of before
    fleet.start_device("dev-a")
    fleet.kill_child("aggregator")
    settled(fleet, 1, SETTLE_S)
    assert fleet.job()["rejected"] == {}

    assert finish(fleet) >= 15


@pytest.mark.timeout(120 + 30 * FAULTS)
@pytest.mark.parametrize("kind", ["mosquitto", "iotcore"])
def test_a_storm_of_faults_loses_and_repeats_nothing(make, bundle, kind):
    """I1, I2, I3, I4: kills, hangs, broken lines, lost brokers, set clocks and duplicates: the ledger is exact."""
    if kind == "mosquitto" and find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
    if kind == "iotcore":
        pytest.importorskip("iotcore", reason="iotcore comes with the extra [server]")
    plans = [faults(SEED + n, 10 * MEAN_BYTES, ("cut",)) for n in range(2)]
    fleet = make(
        kind,
        line=functools.partial(Proxy, plan=plans[0]),
        trunk=functools.partial(Proxy, plan=plans[1]),
        clocks=bool(FAKETIME),
    )
    work(fleet, bundle)
    settled(fleet, 1, SETTLE_S)
    storm = Storm(fleet, SEED)
    try:
        for number in range(FAULTS):
            storm.strike()
            if number % 20 == 19:
                settled(fleet, 1, SETTLE_S)
        fleet.line.heal()
        fleet.trunk.heal()
        fleet.line.cut()
        fleet.trunk.cut()
        settled(fleet, 3, SETTLE_S)
    finally:
        sys.stdout.write(f"faults: {', '.join(storm.log)}\n")
        storm.close()

    assert finish(fleet) >= 9
