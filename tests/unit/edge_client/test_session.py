"""The session's table: each rule of a job's life."""

import pytest
from msgspec.structs import replace

from edge_client import events as ev
from edge_client import outgoing, phases
from edge_client.job import Phase
from edge_client.phases import TABLE
from edge_client.trainer_protocol import Failed, Progress
from edge_client.wire.messages import (
    BlobRef,
    DataSchema,
    JobEnd,
    Receipt,
)
from tests.unit.edge_client.driver import Driver, stored
from tests.unit.edge_client.offers import BUNDLE, INFO, MODEL, TRAINED, assignment, offer


@pytest.fixture
def drive():
    """A fresh session."""
    return Driver()


def kinds(actions):
    """Types of actions."""
    return [type(a) for a in actions]


def test_whole_life_of_a_participation(drive):
    """Offer, ask, pull, train, upload, receipt, and the next ask says what is held now."""
    drive.to(Phase.ASKING)
    assert drive.asks()[0].ask == 1
    assert kinds(drive(ev.Assigned(assignment(1)))).count(ev.Pull) == 2
    drive(ev.Pulled(BUNDLE.digest))
    assert ev.Train in kinds(drive(ev.Pulled(MODEL.digest)))
    assert ev.StoreUpdate in kinds(drive(ev.Answered("job", 1, TRAINED)))
    assert kinds(drive(stored())).count(ev.Send) == 2
    uid = stored().rows[0].uid
    assert ev.Settle in kinds(drive(ev.ReceiptSeen(Receipt(str(uid), "accepted"))))
    assert [(a.ask, a.holds) for a in drive.asks()] == [(2, 3)]


def test_unanswered_ask_is_repeated_under_its_number(drive):
    """An ask without an answer is repeated after retry_s with jitter, same number."""
    drive.to(Phase.ASKING)
    assert drive(ev.Tick(), after=9.9) == []
    drive(ev.Tick(), after=2.2)
    assert [a.ask for a in drive.asks()] == [1]


def test_answer_to_an_old_ask_is_ignored(drive):
    """An assignment whose ask is not the outstanding one changes nothing."""
    drive.to(Phase.ASKING)
    assert drive(ev.Assigned(assignment(7))) == []
    assert drive.phase() is Phase.ASKING


def test_assignment_waits_for_its_not_before(drive):
    """`not_before_s` is honoured: nothing is pulled before."""
    drive.to(Phase.ASKING)
    assert drive(ev.Assigned(assignment(1, not_before=50.0))) == []
    assert drive.session.wake == drive.now + 50.0
    assert ev.Pull in kinds(drive(ev.Tick(), after=50.0))


def test_pull_is_given_up_long_after_the_lease(drive):
    """A pull far past its lease is given up and a new ask made; within the slack it goes on."""
    drive.to(Phase.PULLING)
    assert drive(ev.Tick(), after=120.0) == []
    drive(ev.Tick(), after=31.0)
    assert [a.ask for a in drive.asks()] == [2]


def test_training_outlives_its_lease(drive):
    """A training goes on past its lease: a late update is judged by its staleness alone."""
    drive.to(Phase.TRAINING)
    assert drive(ev.Tick(), after=1000.0) == []
    assert ev.StoreUpdate in kinds(drive(ev.Answered("job", 1, TRAINED)))


def test_one_training_at_a_time(drive):
    """A second job that is ready waits for the trainer, and gets it when the first has finished."""
    drive.to(Phase.TRAINING)
    drive(ev.OfferSeen(offer("other")))
    ask = drive.asks()[0].ask
    drive(ev.Assigned(assignment(ask, "other")))
    drive(ev.Pulled(BUNDLE.digest))
    drive(ev.Pulled(MODEL.digest))
    assert drive.phase("other") is Phase.READY
    assert ev.Train in kinds(drive(stored(ask=9)))
    assert drive.phase("other") is Phase.TRAINING


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (DataSchema((2, 16), 3, ("channel", "time")), "axis 1 (time) has 8 values, the job wants 16"),
        (DataSchema((2, 8), 4), "labels have 3 classes, the job wants 4"),
        (DataSchema((16,), 3), "samples have 2 axes [2, 8], the job wants 1 [16]"),
        (DataSchema((2, 8), 3, ("time", "channel")), "axes are channel, time, the job wants time, channel"),
    ],
)
def test_data_that_does_not_fit_is_declined_with_its_reason(drive, data, why):
    """I7: a mismatch is declined, its reason published, and nothing asked for that offer again."""
    drive(ev.Connected())
    drive(ev.OfferSeen(offer(data=data)))
    drive(ev.DataKnown("demo", INFO))
    assert drive.said() == [("declined", f"data set 'demo': {why}")]
    assert drive(ev.Tick(), after=1e6) == []
    assert drive(ev.OfferSeen(offer(data=data))) == []
    drive(ev.OfferSeen(offer()))
    assert len(drive.asks()) == 1


