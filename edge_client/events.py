"""The words between the device's pure core and its shells: what happened, and what is to be done.

Plain values only. The session decides (session.py, outgoing.py); the daemon performs.
"""

from dataclasses import dataclass
from typing import Literal

from edge_client.chain import Delta
from edge_client.trainer_protocol import Failed, Progress, Trained
from edge_client.wire.messages import Assignment, BlobRef, DatasetInfo, JobEnd, Message, Offer, Receipt
from edge_client.wire.topics import Uid

Kind = Literal["update", "evaluation"]


@dataclass(frozen=True, slots=True)
class Row:
    """An outbox row without its body; `published` is set before its first byte leaves."""

    uid: Uid
    kind: Kind
    size: int
    published: bool


@dataclass(frozen=True, slots=True)
class JobRow:
    """A job whose workspace this device holds. `ask` numbers the ask that is outstanding or next."""

    offer: Offer
    held: int | None
    ask: int


# -- events ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Connected:
    """The broker took us; messages published from now on may arrive."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection is gone; nothing published until Connected arrives."""


@dataclass(frozen=True, slots=True)
class DataKnown:
    """A data set was described: what it is, or why it cannot be used."""

    name: str
    info: DatasetInfo | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class OfferSeen:
    """A job is open; retained, so it is seen again after each connect."""

    offer: Offer


@dataclass(frozen=True, slots=True)
class OfferWithdrawn:
    """The offer was cleared: the job is over for everybody."""

    job: str


@dataclass(frozen=True, slots=True)
class Assigned:
    """The aggregator answered an ask."""

    assignment: Assignment


@dataclass(frozen=True, slots=True)
class JobEnded:
    """The job is over for this device."""

    end: JobEnd


@dataclass(frozen=True, slots=True)
class ReceiptSeen:
    """The bridge's word on a uid."""

    receipt: Receipt


@dataclass(frozen=True, slots=True)
class BridgeState:
    """Birth or will of a bridge."""

    service: str
    up: bool
    conn_seq: int


@dataclass(frozen=True, slots=True)
class DeltaSeen:
    """The broker handed out the delta of a job's new version; None: one that cannot be used."""

    job: str
    delta: Delta | None
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class Pulled:
    """A blob is on disk, verified."""

    digest: str


@dataclass(frozen=True, slots=True)
class PullFailed:
    """A blob cannot be had."""

    digest: str
    reason: str


@dataclass(frozen=True, slots=True)
class Answered:
    """The trainer child said something about the training for this ask of this job."""

    job: str
    ask: int
    answer: Progress | Trained | Failed


@dataclass(frozen=True, slots=True)
class TrainerDied:
    """The trainer child ended without a result."""

    job: str
    ask: int
    reason: str


@dataclass(frozen=True, slots=True)
class Stored:
    """A finished training is durable; `ask` is the number of the next ask."""

    job: str
    rows: tuple[Row, ...]
    version: int
    ask: int


@dataclass(frozen=True, slots=True)
class StoreFailed:
    """A finished training could not be stored; it is lost, the residual is as before."""

    job: str
    reason: str


@dataclass(frozen=True, slots=True)
class RowsFound:
    """Further rows of the outbox, which were not in memory yet."""

    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = (
    Connected
    | Disconnected
    | DataKnown
    | OfferSeen
    | OfferWithdrawn
    | Assigned
    | JobEnded
    | ReceiptSeen
    | BridgeState
    | DeltaSeen
    | Pulled
    | PullFailed
    | Answered
    | TrainerDied
    | Stored
    | StoreFailed
    | RowsFound
    | Tick
)

# -- actions ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Publish:
    """Publish a control message with QoS 1, not retained; lost when not connected."""

    topic: str
    message: Message


@dataclass(frozen=True, slots=True)
class Send:
    """Mark a row published, then send its chunks: the ranges in `missing`, or all when there are none."""

    uid: Uid
    kind: Kind
    missing: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Settle:
    """Remove a row and install the residual that its verdict picks."""

    uid: Uid
    verdict: Literal["accepted", "rejected"]
    code: str


@dataclass(frozen=True, slots=True)
class SaveJob:
    """Make these facts of a job durable."""

    row: JobRow


@dataclass(frozen=True, slots=True)
class DropUnpublished:
    """Remove the job's rows that nobody has seen."""

    job: str


@dataclass(frozen=True, slots=True)
class RemoveWorkspace:
    """Remove all that is kept for a job: workspace, residual, rows."""

    job: str


@dataclass(frozen=True, slots=True)
class Pull:
    """Get a blob; answered with Pulled or PullFailed."""

    blob: BlobRef


@dataclass(frozen=True, slots=True)
class HurryPulls:
    """The bridge came back: what it was asked for in its absence is asked for again soon."""


@dataclass(frozen=True, slots=True)
class KeepBlobs:
    """Only these blobs are needed from now on; others, and pulls of others, may go."""

    digests: frozenset[str]


@dataclass(frozen=True, slots=True)
class KeepDelta:
    """Keep a delta's bytes among the blobs."""

    delta: Delta
    data: bytes


@dataclass(frozen=True, slots=True)
class Follow:
    """Listen to a job's deltas from now on, or no more; on a connection that is gone it means nothing."""

    job: str
    yes: bool


@dataclass(frozen=True, slots=True)
class Train:
    """Start training; answered with Answered, TrainerDied.

    `frames` are the blobs that lead from the workspace's model to `version` of this hash (hex): that of the
    assignment, or a later one that came meanwhile.
    """

    offer: Offer
    assignment: Assignment
    frames: tuple[str, ...]
    version: int
    version_hash: str


@dataclass(frozen=True, slots=True)
class StopTrainer:
    """Kill the trainer child; nothing more is heard of its task."""


@dataclass(frozen=True, slots=True)
class StoreUpdate:
    """Make a finished training durable; answered with Stored or StoreFailed."""

    job: str
    version: int
    trained: Trained


Action = (
    Publish
    | Send
    | Settle
    | SaveJob
    | DropUnpublished
    | RemoveWorkspace
    | Pull
    | HurryPulls
    | KeepBlobs
    | KeepDelta
    | Follow
    | Train
    | StopTrainer
    | StoreUpdate
)
