"""The session's table: each rule of a job's life, and every order of loss, crash and reordering."""

import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from edge_client import events as ev
from edge_client import outgoing, phases
from edge_client.job import Phase
from edge_client.phases import TABLE
from edge_client.session import Session
from edge_client.store import NewUpdate, open_store
from edge_client.trainer_protocol import Failed, Progress, Trained
from edge_client.wire.messages import (
    KEEP_MASS_CODES,
    Assignment,
    BlobRef,
    DataSchema,
    DatasetInfo,
    Evaluation,
    JobEnd,
    Metrics,
    Offer,
    Receipt,
    TrainingPlan,
)
from edge_client.wire.topics import Uid

SCHEMA = DataSchema((2, 8), 3, ("channel", "time"))
INFO = DatasetInfo("demo", SCHEMA, 40)
BUNDLE = BlobRef("b" * 64, 10)
MODEL = BlobRef("c" * 64, 10)
TRAINED = Trained(b"frame", b"accepted", b"kept", Evaluation(0, Metrics(1, 1.0, 0.0)))


def offer(job="job", data=SCHEMA):
    """An offer whose asks are repeated each 10 s."""
    return Offer(job, "demo", data, BUNDLE, 10.0)


def assignment(ask, job="job", not_before=0.0):
    """An answer to an ask, with a lease of 100 s."""
    plan = TrainingPlan(10, 4, 0.1, 0.1, 1.0)
    return Assignment(job, ask, 3, "00" * 8, BUNDLE, (MODEL,), plan, 100.0, not_before)


def stored(seq=1, ask=2, job="job"):
    """What the store says of a finished training."""
    uid = Uid("dev", job, "e" * 16, seq)
    twin = Uid("dev", job, "e" * 16, seq + 1)
    rows = (ev.Row(uid, "update", 5, published=False), ev.Row(twin, "evaluation", 5, published=False))
    return ev.Stored(job, rows, 3, ask)


class Driver:
    """A session with a clock and the actions of the last event."""

    def __init__(self):
        self.now = 100.0
        self.session = Session(
            device="dev",
            datasets=["demo"],
            jobs=[],
            rows=[],
            next_ask=1,
            first_rev=0,
            rng=random.Random(1),
        )

    def __call__(self, event, *, after=0.0):
        """Handle an event and return its actions."""
        self.now += after
        self.actions = self.session.handle(event, self.now)
        return self.actions

    def said(self):
        """States and reasons published by the last event."""
        return [(a.message.state, a.message.reason) for a in self.actions if self._is(a, "/task/")]

    def asks(self):
        """Asks published by the last event."""
        return [a.message for a in self.actions if self._is(a, "/ask")]

    def phase(self, job="job"):
        """The phase of a job."""
        return self.session.phase(job)

    def to(self, phase):
        """Bring a job to a phase."""
        steps = [
            (Phase.ASKING, (ev.Connected(), ev.DataKnown("demo", INFO), ev.OfferSeen(offer()))),
            (Phase.PULLING, (ev.Assigned(assignment(1)),)),
            (Phase.TRAINING, (ev.Pulled(BUNDLE.digest), ev.Pulled(MODEL.digest))),
            (Phase.UPLOADING, (ev.Answered("job", 1, TRAINED), stored())),
        ]
        for reached, events in steps:
            for event in events:
                self(event)
            if reached is phase:
                break
        assert self.phase() is phase
        return self

    @staticmethod
    def _is(action, part):
        return isinstance(action, ev.Publish) and part in action.topic


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
    """A bundle or data set that cannot be trained on is not tried again."""
    drive.to(Phase.TRAINING)
    drive(ev.Answered("job", 1, Failed(code, "why")))
    assert drive.said() == [("declined", f"{code}: why")]
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
    """JobEnd stops the job's training, removes what is kept, says so, and the offer is not taken up again."""
    drive.to(Phase.TRAINING)
    actions = kinds(drive(ev.JobEnded(JobEnd("job", "done"))))
    assert actions.index(ev.StopTrainer) < actions.index(ev.RemoveWorkspace)
    assert drive.said() == [("ended", "done")]
    assert drive(ev.OfferSeen(offer())) == []
    drive(ev.OfferWithdrawn("job"))
    drive(ev.OfferSeen(offer()))
    assert len(drive.asks()) == 1


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
    """Rows wait while all known bridges are down; a stale will of an earlier connection counts for nothing."""
    drive.to(Phase.TRAINING)
    drive(ev.BridgeState("bridge", up=True, conn_seq=5))
    drive(ev.BridgeState("bridge", up=False, conn_seq=4))
    drive(ev.BridgeState("bridge", up=False, conn_seq=5))
    drive(ev.Answered("job", 1, TRAINED))
    assert ev.Send not in kinds(drive(stored()))
    assert ev.Send in kinds(drive(ev.BridgeState("bridge", up=True, conn_seq=6)))