@pytest.mark.parametrize("code", sorted(phases.FATAL_CODES))
def test_failure_that_would_repeat_itself_declines_the_offer(drive, code):
    """A bundle or data set that cannot be trained on is not tried again; a bundle gone bad is not kept."""
    drive.to(Phase.TRAINING)
    assert ev.KeepBlobs(frozenset()) in drive(ev.Answered("job", 1, Failed(code, "why")))
    assert drive.said() == [("declined", "why")]
    assert drive(ev.Tick(), after=1e6) == []


def test_passing_failure_is_tried_again_with_growing_waits(drive):
    """A failed training is said, and asked for anew after waits that double."""
    drive.to(Phase.TRAINING)
    waits = []
    for ask in (1, 2, 3):
        drive(ev.TrainerDied("job", ask, "trainer ended by SIGKILL"))
        assert drive.said() == [("failed", "trainer ended by SIGKILL")]
        waits.append(drive.session.wake - drive.now)
        drive(ev.Tick(), after=waits[-1] + 0.01)
        assert [a.ask for a in drive.asks()] == [ask + 1]
        for event in (ev.Assigned(assignment(ask + 1)), ev.Pulled(BUNDLE.digest), ev.Pulled(MODEL.digest)):
            drive(event)
    assert 15 <= waits[0] <= 18 < waits[1] <= 36 < waits[2] <= 72


def test_a_trainer_without_room_is_tried_again_without_growing_waits(drive):
    """A full disk is no fault of the job: as soon as there is room it goes on."""
    drive.to(Phase.TRAINING)
    for ask in (1, 2, 3, 4):
        drive(ev.Answered("job", ask, Failed("storage", "no space")))
        assert drive.said() == [("failed", "no space")]
        wait = drive.session.wake - drive.now
        assert 15 <= wait <= 18
        drive(ev.Tick(), after=wait + 0.01)
        for event in (ev.Assigned(assignment(ask + 1)), ev.Pulled(BUNDLE.digest), ev.Pulled(MODEL.digest)):
            drive(event)


def test_what_was_said_is_said_again_with_the_reason_of_a_wait(drive):
    """While storage fails each job's status says why; the revision grows, so that the newest word counts."""
    drive.to(Phase.TRAINING)
    held, again = drive.session.restated("storage: full"), drive.session.restated()
    words = [(p.message.state, p.message.reason) for p in (*held, *again)]
    assert words == [("training", "storage: full"), ("training", "")]
    assert held[0].message.rev < again[0].message.rev


@pytest.mark.parametrize("who", ["trainer", "bridge"])
def test_resync_forgets_the_held_model(drive, who):
    """I5: when the bytes of the model differ, the next ask says that nothing is held."""
    drive.to(Phase.UPLOADING)
    uid = stored().rows[0].uid
    if who == "bridge":
        drive(ev.ReceiptSeen(Receipt(str(uid), "rejected", "resync")))
        assert [(a.ask, a.holds) for a in drive.asks()] == [(2, None)]
        return
    drive(ev.ReceiptSeen(Receipt(str(uid), "accepted")))
    for event in (ev.Assigned(assignment(2)), ev.Pulled(BUNDLE.digest), ev.Pulled(MODEL.digest)):
        drive(event)
    drive(ev.Answered("job", 2, Failed("resync", "hash")))
    drive(ev.Tick())
    assert [a.holds for a in drive.asks()] == [None]


def test_progress_is_published_at_most_once_a_second(drive):
    """Progress costs one small message a second at most, with a growing revision."""
    drive.to(Phase.TRAINING)
    said = [drive(ev.Answered("job", 1, Progress(i, 100, 1.0)), after=0.1) for i in range(40)]
    messages = [a.message for actions in said for a in actions]
    assert 3 <= len(messages) <= 4
    assert [m.rev for m in messages] == sorted({m.rev for m in messages})


