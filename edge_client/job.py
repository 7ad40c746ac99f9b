"""What the session remembers: each job with its phase, and what the jobs of one device share.

Which event leads where is the table of phases.py.
"""

import enum
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from edge_client import events as ev
from edge_client.chain import Chain
from edge_client.outgoing import JITTER, Outgoing
from edge_client.wire import topics
from edge_client.wire.messages import Assignment, BlobRef, DatasetInfo, Offer, TaskStatus


class Phase(enum.StrEnum):
    """Where a job is."""

    OFFERED = "offered"  # waits: for its data set to be read, or a back-off
    DECLINED = "declined"  # this offer is not for this device
    ASKING = "asking"
    PULLING = "pulling"
    READY = "ready"  # has everything, waits for the trainer
    TRAINING = "training"
    UPLOADING = "uploading"  # has an update without a verdict
    ENDING = "ending"  # the job is over, its published update still waits for the verdict
    ENDED = "ended"  # removed; never seen in memory


State = Literal["declined", "asking", "pulling", "training", "uploading", "failed", "ended"]
Said = tuple[State, str, float | None]  # state, reason, progress of the last TaskStatus


@dataclass(slots=True)
class Job:
    """What the session remembers of one job; `ask` is the outstanding ask, or the next one's number.

    `held` is the version of the model that is here, 0 at first, since the bundle holds it; None after a mismatch.
    """

    offer: Offer
    ask: int
    held: int | None = None
    chain: Chain = field(init=False)  # what this device can build, from where it is
    asked: int | None = (
        None  # version that the outstanding ask says it holds: an assignment's blobs start there
    )
    route: tuple[str, ...] = ()  # blobs that lead from the workspace to the base of `chain`
    base_hash: str = ""  # of that base, hex; "" while it is the workspace itself
    relies: bool = False  # the way to what it trains from includes deltas that were handed out
    trains_from: int = 0
    follows: bool = False  # the broker hands out this job's deltas to us
    follow_end: float = 0.0
    saved: bool = False  # the store has a row for it
    phase: Phase = Phase.OFFERED
    due: float | None = None
    assignment: Assignment | None = None
    started: bool = False  # the pull has begun (not_before_s has passed)
    lease_end: float = 0.0
    missing: set[str] = field(default_factory=set)
    failures: int = 0
    progress_at: float = 0.0
    said: Said | None = None
    successor: Offer | None = None  # another offer under this name, taken up when this job is gone

    def __post_init__(self) -> None:
        self.chain = Chain(self.held)

    @property
    def name(self) -> str:
        """The job's id."""
        return self.offer.job

    def hold(self, version: int | None) -> None:
        """The workspace has this version; deltas that go on from it stay."""
        self.held, self.route, self.base_hash, self.relies = version, (), "", False
        self.chain.rebase(version)


class Device:
    """What all jobs share: connection, data sets, the trainer's place, rows on their way, actions so far."""

    def __init__(
        self,
        *,
        name: str,
        declared: frozenset[str],
        rows: Iterable[ev.Row],
        next_ask: int,
        first_rev: int,
        rng: random.Random,
    ) -> None:
        self.name = name
        self.declared = declared
        self.datasets: dict[str, DatasetInfo | str] = {}
        self.outgoing = Outgoing(rows, rng)
        self.jobs: dict[str, Job] = {}
        self.connected = False
        self.training: Job | None = None
        self.rng = rng
        self.next_ask = next_ask
        self.actions: list[ev.Action] = []
        self._rev = first_rev

    def take_actions(self) -> list[ev.Action]:
        """The actions collected since the last call."""
        actions, self.actions = self.actions, []
        return actions

    def say(self, job: str, said: Said) -> None:
        """Publish a TaskStatus; when not connected it is said again on connect."""
        if not self.connected:
            return
        state, reason, progress = said
        self._rev += 1
        status = TaskStatus(state, self._rev, reason, progress)
        self.actions.append(ev.Publish(topics.task(self.name, job), status))

    def status(self, job: Job, state: State, reason: str = "", progress: float | None = None) -> None:
        """Remember and publish what is done for a job."""
        job.said = (state, reason, progress)
        self.say(job.name, job.said)

    def stretch(self, wait: float) -> float:
        """A wait with jitter."""
        return wait * (1 + JITTER * self.rng.random())

    def save(self, job: Job) -> None:
        """Make the job's facts durable."""
        job.saved = True
        self.actions.append(ev.SaveJob(ev.JobRow(job.offer, job.held, job.ask)))

    def keep_blobs(self) -> None:
        """Say which blobs are still needed."""
        digests = set()
        for job in self.jobs.values():
            if job.phase is not Phase.DECLINED:  # a bundle that went bad on the card is pulled anew
                digests.add(job.offer.bundle.digest)
            digests.update(job.route)
            digests.update(delta.digest for delta in job.chain.deltas)
            if job.assignment is not None:
                digests.update(blob.digest for blob in blobs(job.assignment))
        self.actions.append(ev.KeepBlobs(frozenset(digests)))


def blobs(assignment: Assignment) -> list[BlobRef]:
    """The blobs an assignment needs."""
    return [assignment.bundle, *assignment.model]
