"""The heads that aggregator and bridge share: who writes which key, and what is in it.

| key | written by | value |
|---|---|---|
| `job/<job>` | aggregator | JobCell: what admission must know |
| `version/<job>` | aggregator | VersionCell: the newest version and the hashes of recent ones |
| `spec/<job>`, `history/<job>`, `memo` | aggregator | its own: a job's record, and the digests of its snapshots |
| `dead/<partition>/<offset>` | aggregator | its own: a log entry that was put aside, and why |
| `down/<topic without root>` | aggregator | the payload to publish there; empty clears a retained topic |
| `fan/<job>` | aggregator | FanCell: the newest delta to be fanned out |
| `taken` | aggregator | TakenCell: how far it has read the log |
| `bridge/<name>` | bridge | BridgeCell: counters |
| `poison/<place>` | bridge | DeadMessage (deadletters.py): a message on which it failed, and why |
| `link/<name>` | bridge | LinkCell: what the bridge itself must remember |
"""

from typing import Literal

import msgspec

from edge_client.wire import topics

JOB_PREFIX = "job/"
VERSION_PREFIX = "version/"
DOWN_PREFIX = "down/"
FAN_PREFIX = "fan/"
BRIDGE_PREFIX = "bridge/"
LINK_PREFIX = "link/"
TAKEN_KEY = "taken"


class JobCell(msgspec.Struct, frozen=True):
    """What admission needs of a job. `ended` jobs refuse every update."""

    state: Literal["running", "ended"]
    sizes: tuple[int, ...]  # values of each tensor, in the order of the bundle's table
    norm_max: float  # L2 norm above which an update is refused
    staleness_max: int  # τ_max: versions an update's base may be behind
    frame_bytes_max: int  # the largest update frame of this job
    statistics: int = 0  # how many of the tensors, at the table's end, are statistics
    measure: Literal["accuracy", "error", "threshold"] = "accuracy"  # what evaluations give beside the loss
    blobs: tuple[str, ...] = ()  # digests a device may pull besides those of the versions


class VersionCell(msgspec.Struct, frozen=True):
    """The newest version of a job; `hashes` maps recent versions to their 8-byte model hash in hex.

    `parent` is the manifest of the version before, "" for version 0: what to go on from when `manifest` is damaged.
    """

    version: int
    manifest: str
    hashes: dict[int, str]
    parent: str = ""


class FanCell(msgspec.Struct, frozen=True):
    """The delta to a job's new version, a blob, for the bridge to publish once to a cohort."""

    cohort: str
    version: int
    digest: str


class TakenCell(msgspec.Struct, frozen=True):
    """The offset of the entry that the aggregator took last, of each partition."""

    offsets: dict[int, int]


class BridgeCell(msgspec.Struct, frozen=True):
    """Counters of a bridge since its state was made; written at most once a second."""

    at: float
    bytes_up: int = 0
    bytes_down: int = 0
    messages_up: int = 0
    messages_down: int = 0
    accepted: int = 0
    duplicates: int = 0
    rejected: dict[str, int] = {}
    jobs_up: dict[str, int] = {}  # bytes of update packets per job
    partials: int = 0
    untaken: int = 0  # entries of the log that the aggregator has not read; at its bound messages wait


class LinkCell(msgspec.Struct, frozen=True):
    """What a bridge remembers over restarts: its connections so far, and the `down/` revision published last."""

    conn_seq: int = 0
    published: int = 0


def job_key(job: str) -> str:
    """Key of a job's cell."""
    return f"{JOB_PREFIX}{job}"


def version_key(job: str) -> str:
    """Key of a job's version cell."""
    return f"{VERSION_PREFIX}{job}"


def fan_key(job: str) -> str:
    """Key of a job's newest delta."""
    return f"{FAN_PREFIX}{job}"


def down_key(topic: str) -> str:
    """Key whose value the bridge publishes to `topic`."""
    return f"{DOWN_PREFIX}{topic[len(topics.ROOT) + 1 :]}"


def down_topic(key: str) -> str:
    """Topic of a `down/` key."""
    return f"{topics.ROOT}/{key[len(DOWN_PREFIX) :]}"


def retained(topic: str) -> bool:
    """What a cohort and integrators read is retained; commands to a device never are. Births are only ever cleared."""
    return topic.startswith((f"{topics.ROOT}/b/", f"{topics.ROOT}/i/", f"{topics.ROOT}/d/"))
