"""Error feedback over a link that loses, repeats and reorders, with crashes at every step.

A device of real parts (state database, compressor, codec) and a server of real parts (admission, fold) exchange
messages through a bag. The ledger is the test's own: it knows what was trained and what the server has accepted.
"""

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aggregator.bounds import GAIN_ONE
from aggregator.fold import Fold
from broker_bridge.admit import Accept, admit_update
from broker_bridge.cells import JobCell, VersionCell
from edge_client.compress import compress
from edge_client.events import JobRow
from edge_client.store import NewUpdate, open_store
from edge_client.wire import sparse
from edge_client.wire.limits import FRACTION_BITS
from edge_client.wire.messages import CODECS, BlobRef, DataSchema, Offer
from edge_client.wire.topics import Uid

SIZES = (6, 3)
HASH = bytes(8)
STALENESS_MAX = 1
NORM_MAX = 1e6  # nothing is clipped: mass that is clipped away is not lost on the way
CHANGES = st.lists(st.integers(-40, 40), min_size=sum(SIZES), max_size=sum(SIZES))
ANY = st.integers(0, 2**16)


def units(values):
    """Float values as exact integers of 2^-24."""
    return np.ldexp(np.asarray(values, dtype=np.float64), FRACTION_BITS).astype(np.int64)


def stored(residual):
    """A float16 residual in units; none is zeros."""
    return units(np.frombuffer(residual, "<f2")) if residual else np.zeros(sum(SIZES), dtype=np.int64)


class Link(RuleBasedStateMachine):
    """One device, one server, and what is on the way between them."""

    @initialize()
    def begin(self):
        self.folder = tempfile.TemporaryDirectory()
        self.store = open_store(Path(self.folder.name))
        offer = Offer("job", "data", DataSchema((2,), 2), BlobRef("0" * 64, 10))
        self.store.save_job(JobRow(offer, None, self.store.next_ask))
        self.version, self.verdicts, self.fold = 0, {}, Fold(SIZES, "uniform")
        self.up, self.down = [], []
        self.trained = np.zeros(sum(SIZES), dtype=np.int64)
        self.rounded = np.zeros(
            sum(SIZES), dtype=np.int64
        )  # what float16 could not hold of settled residuals
        self.open = None  # (uid, exact u, NewUpdate) without a receipt

    def teardown(self):
        self.store.close()
        self.folder.cleanup()

    @precondition(lambda self: self.open is None)
    @rule(changes=CHANGES, density=st.sampled_from([0.1, 0.4, 1.0]), codec=st.sampled_from(CODECS))
    def train(self, changes, density, codec):
        """Train from the newest version; residual, sequence number and outbox row change together."""
        delta = np.array(changes, dtype=np.float32) / 64
        before = self.store.residual("job")
        made = compress([delta[: SIZES[0]], delta[SIZES[0] :]], before, density, NORM_MAX, codec)
        uid = Uid("dev", "job", self.store.epoch, self.store.next_seq)
        frame = sparse.encode(sparse.Update(self.version, HASH, uid.tag, 1, made.weights), SIZES, made.codec)
        new = NewUpdate(uid, frame, b"{}", self.version, made.residual_accepted, made.residual_kept)
        self.store.add_update(new)
        self.trained += units(delta)
        self.open = uid, units(delta) + stored(before), new

    @precondition(lambda self: self.open is not None)
    @rule()
    def publish(self):
        """Send the row, again if it was sent before: the outbox knows nothing of what arrived."""
        uid = self.open[0]
        self.store.mark_published(uid)
        self.up.append((uid, self.store.body(uid)))

    @precondition(lambda self: self.up)
    @rule(which=ANY, again=st.booleans())
    def deliver(self, which, again):
        """Any message arrives, now or once more later; the same uid gets its first verdict."""
        at = which % len(self.up)
        uid, frame = self.up[at] if again else self.up.pop(at)
        if uid not in self.verdicts:
            job = JobCell("running", SIZES, NORM_MAX, STALENESS_MAX, 10_000)
            head = VersionCell(self.version, "m", dict.fromkeys(range(self.version + 1), HASH.hex()))
            verdict = admit_update(job, head, uid, frame, wire_bytes=len(frame), now=0.0)
            if isinstance(verdict, Accept):
                self.fold.add(sparse.decode(frame, SIZES))
            self.verdicts[uid] = (
                ("accepted", "") if isinstance(verdict, Accept) else ("rejected", verdict.code)
            )
        self.down.append((uid, *self.verdicts[uid]))

    @precondition(lambda self: self.up)
    @rule(which=ANY)
    def lose_update(self, which):
        """A message vanishes."""
        self.up.pop(which % len(self.up))

    @precondition(lambda self: self.down)
    @rule(which=ANY)
    def lose_receipt(self, which):
        """A receipt vanishes."""
        self.down.pop(which % len(self.down))

    @precondition(lambda self: self.down)
    @rule(which=ANY, again=st.booleans())
    def receive(self, which, again):
        """Any receipt arrives, perhaps of an update that was settled long ago."""
        at = which % len(self.down)
        uid, verdict, code = self.down[at] if again else self.down.pop(at)
        row = self.store.settle(uid, verdict, code, 0.0)
        if row is not None:
            assert self.open is not None
            assert self.open[0] == uid
            self.rounded += self.open[1] - self.state_after(verdict) - self.sent(verdict)
            self.open = None

    @rule()
    def crash(self):
        """Kill -9 of the device: the next process opens what is on disk."""
        self.store.close()  # what was not committed is not written by closing
        self.store = open_store(Path(self.folder.name))

    @rule()
    def commit(self):
        """The server makes a version: an update on its way grows stale."""
        self.version += 1

    def sent(self, verdict):
        """What the open update says, in units, if it was accepted."""
        sums = np.zeros(sum(SIZES), dtype=np.int64)
        if verdict == "accepted":
            positions, values = sparse.decode(self.open[2].frame, SIZES).weights.units(
                np.array([0, SIZES[0]])
            )
            sums[positions] += values
        return sums

    def state_after(self, verdict):
        """The residual that this verdict installs."""
        return stored(self.open[2].residual_accepted if verdict == "accepted" else self.open[2].residual_kept)

    @invariant()
    def nothing_is_lost_or_counted_twice(self):
        """I4: applied + residual + what float16 rounded off = all that was trained, to the last unit, at every step."""
        applied = sum((b.sums.dense() for b in self.fold.buckets.values()), np.zeros(sum(SIZES), np.int64))
        applied //= GAIN_ONE
        held = stored(self.store.residual("job"))
        if self.open is not None:
            uid, mass, _ = self.open
            accepted = self.verdicts.get(uid, ("",))[0] == "accepted"
            held = mass - self.sent("accepted") if accepted else mass

        assert (applied + held + self.rounded == self.trained).all()
        assert (np.abs(self.rounded) <= units(0.02)).all(), "float16 rounds off more than the last bits"

    @invariant()
    def one_update_at_most_waits(self):
        """I4: there is one unreceipted update or none, and it is the one the ledger knows."""
        waiting = [row.uid for row in self.store.rows() if row.kind == "update"]

        assert waiting == ([self.open[0]] if self.open else [])


TestErrorFeedback = Link.TestCase
TestErrorFeedback.settings = settings(max_examples=60, stateful_step_count=40)
