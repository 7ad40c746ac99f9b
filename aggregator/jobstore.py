"""Jobs in the ports: create, load, commit a version, end. The shell around `job.Job`."""

import asyncio
import contextlib
import math
from collections.abc import Iterable
from typing import Any, Literal

import msgspec
import structlog

from aggregator import resume, testset
from aggregator.admission import job_cell, version_cell
from aggregator.clocks import waited
from aggregator.errors import CorruptStateError, NotFoundError, RefusedError
from aggregator.heads import decode_head
from aggregator.hidden import State
from aggregator.job import Job, JobMemo
from aggregator.learner import Sealed
from aggregator.shelf import BundleShelf
from aggregator.snapshot import Snapshots
from aggregator.spec import JobSpec, check_bundle
from aggregator.versions import (
    VersionManifest,
    all_blobs_of,
    first,
    load_manifest,
    put_manifest,
    record,
    reference,
)
from broker_bridge import cells
from broker_bridge.ports import Change, Conflict, CorruptBlob, Digest, MissingBlob, PortError, Ports
from edge_client.bundle import PARAMS, Bundle
from edge_client.wire.messages import Assignment, BlobRef

SPEC_PREFIX = "spec/"
VERIFY_S = 60.0  # so long a blob is taken to be sound: a device that pulled in vain asks again after 15 s
VERIFIED_MAX = 1000
log = structlog.get_logger()


class JobRecord(msgspec.Struct):
    """A job as people see it; the head `spec/<job>`.

    A `paused` job assigns no devices. A `deleted` one keeps this record alone, because a name is used once (I12).
    `promoted` is the version that people chose to be given unless they ask for another.
    """

    spec: JobSpec
    bundle: BlobRef
    created_at: float
    state: Literal["running", "paused", "ended", "deleted"] = "running"
    ended_at: float | None = None
    reason: str = ""
    promoted: int | None = None
    damage: str = ""  # what was lost of it and how it went on


