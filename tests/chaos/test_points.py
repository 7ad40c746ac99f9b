"""kill -9 at the points where it would hurt most: each update is folded exactly once all the same."""

import itertools
import json
import os
from pathlib import Path

import pytest

from broker_bridge.broker import find_mosquitto
from tests.chaos.conftest import DENSE, SMALL_PACKET_BYTES, Fleet, until
from tests.chaos.test_kill import DEVICES, finish

CRASH = Path(__file__).parent / "crash"
ROOT = Path(__file__).parents[2]
UPDATE = (3, "1")  # append(self, partition, uid, kind, …) of an update
HEAD = (1, "version/waves")
SQLITE = "broker_bridge.ports.sqlite"

# name: process, target, before or after its call, which call, which argument
POINTS = {
    "before the log's commit": ("broker_bridge", f"{SQLITE}:SqliteLog.append", "before", 3, UPDATE),
    "between log commit and receipt": ("broker_bridge", f"{SQLITE}:SqliteLog.append", "after", 3, UPDATE),
    "between receipt and PUBACK": ("broker_bridge", "broker_bridge.uplink:Uplink._answer", "after", 3, None),
    "before the first byte leaves": (
        "edge_client",
        "edge_client.store:Store.mark_published",
        "before",
        2,
        None,
    ),
    "between mark and first byte": (
        "edge_client",
        "edge_client.store:Store.mark_published",
        "after",
        2,
        None,
    ),
    "between PUBACK and receipt": ("edge_client", "edge_client.uplink:Uplink.acknowledged", "after", 2, None),
    "between receipt and outbox delete": ("edge_client", "edge_client.store:Store.settle", "before", 2, None),
    "after the outbox delete": ("edge_client", "edge_client.store:Store.settle", "after", 2, None),
    "before a training is stored": ("edge_client", "edge_client.store:Store.add_update", "before", 2, None),
    "after a training is stored": ("edge_client", "edge_client.store:Store.add_update", "after", 2, None),
    "during a key-frame's download": ("edge_client", "edge_client.pull:Puller.chunk", "before", 2, None),
    "before a blob has its name": ("edge_client", "edge_client.pull:Puller._name", "before", 1, None),
    "between two blobs of a version": (
        "aggregator",
        "broker_bridge.ports.files:FileBlobs.put",
        "after",
        12,
        None,
    ),
    "between blobs and manifest": ("aggregator", "aggregator.jobstore:put_manifest", "before", 3, None),
    "between manifest and head": ("aggregator", "aggregator.jobstore:put_manifest", "after", 3, None),
    "between head and notice": ("aggregator", f"{SQLITE}:SqliteHeads.swing", "after", 3, HEAD),
    "between memo's blob and its head": (
        "aggregator",
        f"{SQLITE}:SqliteHeads.swing",
        "before",
        2,
        (1, "memo"),
    ),
}

CHUNK_POINTS = {  # of updates in several packets
    "after a chunk of an update": (
        "edge_client",
        "edge_client.uplink:Uplink._publish_chunk",
        "after",
        2,
        None,
    ),
    "after a chunk is buffered": (
        "broker_bridge",
        "broker_bridge.reassemble:Reassembly.add",
        "after",
        5,
        None,
    ),
}


def rounds(points):
    """The points, one of each process at a time: so many that each is in one, the others beside it."""
    by_process = {}
    for name, point in points.items():
        by_process.setdefault(point[0], []).append(name)
    return ["; ".join(filter(None, names)) for names in itertools.zip_longest(*by_process.values())]


@pytest.fixture
def site(tmp_path, monkeypatch, request):
    """A server and devices of which one process of each kind will die at a named point; the fleet and the markers."""
    points = []
    for name in request.param.split("; "):
        process, target, when, nth, only = (POINTS | CHUNK_POINTS)[name]
        marker = tmp_path / f"struck {name.replace('/', ' ')}"
        points.append(
            {
                "process": process,
                "target": target,
                "when": when,
                "nth": nth,
                "only": only,
                "marker": str(marker),
            }
        )
    monkeypatch.setenv("CHAOS_POINTS", json.dumps(points))
    monkeypatch.setenv("PYTHONPATH", f"{CRASH}{os.pathsep}{ROOT}")
    if set(request.param.split("; ")) & CHUNK_POINTS.keys():
        monkeypatch.setattr("broker_bridge.broker.PACKET_BYTES_MAX", SMALL_PACKET_BYTES)
    fleet = Fleet(tmp_path, "mosquitto" if find_mosquitto() else "iotcore")
    try:
        fleet.start()
        yield fleet, [Path(point["marker"]) for point in points]
    finally:
        fleet.close()


@pytest.mark.parametrize("site", rounds(POINTS), indirect=True)
def test_a_crash_at_a_named_point_loses_and_repeats_nothing(site, bundle):
    """I1, I3, I4: whichever process is killed wherever, all go on, and the independent ledger agrees with the fold."""
    fleet, markers = site
    fleet.start_job(bundle)
    go_on(fleet, markers)

    assert finish(fleet) >= 9


@pytest.mark.skipif(find_mosquitto() is None, reason="iotcore states no Maximum Packet Size")
@pytest.mark.parametrize("site", rounds(CHUNK_POINTS), indirect=True)
def test_a_crash_between_the_chunks_of_an_update_loses_and_repeats_nothing(site, large_bundle):
    """I1, I4, I9: a device that dies after a chunk sends the update again, and a bridge asks for those it had buffered."""
    fleet, markers = site
    fleet.start_job(large_bundle, training=DENSE)
    go_on(fleet, markers)
    assert fleet.ledger.chunks

    assert finish(fleet) >= 9


def go_on(fleet, markers):
    """Start the devices, and wait until each point was reached and three more versions were made."""
    for name in DEVICES:
        fleet.start_device(name)
    until(
        lambda: fleet.tend() and all(marker.exists() for marker in markers),
        "each point was reached",
    )
    until(lambda: fleet.tend() and fleet.healthy(), "the API answers")
    job = until(lambda: fleet.tend() and fleet.job(), "the job is there")
    until(
        lambda: fleet.tend() and (j := fleet.job()) and j["version"] >= job["version"] + 3,
        "three more versions",
    )
