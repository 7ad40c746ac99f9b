"""A job's history in one blob, so that a start reads it and the few manifests after it, not the whole chain.

The head `history/<job>` names the blob by its digest. It holds nothing that the chain of manifests does not: when
it is missing or damaged the chain is read instead.
"""

import msgspec
import structlog

from aggregator.history import VersionRecord
from aggregator.holdout import Holdout
from aggregator.job import Job
from aggregator.learner import Past
from aggregator.reported import Reported
from broker_bridge.ports import Blobs, Conflict, CorruptBlob, Digest, Heads, MissingBlob

PREFIX = "history/"
INTERVAL_VERSIONS = 64  # a start reads at most so many manifests one by one: some 50 ms

log = structlog.get_logger()


class Snapshot(msgspec.Struct):
    """A job's history up to and with the version whose manifest has the digest `manifest`.

    `kept` are versions whose models were stored.
    """

    manifest: str
    records: list[VersionRecord]
    kept: list[int]
    past: Past

    @property
    def version(self) -> int:
        """The newest version it includes."""
        return len(self.records) - 1


class Snapshots:
    """The newest snapshot of each job."""

    def __init__(self, heads: Heads, blobs: Blobs) -> None:
        self._heads = heads
        self._blobs = blobs
        self._stored: dict[str, tuple[int, str]] = {}  # revision of the head, digest of the blob
        self._versions: dict[str, int] = {}

    async def load(self, name: str) -> Snapshot | None:
        """The newest snapshot of a job, None when there is none that can be read."""
        revision, value = await self._heads.load(PREFIX + name)
        digest = value.decode(errors="replace")
        self._stored[name] = revision, digest
        if not value:
            return None
        try:
            found = msgspec.msgpack.decode(await self._blobs.get(Digest(digest)), type=Snapshot)
        except (MissingBlob, CorruptBlob, msgspec.DecodeError) as error:
            log.warning(
                "history.damaged", job=name, error=str(error), remedy="read from the manifests instead"
            )
            return None
        self._versions[name] = found.version
        return found

    async def save_due(self, job: Job) -> None:
        """Store a snapshot when enough versions came since the last one."""
        name = job.spec.name
        if job.version - self._versions.get(name, 0) < INTERVAL_VERSIONS:
            return
        digest = await self._blobs.put(msgspec.msgpack.encode(taken(job)))
        revision, before = self._stored.get(name, (0, ""))
        try:
            revision = await self._heads.swing(PREFIX + name, revision, digest.encode())
        except Conflict:  # another engine keeps this job's history too: what counts is the version's head
            revision, before = (await self._heads.load(PREFIX + name))[0], ""
        self._stored[name] = revision, digest
        self._versions[name] = job.version
        if before and before != digest:
            await self._blobs.delete(Digest(before))

    async def drop(self, name: str) -> None:
        """Delete the snapshot of a job that is deleted."""
        revision, value = await self._heads.load(PREFIX + name)
        if revision:
            await self._blobs.delete(Digest(value.decode(errors="replace")))
            await self._heads.drop(PREFIX + name, revision)
        self._stored.pop(name, None)
        self._versions.pop(name, None)


def taken(job: Job) -> Snapshot:
    """The snapshot of a job at its newest version, whose buffer may hold anything."""
    blank = {"holdout": Holdout(), "reported": Reported()}  # in the memo, which is newer
    return Snapshot(
        manifest=job.digest,
        records=[msgspec.structs.replace(record, **blank) for record in job.history.records],
        kept=sorted(job.recent),
        past=job.learner.past(),
    )
