"""A job's history in blobs, so that a start reads them and the few manifests after them, not the whole chain.

The head `history/<job>` names a blob with the newest records, which names sealed segments of older ones: what is
written for a version does not grow with the versions before it. All this holds nothing that the chain of manifests does
not: when some of it is missing or damaged the chain is read instead.
"""

from collections.abc import Sequence

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
SEGMENT_VERSIONS = 512  # whose records are written once, some 400 kB where fifty devices made each

log = structlog.get_logger()


class Segment(msgspec.Struct, frozen=True):
    """SEGMENT_VERSIONS records in the blob `digest`; `manifest` is the digest of the last one's manifest."""

    digest: str
    manifest: str


class Snapshot(msgspec.Struct):
    """A job's history up to and with the version whose manifest has the digest `manifest`.

    `records` are those after the ones in `segments`; `kept` are versions whose models were stored.
    """

    manifest: str
    segments: list[Segment]
    records: list[VersionRecord]
    kept: list[int]
    past: Past


decode = msgspec.msgpack.Decoder(Snapshot).decode
decode_segment = msgspec.msgpack.Decoder(list[VersionRecord]).decode


class Snapshots:
    """The newest snapshot of each job."""

    def __init__(self, heads: Heads, blobs: Blobs) -> None:
        self._heads = heads
        self._blobs = blobs
        self._stored: dict[str, tuple[int, str]] = {}  # revision of the head, digest of the blob
        self._segments: dict[str, list[Segment]] = {}
        self._versions: dict[str, int] = {}

    async def load(self, name: str) -> Snapshot | None:
        """The newest snapshot of a job with all its records, None when there is none that can be read."""
        revision, value = await self._heads.load(PREFIX + name)
        digest = value.decode(errors="replace")
        self._stored[name] = revision, digest
        if not value:
            return None
        try:
            found = decode(await self._blobs.get(Digest(digest)))
            records = [
                record
                for segment in found.segments
                for record in decode_segment(await self._blobs.get(Digest(segment.digest)))
            ]
        except (MissingBlob, CorruptBlob, msgspec.DecodeError) as error:
            log.warning(
                "history.damaged", job=name, error=str(error), remedy="read from the manifests instead"
            )
            return None
        self._segments[name] = found.segments
        self._versions[name] = len(records) + len(found.records) - 1
        return msgspec.structs.replace(found, segments=[], records=records + found.records)

    async def save_due(self, job: Job) -> None:
        """Store a snapshot when enough versions came since the last one."""
        name = job.spec.name
        if job.version - self._versions.get(name, 0) < INTERVAL_VERSIONS:
            return
        segments = await self._sealed(job)
        digest = await self._blobs.put(msgspec.msgpack.encode(taken(job, segments)))
        revision, before = self._stored.get(name, (0, ""))
        stale = {before, *(segment.digest for segment in self._segments.get(name, []))} - {""}
        try:
            revision = await self._heads.swing(PREFIX + name, revision, digest.encode())
        except Conflict:  # another engine keeps this job's history too: what counts is the version's head
            revision, stale = (await self._heads.load(PREFIX + name))[0], set()
        self._stored[name] = revision, digest
        self._segments[name], self._versions[name] = segments, job.version
        for old in stale - {digest, *(segment.digest for segment in segments)}:
            await self._blobs.delete(Digest(old))

    async def drop(self, name: str) -> None:
        """Delete the snapshot of a job that is deleted."""
        revision, value = await self._heads.load(PREFIX + name)
        if revision:
            for segment in self._segments.get(name, []):
                await self._blobs.delete(Digest(segment.digest))
            await self._blobs.delete(Digest(value.decode(errors="replace")))
            await self._heads.drop(PREFIX + name, revision)
        for known in (self._stored, self._segments, self._versions):
            known.pop(name, None)

    async def _sealed(self, job: Job) -> list[Segment]:
        """The segments of a job's history: those stored, but for versions that were lost, and what is full since."""
        segments: list[Segment] = []
        records = job.history.records
        for end in range(SEGMENT_VERSIONS, len(records) + 1, SEGMENT_VERSIONS):
            known = self._segments.get(job.spec.name, [])[len(segments) : len(segments) + 1]
            if known and known[0].manifest == records[end - 1].manifest:
                segments += known
            else:
                data = msgspec.msgpack.encode(_blank(records[end - SEGMENT_VERSIONS : end]))
                segments.append(Segment(await self._blobs.put(data), records[end - 1].manifest))
        return segments


def taken(job: Job, segments: Sequence[Segment] = ()) -> Snapshot:
    """The snapshot of a job at its newest version, whose buffer may hold anything, with these segments stored."""
    return Snapshot(
        manifest=job.digest,
        segments=list(segments),
        records=_blank(job.history.records[len(segments) * SEGMENT_VERSIONS :]),
        kept=sorted(job.recent),
        past=job.learner.past(),
    )


def _blank(records: Sequence[VersionRecord]) -> list[VersionRecord]:
    """Without what devices say of these versions, which is in the memo, and newer there."""
    return [msgspec.structs.replace(r, holdout=Holdout(), reported=Reported()) for r in records]
