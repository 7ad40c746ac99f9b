"""Every order of loss, crash and reordering: one device with its real store against a model of the server."""

import random
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from msgspec.structs import replace

from edge_client import events as ev
from edge_client.chain import Delta
from edge_client.session import Session
from edge_client.store import NewUpdate, open_store
from edge_client.trainer_protocol import Failed, Trained
from edge_client.wire.messages import KEEP_MASS_CODES, BlobRef, JobEnd, Receipt
from edge_client.wire.topics import Uid
from tests.unit.edge_client.offers import INFO, MODEL, TRAINED, assignment, offer


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
        self.kept = {}  # deltas on disk, by digest
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
            first_rev=run,
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
                given = replace(assignment(message.ask), follow=message.ask % 3 > 0)
                if (
                    message.holds is not None and message.holds >= 3
                ):  # the newest there is, as far as it knows
                    given = replace(given, version=message.holds, model=())
                self.down.append(ev.Assigned(given))
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
            case ev.KeepDelta(delta, _data):
                self.kept[delta.digest] = delta
            case ev.KeepBlobs(digests):
                self.kept = {digest: delta for digest, delta in self.kept.items() if digest in digests}
            case ev.Train(_, given, frames, version):
                assert self.training is None
                self.training = (given.ask, self.store.next_seq)
                self.check_way(frames, version)
            case ev.StopTrainer():
                self.training = None
            case ev.StoreUpdate(job, version, trained):
                uid = Uid("dev", job, self.store.epoch, self.stored_seq)
                residuals = (trained.residual_accepted, trained.residual_kept)
                event = self.store.add_update(NewUpdate(uid, trained.frame, b"{}", version, *residuals))
                self.pending[uid] = residuals
                return [event]
        return []

    def check_way(self, frames, version):
        """I5: what is trained from is reached: pulled, or by deltas on disk that go on from it without a gap."""
        at = self.store.jobs()[0].held
        for digest in frames:
            assert digest == MODEL.digest or self.kept[digest].base == at
            at = 3 if digest == MODEL.digest else self.kept[digest].version
        assert at == version

    @rule(ahead=st.sampled_from([1, 1, 1, 1, 1, 1, 0, 2, None]))
    def delta_comes(self, ahead):
        """The broker hands a delta out: mostly the next, or again, or with a gap, or one that cannot be read."""
        job = self.session._device.jobs.get("job")
        version = ((job and job.chain.top) or 0) + (ahead or 0)
        delta = Delta(version - 1, version, "00" * 8, f"{version:064x}", 9)
        self.feed(ev.DeltaSeen("job", None if ahead is None else delta, b"frame"))

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
            "fail": ev.Answered("job", ask, Failed("diverged", "loss")),
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

    @rule(bundle=st.sampled_from("bd"), luck=st.integers(0, 3))
    def another_bundle_is_offered(self, bundle, luck):
        """A server set up afresh offers another model under the same name, without having ended the first."""
        if not luck:
            self.feed(ev.OfferSeen(replace(offer(), bundle=BlobRef(bundle * 64, 10))))

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
    max_examples=60, stateful_step_count=40, suppress_health_check=list(HealthCheck)
)
TestWorld = World.TestCase
