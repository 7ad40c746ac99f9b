"""How fast devices are, when they are connected, and what is kept of them."""

import math

import numpy as np
import pytest

from aggregator.simulate import availability as times
from aggregator.simulate import traces
from aggregator.simulate.config import (
    Churn,
    Diurnal,
    FleetSection,
    HalfNormal,
    LogNormal,
    Malicious,
    SpeedClasses,
    Trace,
)
from aggregator.simulate.devices import Devices, Pool
from aggregator.simulate.errors import SimulationError
from aggregator.simulate.following import Followers, Newest
from aggregator.simulate.residuals import Residuals
from edge_client.wire.messages import Assignment, BlobRef, TrainingPlan

COUNT = 4000


def factors(**fields):
    return Devices(FleetSection(**fields), COUNT, 0).factor


def test_speeds_follow_their_distribution():
    """Median, mean and shares are those of each kind."""
    assert np.median(factors(speed=LogNormal(1.0))) == pytest.approx(1.0, rel=0.1)
    assert factors(speed=HalfNormal(1.0)).mean() == pytest.approx(math.sqrt(2 / math.pi), rel=0.1)
    kinds = factors(speed=SpeedClasses((1.0, 2.0, 4.0), (0.5, 0.25, 0.25)))
    assert np.mean(kinds == 1) == pytest.approx(0.5, abs=0.05)
    assert np.mean(kinds == 4) == pytest.approx(0.25, abs=0.05)
    slow = factors(speed=LogNormal(0.0), slow_share=0.9, slow_factor=10.0)
    assert (slow == 10).sum() == 0.9 * COUNT
    assert (slow == 1).sum() == 0.1 * COUNT


def test_traces_give_measured_speeds_and_links(tmp_path):
    """Each device takes a row of the file."""
    (tmp_path / "speed.csv").write_text("device,factor\na,0.5\nb,8\n")
    (tmp_path / "link.csv").write_text("up_bytes_s,down_bytes_s,latency_s\n1000,2000,0.5\n10,20,3\n")
    section = FleetSection(speed=Trace(str(tmp_path / "speed.csv")), link=Trace(str(tmp_path / "link.csv")))
    devices = Devices(section, COUNT, 0)

    assert set(devices.factor.tolist()) == {0.5, 8.0}
    assert {devices.link(d) for d in range(COUNT)} == {(1000.0, 2000.0, 0.5), (10.0, 20.0, 3.0)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("speed\n1\n", "no column 'factor'"),
        ("factor\nfast\n", "line 2: factor is 'fast'"),
        ("factor\n-1\n", "line 2"),
        ("factor\n", "holds no rows"),
    ],
)
def test_a_trace_that_cannot_be_used_is_named(tmp_path, text, words):
    """File and line are in the message."""
    (tmp_path / "t.csv").write_text(text)

    with pytest.raises(SimulationError, match=rf"t\.csv.*{words}"):
        factors(speed=Trace(str(tmp_path / "t.csv")))


def test_a_trace_that_is_missing_is_named(tmp_path):
    """The message says which file, and what it is to be."""
    with pytest.raises(SimulationError, match=r"t\.csv: cannot be read: No such file or directory; .*CSV"):
        traces.digest(str(tmp_path / "t.csv"))


def test_the_malicious_are_a_share_of_the_devices():
    """As many as asked, and the same for a seed."""
    section = FleetSection(malicious=Malicious(0.2))

    assert Devices(section, 50, 1).malicious.sum() == 10
    assert (Devices(section, 50, 1).malicious == Devices(section, 50, 1).malicious).all()


@pytest.mark.parametrize(
    "kind", [Churn(60.0, 120.0), Diurnal(1 / 3, 1.0, 180.0)], ids=lambda k: type(k).__name__
)
def test_devices_are_connected_for_their_share_of_the_time(kind):
    """Spans follow each other without a gap, and a third of the time of all devices is online."""
    found = times.availability(FleetSection(availability=kind), 30, 0)
    online, horizon = 0.0, 5000.0
    for device in range(30):
        now = 0.0
        while now < horizon:
            connected, until = found.span(device, now)
            assert until > now
            online += connected * (min(until, horizon) - now)
            now = until

    assert online / (30 * horizon) == pytest.approx(1 / 3, abs=0.04)


def test_a_transfer_goes_on_only_while_connected():
    """With settled spans the answers stay the same, and a transfer's time online is its length."""
    found = times.availability(FleetSection(availability=Churn(10.0, 10.0)), 1, 3)
    end = times.served(found, 0, 5.0, 100.0)
    online, now = 0.0, 5.0
    while now < end:
        connected, until = found.span(0, now)
        online += connected * (min(until, end) - now)
        now = until
    found.settle(0, 400.0)

    assert online == pytest.approx(100.0)
    assert end > 105.0
    assert found.span(0, 400.0) == times.availability(
        FleetSection(availability=Churn(10.0, 10.0)), 1, 3
    ).span(0, 400.0)


def test_a_pool_gives_each_idle_device_once():
    """What was added comes out, in any order."""
    pool = Pool(10, np.random.default_rng(0))
    for device in range(10):
        pool.add(device)
    taken = [pool.take() for _ in range(10)]

    assert sorted(taken) == list(range(10))
    assert taken != list(range(10))
    assert len(pool) == 0


def test_residuals_take_no_disk_until_there_are_any(tmp_path):
    """A million devices cost nothing; the file goes when it is done with."""
    with Residuals(tmp_path / "r", 1_000_000, 1000) as residuals:
        assert residuals.get(7) is None
        residuals.put(999_999, b"x" * 1000)
        residuals.put(3, b"y" * 1000)
        residuals.put(3, b"z" * 1000)

        assert residuals.get(999_999) == b"x" * 1000
        assert residuals.get(3) == b"z" * 1000
        assert residuals.get(2) is None
        assert (tmp_path / "r").stat().st_blocks * 512 < 100_000
    assert not (tmp_path / "r").exists()


def assignment(version, *, follow):
    plan = TrainingPlan(1, 1, 0.1, 1.0, 1.0)
    return Assignment(
        "job", 1, version, f"{version:016x}", BlobRef("0" * 64, 1), (), plan, 60.0, follow=follow
    )


def delta(version):
    return Newest(version, f"{version:016x}", (), 0.0, follows=False)


def test_a_device_that_follows_builds_on_what_it_hears():
    """Deltas that go on from the top are kept; the next assignment within their reach needs no pull."""
    followers = Followers()

    assert followers.heed(1, assignment(5, follow=True), (), 0.0) == (True, True)
    assert followers.heard(1, delta(6), 1.0)
    assert followers.heard(1, delta(6), 1.0), "the same again means nothing"
    assert followers.get(1).version == 6
    assert followers.heed(1, assignment(6, follow=True), (), 2.0) == (False, False)
    assert followers.listening() == [1]


@pytest.mark.parametrize(("version", "now"), [(7, 1.0), (6, 61.0)])
def test_a_gap_or_the_leases_end_stops_the_listening(version, now):
    """What cannot be mended is pulled at the next assignment."""
    followers = Followers()
    followers.heed(1, assignment(5, follow=True), (), 0.0)

    assert not followers.heard(1, delta(version), now)
    assert followers.listening() == []
    assert followers.get(1).version == 5
    followers.trained(1)
    assert followers.get(1) is None


def test_who_is_not_asked_to_follow_is_not_remembered():
    """An idle device without deltas costs nothing."""
    followers = Followers()

    assert followers.heed(1, assignment(5, follow=False), (), 0.0) == (True, False)
    assert followers.get(1) is None
    assert followers.heard(1, delta(6), 0.0)
