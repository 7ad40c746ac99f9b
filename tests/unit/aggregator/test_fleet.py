"""Counts that the fleet keeps, beside counting anew."""

import random
from collections import Counter

import msgspec
import pytest

from aggregator.fleet import DeviceRecord, Fleet
from edge_client.wire.messages import DeviceInfo, DeviceState, TaskStatus

DEVICES, JOBS = [f"dev-{n}" for n in range(6)], ["a", "b"]
STATES, DOING = ("ready", "disconnected", "lost"), ("asking", "training", "declined")


def happen(fleet, rng):
    """Something at random."""
    device, job, at = rng.choice(DEVICES), rng.choice(JOBS), rng.random()
    match rng.randrange(8):
        case 0 | 1 | 2:
            fleet.status(device, job, TaskStatus(rng.choice(DOING), rng.randrange(5), reason=f"R{at}"), at)
        case 3 | 4:
            fleet.state(device, DeviceState(rng.choice(STATES), rng.randrange(3), cohort=f"C-{at}"), at)
        case 5:
            fleet.reject(device, job, rng.choice(("norm", "stale")), at)
        case 6:
            fleet.info(device, DeviceInfo(f"Soft {at}", 1, "aarch64", "ort", ()), at)
        case _:
            rng.choice((lambda: fleet.forget(device), lambda: fleet.drop(job)))()


def counted(fleet):
    """All counts, from the records alone."""
    doing = {job: Counter() for job in JOBS}
    rejected = {job: Counter() for job in JOBS}
    for record in fleet.devices.values():
        for job, task in record.tasks.items():
            rejected[job].update(task.rejected)
            if task.status is not None and record.state == "ready":
                doing[job][task.status.state] += 1
    return Counter(record.state for record in fleet.devices.values()), doing, rejected


@pytest.mark.parametrize("seed", range(20))
def test_counts_are_those_of_the_records(seed):
    """After anything that happens, names, counts and texts are as counted anew, and as after a restart."""
    rng = random.Random(seed)
    fleet = Fleet()
    for _ in range(200):
        happen(fleet, rng)
        told = {name: fleet.text(record) for name, record in fleet.devices.items()}
        memo = msgspec.msgpack.encode(fleet.devices)
        again = Fleet(msgspec.msgpack.decode(memo, type=dict[str, DeviceRecord]))
        for one in (fleet, again):
            states, doing, rejected = counted(one)
            assert one.names == sorted(one.devices)
            assert one.states == states
            assert {job: one.tally(job).doing for job in JOBS} == doing
            assert {job: one.tally(job).rejected for job in JOBS} == rejected
            assert {name: one.text(record) for name, record in one.devices.items()} == told


def test_a_device_is_drawn_anew_when_a_job_of_its_goes():
    """What a table shows of a deleted job goes with it, from devices that never speak again, too."""
    fleet = Fleet()
    fleet.reject("dev-1", "a", "norm", 1.0)
    fleet.reject("dev-2", "b", "norm", 1.0)
    before = dict(fleet.touched)
    fleet.drop("a")
    assert fleet.touched["dev-1"] > before["dev-1"]
    assert fleet.touched["dev-2"] == before["dev-2"]


def test_a_search_text_is_what_the_device_says_now():
    """New words replace old ones."""
    fleet = Fleet()
    fleet.status("dev-1", "a", TaskStatus("declined", 1, reason="On Battery"), 1.0)
    assert "on battery" in fleet.text(fleet.devices["dev-1"])
    fleet.status("dev-1", "a", TaskStatus("asking", 2), 2.0)
    assert "battery" not in fleet.text(fleet.devices["dev-1"])