def test_status_is_said_again_on_a_new_connection(drive):
    """What was said while the link was down is said again, and the ask repeated."""
    drive.to(Phase.ASKING)
    drive(ev.Disconnected())
    drive(ev.Connected())
    assert drive.said() == [("asking", "")]
    assert [a.ask for a in drive.asks()] == [1]


def test_end_stops_training_and_removes_everything(drive):
    """JobEnd stops the job's training, removes what is kept and says so; the name may be offered again."""
    drive.to(Phase.TRAINING)
    actions = kinds(drive(ev.JobEnded(JobEnd("job", "done"))))
    assert actions.index(ev.StopTrainer) < actions.index(ev.RemoveWorkspace)
    assert drive.said() == [("ended", "done")]
    assert drive(ev.OfferWithdrawn("job")) == []
    drive(ev.OfferSeen(offer()))
    assert len(drive.asks()) == 1


def test_offer_of_a_server_set_up_afresh_is_taken_up(drive):
    """A server that lost its state ends a job it does not know, and then offers the very same again."""
    drive.to(Phase.TRAINING)
    drive(ev.JobEnded(JobEnd("job", "this server knows no such job")))
    drive(ev.OfferSeen(offer()))
    assert [a.holds for a in drive.asks()] == [0]


@pytest.mark.parametrize(
    "phase", [Phase.ASKING, Phase.PULLING, Phase.TRAINING, Phase.UPLOADING], ids=lambda phase: phase.value
)
def test_another_bundle_under_a_name_is_another_job(drive, phase):
    """I5: what is held for one bundle is removed before another of its name is asked for; I4: after the verdict."""
    drive.to(phase)
    other = replace(offer(), bundle=BlobRef("d" * 64, 10))
    actions = drive(ev.OfferSeen(other))
    if phase is Phase.UPLOADING:
        assert ev.RemoveWorkspace not in kinds(actions)
        assert drive.phase() is Phase.ENDING
        uid = stored().rows[0].uid
        actions = drive(ev.ReceiptSeen(Receipt(str(uid), "rejected", "unknown_base")))
    removed = kinds(actions).index(ev.RemoveWorkspace)
    saved = next(i for i, a in enumerate(actions) if isinstance(a, ev.SaveJob) and a.row.offer == other)
    assert removed < saved
    assert [a.holds for a in drive.asks()] == [0]
    assert drive.phase() is Phase.ASKING


def test_another_data_set_that_is_not_declared_does_not_stop_the_daemon(drive):
    """I7: an offer changed to a data set this device has not is declined, also while the trainer was awaited."""
    drive.to(Phase.PULLING)
    drive(ev.OfferSeen(replace(offer(), dataset="secret")))
    assert ("declined", "no data set 'secret' is declared on this device") in drive.said()
    assert ev.Train not in kinds(drive(ev.Pulled(MODEL.digest)))


@pytest.mark.parametrize("withdrawn", [False, True])
def test_offer_seen_while_a_job_of_its_name_ends_waits_for_the_end(drive, withdrawn):
    """A job that begins anew while the old one awaits its verdict is taken up after it, unless withdrawn."""
    drive.to(Phase.UPLOADING)
    drive(ev.OfferWithdrawn("job"))
    drive(ev.OfferSeen(offer()))
    if withdrawn:
        drive(ev.OfferWithdrawn("job"))
    drive(ev.ReceiptSeen(Receipt(str(stored().rows[0].uid), "rejected", "job_ended")))
    assert drive.phase() is (None if withdrawn else Phase.ASKING)


def test_resync_again_and_again_waits_longer_each_time(drive):
    """A key-frame heals a resync at once; a server that disagrees with itself does not keep the device busy."""
    drive.to(Phase.UPLOADING)
    waits = []
    for ask in (2, 3, 4):
        update, evaluation = (row.uid for row in stored(seq=2 * ask - 3).rows)
        drive(ev.ReceiptSeen(Receipt(str(evaluation), "accepted")))
        drive(ev.ReceiptSeen(Receipt(str(update), "rejected", "resync")))
        waits.append(0.0 if drive.asks() else drive.session.wake - drive.now)
        drive(ev.Tick(), after=waits[-1] + 0.01)
        for event in (ev.Assigned(assignment(ask)), ev.Pulled(BUNDLE.digest), ev.Pulled(MODEL.digest)):
            drive(event)
        drive(ev.Answered("job", ask, TRAINED))
        drive(stored(seq=2 * ask - 1, ask=ask + 1))
    assert waits[0] == 0.0 < waits[1] < waits[2]