class JobStore:
    """Keeps jobs in heads and blobs; one engine writes at a time, a second one gets Conflict."""

    def __init__(self, ports: Ports, shelf: BundleShelf) -> None:
        self._ports = ports
        self._shelf = shelf
        self._snapshots = Snapshots(ports.heads, ports.blobs)
        self.records: dict[str, JobRecord] = {}
        self.damaged: dict[str, str] = {}  # jobs that could not be loaded, and why
        self._revisions: dict[str, int] = {}
        self._verified: dict[str, float] = {}  # when a blob that assignments name was last read whole

    async def check(self, spec: JobSpec) -> tuple[Bundle, BlobRef]:
        """The bundle of a job that may start as it is; raise RefusedError (`exists`, `not_found`, `bad_spec`)."""
        bundle, ref = await self._shelf.open(spec.bundle)
        check_bundle(spec, bundle.manifest)
        if spec.testset is not None:
            testset.fit(await self._shelf.testset(spec.testset), bundle.manifest.data)
        if (await self._ports.heads.load(f"{SPEC_PREFIX}{spec.name}"))[0] != 0:
            raise _taken(spec.name)
        return bundle, ref

    async def create(self, spec: JobSpec, now: float) -> Job:
        """Start a job at version 0; raise RefusedError (`exists`, `not_found`, `bad_spec`)."""
        bundle, ref = await self.check(spec)
        job_record = JobRecord(spec=spec, bundle=ref, created_at=now)
        key = f"{SPEC_PREFIX}{spec.name}"
        try:  # a name is used once: the cell must not exist, whatever is known of it here
            self._revisions[key] = await self._ports.heads.swing(key, 0, msgspec.json.encode(job_record))
        except Conflict as error:
            raise _taken(spec.name) from error
        return await self._begin(job_record, bundle)

    async def load(self, memos: dict[str, JobMemo]) -> dict[str, Job]:
        """Load every job at its newest version; one that cannot be is named in `damaged`, and does not stop others."""
        jobs: dict[str, Job] = {}
        deleted = []
        stored = {str(digest) async for digest in self._ports.blobs.list()}
        for change in await self._ports.heads.list(SPEC_PREFIX):
            name = change.key.removeprefix(SPEC_PREFIX)
            try:
                job = await self._load(change, memos.get(name, JobMemo()), stored)
                if job is None:
                    deleted.append(name)
                else:
                    jobs[name] = job
            except (CorruptStateError, NotFoundError) as error:
                self.damaged[name] = str(error)
                log.error("job.damaged", job=name, error=str(error))  # noqa: TRY400 - the message says what
        if not self.damaged:  # or what they need of others is not known
            for name in deleted:  # in case it died inside `delete`
                await self._free(name, blobs_used(jobs.values()), memos.get(name, JobMemo()).merged)
        return jobs

    async def _load(self, change: Change, memo: JobMemo, stored: set[str]) -> Job | None:
        """A job, None when it was deleted."""
        job_record = decode_head(change.key, change.value or b"", JobRecord)
        name = job_record.spec.name
        self._revisions[change.key] = change.revision
        if job_record.state == "deleted":
            return None
        self.records[name] = job_record
        bundle, _ = await self._shelf.open(job_record.bundle.digest)
        values = {}
        for key in (cells.version_key(name), cells.job_key(name)):
            self._revisions[key], values[key] = await self._ports.heads.load(key)
        if self._revisions[cells.version_key(name)] == 0:
            return await self._begin(job_record, bundle)  # the engine died inside `create`
        version = decode_head(cells.version_key(name), values[cells.version_key(name)], cells.VersionCell)
        job = await self._resume(job_record, bundle, version, memo, stored)
        cell = job_cell(job, job_record.state)
        if values[cells.job_key(name)] != msgspec.json.encode(cell):  # it died inside `end`
            await self._swing(cells.job_key(name), cell)
        return job

    async def commit(self, job: Job, sealed: Sealed) -> None:
        """Store a version and swing the head to it (I3); raise Conflict when another engine was first."""
        blobs = self._ports.blobs
        await asyncio.gather(*(blobs.put(data) for data in sealed.blobs))
        digest = await put_manifest(blobs, sealed.manifest)
        surplus = job.advance(sealed, digest)
        job.history.add(record(digest, sealed.manifest))
        await self._swing(cells.version_key(job.spec.name), version_cell(job))
        await self._snapshots.save_due(job)
        for surplus_digest in surplus:
            await blobs.delete(Digest(surplus_digest))

    async def grant(self, job: Job, now: float) -> list[tuple[str, Assignment]]:
        """Assignments for a job's free places, when every blob they name is stored."""
        granted = job.grant(now)
        for merged in job.paths.take_fresh():
            await self._ports.blobs.put(merged)
        for digest in {blob.digest for _, assignment in granted for blob in assignment.model}:
            await self._verify(job, digest, now)
        return granted

    async def _verify(self, job: Job, digest: str, now: float) -> None:
        """Store a blob again that is missing or damaged: devices would ask for it in vain until a restart."""
        if not waited(self._verified.get(digest, -math.inf), VERIFY_S, now):
            return
        if len(self._verified) >= VERIFIED_MAX:
            self._verified.clear()
        try:
            await self._ports.blobs.get(Digest(digest))
        except (MissingBlob, CorruptBlob) as error:
            data = job.again(digest)
            log.error("blob.damaged", job=job.spec.name, error=str(error), mended=data is not None)  # noqa: TRY400
            if data is None or reference(data).digest != digest:
                return
            await self._ports.blobs.put(data)
        self._verified[digest] = now

    async def end(self, job: Job, reason: str, now: float) -> None:
        """Mark a job ended; admission refuses its updates from when it sees this."""
        await self.change(job.spec.name, state="ended", ended_at=now, reason=reason)
        await self._swing(cells.job_key(job.spec.name), job_cell(job, "ended"))

    async def change(self, name: str, **fields: Any) -> None:
        """Change a job's record; raise Conflict when another engine did."""
        before = self.records[name]
        after = msgspec.structs.replace(before, **fields)
        self.records[name] = after  # at once: whoever asks meanwhile is told
        try:
            await self._swing(f"{SPEC_PREFIX}{name}", after)
        except PortError:
            self.records[name] = before
            raise

    def revision(self, name: str) -> int:
        """Of a job's record: grows with each change of it, not with its figures."""
        return self._revisions[f"{SPEC_PREFIX}{name}"]

    def deletable(self, name: str) -> None:
        """Raise RefusedError (`running`, `damaged`) while a job must not be deleted."""
        if self.records[name].state != "ended":
            raise RefusedError("running", f"job {name} has not ended; stop it first")
        if self.damaged:  # what they share with this one is not known
            raise RefusedError("damaged", f"first mend {', '.join(self.damaged)}: fedfleet doctor")

    async def delete(self, job: Job, used: set[str]) -> None:
        """Delete an ended job, and its blobs but for those `used` elsewhere; what remains is that it was."""
        name = job.spec.name
        await self.change(name, state="deleted")
        del self.records[name]
        await self._free(name, used, job.paths.merged)

    async def _free(self, name: str, used: set[str], merged: dict[int, list[str]]) -> None:
        """Delete the blobs, then the cells of a deleted job; can be done again when it was cut short."""
        heads, blobs = self._ports.heads, self._ports.blobs
        _, value = await heads.load(cells.version_key(name))
        chain: list[tuple[str, VersionManifest]] = []
        digest = decode_head("the version", value, cells.VersionCell).manifest if value else ""
        with contextlib.suppress(CorruptStateError):  # cut short: what comes before this one is deleted
            while digest:
                chain.append((digest, await load_manifest(blobs, digest)))
                digest = chain[-1][1].parent
        gone = {name for names in merged.values() for name in names}
        for digest, manifest in reversed(chain):
            for named in {ref.digest for ref in all_blobs_of(manifest)} | gone:
                if named not in used:
                    await blobs.delete(Digest(named))
            await blobs.delete(Digest(digest))
            gone = set()
        await self._snapshots.drop(name)
        for key in (cells.job_key(name), cells.version_key(name)):
            revision, _ = await heads.load(key)
            if revision:
                await heads.drop(key, revision)
            self._revisions.pop(key, None)

    async def _begin(self, job_record: JobRecord, bundle: Bundle) -> Job:
        keyframe = bundle.member(PARAMS)
        manifest, state = first(job_record.spec.name, keyframe, bundle.manifest.sizes, job_record.created_at)
        await self._ports.blobs.put(keyframe)
        digest = await put_manifest(self._ports.blobs, manifest)
        job = self._job(job_record, bundle, (digest, manifest, state))
        job.history.add(record(digest, manifest))
        await self._swing(cells.job_key(job.spec.name), job_cell(job, job_record.state))
        await self._swing(cells.version_key(job.spec.name), version_cell(job))
        return job

    async def _resume(
        self, job_record: JobRecord, bundle: Bundle, cell: cells.VersionCell, memo: JobMemo, stored: set[str]
    ) -> Job:
        blobs, name, sizes = self._ports.blobs, job_record.spec.name, bundle.manifest.sizes
        if cell.version == 0:  # its key-frame is the bundle's, which was verified
            await blobs.put(bundle.member(PARAMS))
        found = await resume.newest(blobs, cell, sizes)
        job = self._job(job_record, bundle, (found.digest, found.manifest, found.state))
        await resume.recall(blobs, job, await self._snapshots.load(name), stored)
        job.learner.slots = found.slots
        if found.sums is not None:
            job.learner.cache.sums, job.learner.cache.weight = found.sums, found.manifest.cache_weight
        # What a memo calls folded may lie in the lost version alone.
        job.recall(msgspec.structs.replace(memo, folded={}) if found.damage else memo)
        job.promoted = job_record.promoted
        if job_record.state != "ended":
            await resume.reach(blobs, job, sizes)
        if found.damage:
            log.error("version.lost", job=name, damage=found.damage)
            await self._swing(cells.version_key(name), version_cell(job))
            self.records[name] = msgspec.structs.replace(job_record, damage=found.damage)
            await self._swing(f"{SPEC_PREFIX}{name}", self.records[name])
        return job

    def _job(self, job_record: JobRecord, bundle: Bundle, head: tuple[str, VersionManifest, State]) -> Job:
        self.records[job_record.spec.name] = job_record
        return Job(job_record.spec, bundle.manifest, job_record.bundle, job_record.created_at, head)

    async def _swing(self, key: str, value: msgspec.Struct) -> None:
        expected = self._revisions.get(key, 0)
        self._revisions[key] = await self._ports.heads.swing(key, expected, msgspec.json.encode(value))


def blobs_used(jobs: Iterable[Job]) -> set[str]:
    """Digests of all blobs that these jobs need; jobs on one bundle share their first model."""
    used = set()
    for job in jobs:
        used |= {ref.digest for m in (*job.recent.values(), job.manifest) for ref in all_blobs_of(m)}
        used |= {digest for merged in job.paths.merged.values() for digest in merged}
        used |= {job.bundle_ref.digest, job.spec.testset or ""}
    return used


def _taken(name: str) -> RefusedError:
    return RefusedError("exists", f"a job named {name} exists, or did; choose another name")
