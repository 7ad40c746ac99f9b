"""The session and deltas handed out: what is listened to, trained from, and done when they do not fit."""

import pytest
from msgspec.structs import replace

from edge_client import events as ev
from edge_client.chain import Delta
from edge_client.job import Phase
from edge_client.trainer_protocol import Failed
from edge_client.wire.messages import BlobRef, Receipt
from tests.unit.edge_client.driver import Driver, stored
from tests.unit.edge_client.offers import BUNDLE, MODEL, TRAINED, assignment


def seen(version, base=None):
    """The delta to a version, by default from the one before."""
    start = version - 1 if base is None else base
    return ev.DeltaSeen("job", Delta(start, version, f"{version:016x}", f"{version:064x}", 9), b"frame")


def following(ask=1, **changes):
    return replace(assignment(ask), follow=True, **changes)


def of(actions, kind):
    return [a for a in actions if isinstance(a, kind)]


@pytest.fixture
def drive():
    """A session whose job trains from version 3 and follows."""
    made = Driver()
    made.to(Phase.ASKING)
    made(ev.Assigned(following()))
    return made


def train(drive):
    """What is trained once everything is pulled."""
    drive(ev.Pulled(BUNDLE.digest))
    (action,) = of(drive(ev.Pulled(MODEL.digest)), ev.Train)
    return action


def upload(drive, version=3, ask=2):
    """Train, upload and have it accepted; the next ask."""
    drive(ev.Answered("job", ask - 1, TRAINED))
    rows = stored(ask=ask)
    drive(ev.Stored("job", rows.rows, version, ask))
    drive(ev.ReceiptSeen(Receipt(str(rows.rows[0].uid), "accepted")))
    return drive.asks()[0]


def test_a_device_listens_while_an_assignment_asks_for_it():
    """It subscribes with the assignment, again on a new connection, and no more when told so or when the job ends."""
    drive = Driver()
    drive.to(Phase.ASKING)
    assert of(drive(ev.Assigned(following())), ev.Follow) == [ev.Follow("job", yes=True)]
    drive(ev.Disconnected())
    assert of(drive(ev.Connected()), ev.Follow) == [ev.Follow("job", yes=True)]
    train(drive)
    assert upload(drive).holds == 3
    assert of(drive(ev.Assigned(assignment(2))), ev.Follow) == [ev.Follow("job", yes=False)]
    drive(ev.OfferWithdrawn("job"))
    assert of(drive.actions, ev.Follow) == []


def test_a_version_that_comes_before_training_is_trained_from(drive):
    """Deltas that arrive while blobs are pulled make the base newer than the assignment's."""
    (kept,) = of(drive(seen(4)), ev.KeepDelta)
    assert (kept.delta.version, kept.data) == (4, b"frame")
    action = train(drive)
    assert action.frames == (MODEL.digest, f"{4:064x}")
    assert (action.version, action.version_hash) == (4, f"{4:016x}")
    drive(ev.Answered("job", 1, TRAINED))
    (store,) = of(drive.actions, ev.StoreUpdate)
    assert store.version == 4


def test_versions_that_come_during_training_need_no_pull(drive):
    """The next ask holds the newest version, and an assignment of it pulls nothing but the bundle."""
    train(drive)
    drive(seen(4))
    drive(seen(5))
    assert upload(drive).holds == 5
    answer = following(2, version=5, version_hash=f"{5:016x}", model=())
    assert [a.blob for a in of(drive(ev.Assigned(answer)), ev.Pull)] == [BUNDLE]
    (action,) = of(drive(ev.Pulled(BUNDLE.digest)), ev.Train)
    assert (action.version, action.frames) == (5, (f"{4:064x}", f"{5:064x}"))


def test_a_version_that_came_after_the_ask_makes_its_blobs_needless(drive):
    """The server's way starts at the version the ask named; what came meanwhile by itself is not pulled."""
    train(drive)
    assert upload(drive).holds == 3
    drive(seen(4))
    answer = following(2, version=4, version_hash=f"{4:016x}")
    assert [a.blob for a in of(drive(ev.Assigned(answer)), ev.Pull)] == [BUNDLE]
    (action,) = of(drive(ev.Pulled(BUNDLE.digest)), ev.Train)
    assert (action.version, action.frames) == (4, (f"{4:064x}",))