def test_slow_pull_goes_on_under_the_next_lease(drive):
    """What was pulled under an expired lease is kept until the next assignment says that it is not needed."""
    drive.to(Phase.PULLING)
    assert ev.KeepBlobs not in kinds(drive(ev.Tick(), after=151.0))
    kept = [a for a in drive(ev.Assigned(assignment(2))) if isinstance(a, ev.KeepBlobs)]
    assert kept == [ev.KeepBlobs(frozenset({BUNDLE.digest, MODEL.digest}))]


def test_end_of_an_unknown_job_is_confirmed(drive):
    """A job the device does not hold any more is confirmed as ended, so that the server can forget it."""
    drive(ev.Connected())
    drive(ev.JobEnded(JobEnd("other", "done")))
    assert drive.said() == [("ended", "done")]


def test_disconnect_ends_nothing(drive):
    """Losing the link is no end: training goes on."""
    drive.to(Phase.TRAINING)
    assert drive(ev.Disconnected()) == []
    assert drive.phase() is Phase.TRAINING


def test_published_update_waits_for_its_verdict_at_the_end(drive):
    """I4: an ended job with a published update is removed only when the verdict has come."""
    drive.to(Phase.UPLOADING)
    assert ev.RemoveWorkspace not in kinds(drive(ev.OfferWithdrawn("job")))
    uid = stored().rows[0].uid
    actions = kinds(drive(ev.ReceiptSeen(Receipt(str(uid), "rejected", "job_ended"))))
    assert actions.index(ev.Settle) < actions.index(ev.RemoveWorkspace)


def test_rows_are_sent_again_until_a_receipt_with_growing_waits(drive):
    """I1: only a receipt ends the sending; each wait without one is longer."""
    drive.to(Phase.UPLOADING)
    waits = []
    for _ in range(3):
        waits.append(drive.session.wake - drive.now)
        sends = drive(ev.Tick(), after=40.0 * 2 ** len(waits))
        assert ev.Send in kinds(sends)
    assert waits[0] >= outgoing.RECEIPT_WAIT_S


def test_uploads_are_held_while_every_bridge_is_down(drive):
    """R-019: rows wait while all known bridges are down; a stale will of an earlier connection counts for nothing."""
    drive.to(Phase.TRAINING)
    drive(ev.BridgeState("bridge", up=True, conn_seq=5))
    drive(ev.BridgeState("bridge", up=False, conn_seq=4))
    drive(ev.BridgeState("bridge", up=False, conn_seq=5))
    drive(ev.Answered("job", 1, TRAINED))
    assert ev.Send not in kinds(drive(stored()))
    assert ev.Send in kinds(drive(ev.BridgeState("bridge", up=True, conn_seq=6)))


def test_pulls_are_hurried_when_the_bridge_is_back(drive):
    """A bridge's new connection, and not its end or a stale word, cuts short what waits for its answer."""
    drive.to(Phase.PULLING)
    assert ev.HurryPulls in kinds(drive(ev.BridgeState("bridge", up=True, conn_seq=5)))
    for up, conn_seq in ((False, 4), (True, 5), (False, 5)):
        assert ev.HurryPulls not in kinds(drive(ev.BridgeState("bridge", up=up, conn_seq=conn_seq)))
    assert ev.HurryPulls in kinds(drive(ev.BridgeState("bridge", up=True, conn_seq=6)))


def test_bridge_set_up_afresh_is_listened_to(drive):
    """A bridge that lost its count of connections is known by its birth on the device's next connection."""
    drive.to(Phase.TRAINING)
    drive(ev.BridgeState("bridge", up=False, conn_seq=5))
    drive(ev.Disconnected())
    drive(ev.Answered("job", 1, TRAINED))
    drive(stored())
    drive(ev.Connected())
    drive(ev.BridgeState("bridge", up=False, conn_seq=0))
    drive(ev.Tick(), after=1e4)
    assert ev.Send not in kinds(drive.actions)
    assert ev.Send in kinds(drive(ev.BridgeState("bridge", up=True, conn_seq=1)))


def test_table_is_closed():
    """Every phase but the last can be left by the end of the job, and every target is a phase of the table."""
    sources = {phase for phase, _ in TABLE}
    targets = {phase for row in TABLE.values() for phase in row.to}
    assert targets <= sources | {Phase.ENDED}
    for phase in sources - {Phase.ENDING}:
        assert (
            {Phase.ENDING, Phase.ENDED} == TABLE[phase, ev.JobEnded].to == TABLE[phase, ev.OfferWithdrawn].to
        )