def test_table_is_closed():
    """Every phase but the last can be left by the end of the job, and every target is a phase of the table."""
    sources = {phase for phase, _ in TABLE}
    targets = {phase for row in TABLE.values() for phase in row.to}
    assert targets <= sources | {Phase.ENDED}
    for phase in sources - {Phase.ENDING}:
        assert (
            {Phase.ENDING, Phase.ENDED} == TABLE[phase, ev.JobEnded].to == TABLE[phase, ev.OfferWithdrawn].to
        )


class Crash(Exception):  # noqa: N818 - a power cut is not an error
    """The power is cut between two actions."""


class World(RuleBasedStateMachine):
    """One device with its real store, a lossy network, and a server that remembers every uid."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.store = open_store(Path(self.folder.name))
        self.now = 0.0
        self.trainings = 0
        self.up = []  # (uid, body) on their way to the server
        self.down = []  # events on their way to the device
        self.bodies = {}  # what the server saw under each uid
        self.verdicts = {}
        self.pending = {}  # residuals of stored updates without a verdict
        self.expected = None  # residual that the store must hold
        self.power = 10**9  # actions until the next cut
        self.boot()

    def boot(self):
        """Start the device from what is durable."""
        self.training = None
        run = self.store.begin_run()
        self.session = Session(
            device="dev",
            datasets=["demo"],
            jobs=self.store.jobs(),
            rows=self.store.rows(),
            next_ask=self.store.next_ask,
            first_rev=run << 32,
            rng=random.Random(run),
        )
        for event in (ev.DataKnown("demo", INFO), ev.Connected(), ev.OfferSeen(offer())):
            self.feed(event)

    def feed(self, event):
        """Handle an event and perform its actions until the power is cut."""
        events = [event]
        try:
            while events:
                for action in self.session.handle(events.pop(0), self.now):
                    events += self.perform(action)
        except Crash:
            self.power = 10**9
            self.store.close()
            self.store = open_store(Path(self.folder.name))
            self.boot()

    def perform(self, action):  # noqa: C901, PLR0912 - one case per action, a table
        """What the daemon does, on a network that is a list."""
        self.power -= 1
        if self.power < 0:
            raise Crash
        match action:
            case ev.Publish(topic, message) if topic.endswith("/ask"):
                self.down.append(ev.Assigned(assignment(message.ask)))
            case ev.Send(uid):
                body = self.store.body(uid)
                if body is not None:
                    self.store.mark_published(uid)
                    self.up.append((uid, body))
            case ev.SaveJob(row):
                self.store.save_job(row)
            case ev.Settle(uid, verdict, code):
                self.store.settle(uid, verdict, code, 0.0)
            case ev.DropUnpublished(job):
                for row in self.store.rows():
                    if not row.published:
                        self.pending.pop(row.uid, None)
                self.store.drop_unpublished(job)
            case ev.RemoveWorkspace(job):
                assert not [row for row in self.store.rows() if row.uid in self.pending], "I4: no verdict yet"
                self.store.remove_job(job)
                self.pending.clear()
                self.expected = None
            case ev.Pull(blob):
                return [ev.Pulled(blob.digest)]
            case ev.Train(_, given):
                assert self.training is None
                self.training = (given.ask, self.store.next_seq)
            case ev.StopTrainer():
                self.training = None
            case ev.StoreUpdate(job, version, trained):
                uid = Uid("dev", job, self.store.epoch, self.stored_seq)
                residuals = (trained.residual_accepted, trained.residual_kept)
                event = self.store.add_update(NewUpdate(uid, trained.frame, b"{}", version, *residuals))
                self.pending[uid] = residuals
                return [event]
        return []

    @rule(power=st.none() | st.integers(0, 4), how=st.sampled_from(["ok", "ok", "ok", "fail", "die"]))
    def train(self, power, how):
        """The child answers; the power may be cut while the device acts on it."""
        self._answer(power, how)

    def _answer(self, power, how):
        if self.training is None:
            return
        (ask, self.stored_seq), self.training = self.training, None
        self.power = 10**9 if power is None else power
        self.trainings += 1
        n = b"%d" % self.trainings
        answers = {
            "ok": ev.Answered("job", ask, Trained(b"frame" + n, b"acc" + n, b"kept" + n, TRAINED.evaluation)),
            "fail": ev.Answered("job", ask, Failed("not_finite", "loss")),
            "die": ev.TrainerDied("job", ask, "SIGKILL"),
        }
        self.feed(answers[how])

    @rule(pick=st.integers(0, 99), code=st.sampled_from(["", "", "stale", "resync", "norm", "lost"]))
    def server_takes(self, pick, code):
        """Any message on its way arrives, in any order; the server's verdict on a uid never changes."""
        self._judge(pick, code)

    def _judge(self, pick, code):
        if not self.up:
            return
        uid, body = self.up.pop(pick % len(self.up))
        if code == "lost":
            return
        assert self.bodies.setdefault(uid, body) == body, "I12: one uid, two bodies"
        verdict = self.verdicts.setdefault(uid, code)
        receipt = Receipt(str(uid), "rejected" if verdict else "accepted", verdict)
        self.down.append(ev.ReceiptSeen(receipt))

    @rule(
        pick=st.integers(0, 99),
        fate=st.sampled_from(["once", "once", "twice", "lost"]),
        power=st.integers(0, 9),
    )
    def device_takes(self, pick, fate, power):
        """A message to the device arrives, perhaps twice, or never; the power may be cut in between."""
        if not self.down:
            return
        index = pick % len(self.down)
        event = self.down[index]
        if fate != "twice":
            del self.down[index]
        if fate != "lost":
            self.power = power if power < 4 else 10**9
            self.feed(event)

    @rule(code=st.sampled_from(["", "stale", "norm", "resync"]), power=st.none() | st.integers(0, 4))
    def goes_well(self, code, power):
        """Everything on its way arrives in order, and the child finishes: how far depends on what went before."""
        for _ in range(len(self.down)):
            if self.down:
                self.feed(self.down.pop(0))
        self._answer(power, "ok")
        for _ in range(len(self.up)):
            self._judge(0, code)

    @rule(seconds=st.sampled_from([1.0, 60.0, 4000.0]))
    def time_passes(self, seconds):
        """Timers fire."""
        self.now += seconds
        self.feed(ev.Tick())

    @rule()
    def link_flaps(self):
        """The connection breaks and comes back."""
        self.feed(ev.Disconnected())
        self.feed(ev.Connected())

    @rule()
    def power_cut(self):
        """The device restarts between two events."""
        self.power = 0
        self.feed(ev.OfferSeen(offer("zzz")))
        self.power = 10**9

    @rule(withdrawn=st.booleans(), luck=st.integers(0, 3))
    def job_ends_and_is_offered_again(self, withdrawn, luck):
        """The job ends now and then, and later begins anew under the same name."""
        if luck:
            return
        self.feed(ev.OfferWithdrawn("job") if withdrawn else ev.JobEnded(JobEnd("job", "done")))
        self.feed(ev.OfferWithdrawn("job"))
        self.feed(ev.OfferSeen(offer()))

    @invariant()
    def one_unreceipted_update(self):
        """I4: never two unreceipted updates of a job."""
        updates = [row for row in self.store.rows() if row.kind == "update"]
        assert len(updates) <= len({row.uid.job for row in updates})

    @invariant()
    def residual_follows_verdicts_only(self):
        """I4: a row is gone only by its verdict, and the residual is the one that verdict picks."""
        rows = {row.uid for row in self.store.rows()}
        for uid in [uid for uid in self.pending if uid not in rows]:
            accepted, kept = self.pending.pop(uid)
            verdict = self.verdicts[uid]
            if not verdict:
                self.expected = accepted
            elif verdict in KEEP_MASS_CODES:
                self.expected = kept
        assert self.store.residual("job") == self.expected

    @invariant()
    def names_are_not_reused(self):
        """I12: the next name is above every name a server has seen."""
        assert all(uid.seq < self.store.next_seq for uid in self.bodies)

    def teardown(self):
        """Leave no files."""
        self.store.close()
        self.folder.cleanup()


World.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestWorld = World.TestCase