def test_the_blobs_of_an_assignment_follow_the_deltas_up_to_the_ask(drive):
    """Where the deltas end before the assigned version, its blobs go on from the version the ask named."""
    train(drive)
    drive(seen(4))
    assert upload(drive).holds == 4
    pulled = BlobRef("d" * 64, 10)
    drive(ev.Assigned(following(2, version=9, version_hash="99" * 8, model=(pulled,))))
    drive(ev.Pulled(BUNDLE.digest))
    (action,) = of(drive(ev.Pulled(pulled.digest)), ev.Train)
    assert (action.version, action.version_hash) == (9, "99" * 8)
    assert action.frames == (f"{4:064x}", pulled.digest)


def test_an_answer_to_an_ask_of_before_a_restart_is_not_taken():
    """Deltas not applied yet are lost in a restart; an assignment without a way from the workspace is ignored."""
    drive = Driver()
    drive.to(Phase.ASKING)
    assert drive(ev.Assigned(following(version=5, version_hash="55" * 8, model=()))) == []
    assert drive.phase() is Phase.ASKING


def test_an_unfitting_delta_ends_the_listening(drive):
    """R-006: duplicates are ignored; after a gap or a damaged delta nothing is listened to, and the rest is pulled."""
    assert drive(seen(3)) == []
    drive(seen(4))
    assert drive(seen(4)) == []
    assert of(drive(seen(6)), ev.Follow) == [ev.Follow("job", yes=False)]
    assert of(drive(seen(5)), ev.KeepDelta) == []
    assert train(drive).version == 4


def test_a_damaged_delta_ends_the_listening(drive):
    """What cannot be read counts as a gap."""
    assert of(drive(ev.DeltaSeen("job", None)), ev.Follow) == [ev.Follow("job", yes=False)]


def test_listening_ends_with_the_lease(drive):
    """A device that waits long for its turn catches up in one pull."""
    assert of(drive(seen(4), after=101.0), ev.Follow) == [ev.Follow("job", yes=False)]


@pytest.mark.parametrize("name", ["job", "ghost"])
def test_a_subscription_left_behind_is_given_up(name):
    """Deltas of a job that is not followed, or not known, are answered by unsubscribing."""
    drive = Driver()
    drive.to(Phase.PULLING)
    assert drive(replace_job(seen(4), name)) == [ev.Follow(name, yes=False)]


def replace_job(event, name):
    return ev.DeltaSeen(name, event.delta, event.data)


def test_forged_deltas_cost_a_participation_and_no_key_frame(drive):
    """Deltas that do not give their hash are dropped; the next ask holds what the workspace has, and pulls."""
    train(drive)
    drive(seen(4))
    assert upload(drive).holds == 4
    drive(ev.Assigned(following(2, version=4, version_hash=f"{4:016x}", model=())))
    drive(ev.Pulled(BUNDLE.digest))
    drive(ev.Answered("job", 2, Failed("resync", "the hash does not match")))
    assert of(drive.actions, ev.Follow) == [ev.Follow("job", yes=False)]
    drive(ev.Tick())
    assert [a.holds for a in drive.asks()] == [3]
    drive(ev.Assigned(assignment(drive.asks()[0].ask)))
    train(drive)
    drive(ev.Answered("job", drive.session._device.jobs["job"].ask, Failed("resync", "again")))
    drive(ev.Tick(), after=100.0)
    assert [a.holds for a in drive.asks()] == [None]


def test_deltas_on_disk_stay_as_long_as_they_may_be_needed(drive):
    """What is kept covers the deltas until they are applied, and a failed pull lets go of those it led to."""
    drive(seen(4))
    train(drive)
    drive(seen(5))
    drive(ev.Answered("job", 1, TRAINED))
    drive(ev.Stored("job", stored().rows, 4, 2))
    (kept,) = of(drive.actions, ev.KeepBlobs)
    assert f"{5:064x}" in kept.digests
    assert f"{4:064x}" not in kept.digests
