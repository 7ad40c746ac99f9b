"""Jobs in the ports: create, load, commit a version, end. The shell around `job.Job`."""

import asyncio
import hashlib
from pathlib import Path
from typing import Literal, TypeVar

import msgspec
import structlog

from aggregator import resume, testset
from aggregator.admission import job_cell, version_cell
from aggregator.errors import CorruptStateError, NotFoundError, RefusedError
from aggregator.hidden import State
from aggregator.job import Job, JobMemo
from aggregator.learner import Sealed
from aggregator.snapshot import Snapshots
from aggregator.spec import JobSpec, check_bundle
from aggregator.testset import TestSet
from aggregator.versions import VersionManifest, first, put_manifest, record
from broker_bridge import cells
from broker_bridge.ports import Change, Conflict, CorruptBlob, Digest, MissingBlob, PortError, Ports
from broker_bridge.ports.files import storage_error
from edge_client.bundle import PARAMS, Bundle, BundleError, open_bundle
from edge_client.wire import grid
from edge_client.wire.errors import RemoteWireError
from edge_client.wire.messages import Assignment, BlobRef
from firmware_tools.errors import ToolError
from firmware_tools.inspect import inspect

SPEC_PREFIX = "spec/"
log = structlog.get_logger()
S = TypeVar("S", bound=msgspec.Struct)


class JobRecord(msgspec.Struct):
    """A job as people see it; the head `spec/<job>`."""

    spec: JobSpec
    bundle: BlobRef
    created_at: float
    state: Literal["running", "ended"] = "running"
    ended_at: float | None = None
    reason: str = ""
    damage: str = ""  # what was lost of it and how it went on


class BundleShelf:
    """Bundles as blobs, opened through a directory of verified copies."""

    def __init__(self, ports: Ports, cache: Path) -> None:
        self._ports = ports
        self._cache = cache

    async def add(self, data: bytes) -> tuple[Bundle, str]:
        """Check and store a bundle, return it and its digest; raise RefusedError (`bad_bundle`)."""
        path = self._cache / f"{hashlib.sha256(data).hexdigest()}.bundle"
        _copy(path, data)
        try:
            await asyncio.to_thread(
                inspect, path
            )  # every member and graph: devices would fail on it one by one
            bundle = open_bundle(path)
            grid.decode(bundle.member(PARAMS), bundle.manifest.sizes)
        except (BundleError, ToolError, RemoteWireError) as error:
            path.unlink(missing_ok=True)  # the same bytes may be refused twice at the same time
            raise RefusedError("bad_bundle", str(error).replace(f"{path}: ", "")) from error
        return bundle, await self._ports.blobs.put(data)

    async def open(self, digest: str) -> tuple[Bundle, BlobRef]:
        """Open a stored bundle; raise NotFoundError."""
        try:
            data = await self._ports.blobs.get(Digest(digest))
        except (MissingBlob, CorruptBlob) as error:
            raise NotFoundError(f"there is no bundle {digest[:80]!r}; upload it first") from error
        path = (
            self._cache / f"{digest}.bundle"
        )  # a blob has this digest, so it is one and names no other file
        _copy(path, data)
        try:
            return open_bundle(path), BlobRef(digest, len(data))
        except BundleError as error:
            path.unlink()
            raise NotFoundError(f"{digest[:12]} is stored, but is not a bundle") from error

    async def add_testset(self, data: bytes) -> str:
        """Check and store a test set, return its digest; raise RefusedError (`bad_testset`)."""
        await asyncio.to_thread(testset.read, data)
        return await self._ports.blobs.put(data)

    async def testset(self, digest: str) -> TestSet:
        """A stored test set; raise NotFoundError, or RefusedError (`bad_testset`) when it is something else."""
        try:
            data = await self._ports.blobs.get(Digest(digest))
        except (MissingBlob, CorruptBlob) as error:
            raise NotFoundError(f"there is no test set {digest[:80]!r}; upload it first") from error
        return await asyncio.to_thread(testset.read, data)


def _copy(path: Path, data: bytes) -> None:
    """Have a copy of a blob in the cache; raise StorageError. It is compared at each use, so it is not synced."""
    temporary = path.with_suffix(".part")
    try:
        if path.exists() and path.read_bytes() == data:
            return
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        raise storage_error(path, error) from error


class JobStore:
    """Keeps jobs in heads and blobs; one engine writes at a time, a second one gets Conflict."""

    def __init__(self, ports: Ports, shelf: BundleShelf) -> None:
        self._ports = ports
        self._shelf = shelf
        self._snapshots = Snapshots(ports.heads, ports.blobs)
        self.records: dict[str, JobRecord] = {}
        self.damaged: dict[str, str] = {}  # jobs that could not be loaded, and why
        self._revisions: dict[str, int] = {}

    async def create(self, spec: JobSpec, now: float) -> Job:
        """Start a job at version 0; raise RefusedError (`exists`, `not_found`, `bad_spec`)."""
        bundle, ref = await self._shelf.open(spec.bundle)
        check_bundle(spec, bundle.manifest)
        if spec.testset is not None:
            testset.fit(await self._shelf.testset(spec.testset), bundle.manifest.data)
        job_record = JobRecord(spec=spec, bundle=ref, created_at=now)
        key = f"{SPEC_PREFIX}{spec.name}"
        try:  # a name is used once: the cell must not exist, whatever is known of it here
            self._revisions[key] = await self._ports.heads.swing(key, 0, msgspec.json.encode(job_record))
        except Conflict as error:
            raise RefusedError("exists", f"a job named {spec.name} exists; choose another name") from error
        return await self._begin(job_record, bundle)

    async def load(self, memos: dict[str, JobMemo]) -> dict[str, Job]:
        """Load every job at its newest version; one that cannot be is named in `damaged`, and does not stop others."""
        jobs = {}
        stored = {str(digest) async for digest in self._ports.blobs.list()}
        for change in await self._ports.heads.list(SPEC_PREFIX):
            name = change.key.removeprefix(SPEC_PREFIX)
            try:
                jobs[name] = await self._load(change, memos.get(name, JobMemo()), stored)
            except (CorruptStateError, NotFoundError) as error:
                self.damaged[name] = str(error)
                log.error("job.damaged", job=name, error=str(error))  # noqa: TRY400 - the message says what
        return jobs

    async def _load(self, change: Change, memo: JobMemo, stored: set[str]) -> Job:
        job_record = decode_head(change.key, change.value or b"", JobRecord)
        name = job_record.spec.name
        self._revisions[change.key] = change.revision
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
        return granted

    async def end(self, job: Job, reason: str, now: float) -> None:
        """Mark a job ended; admission refuses its updates from when it sees this."""
        before = self.records[job.spec.name]
        ended = msgspec.structs.replace(before, state="ended", ended_at=now, reason=reason)
        self.records[job.spec.name] = ended  # at once: whoever asks meanwhile is told that it has ended
        try:
            await self._swing(f"{SPEC_PREFIX}{job.spec.name}", ended)
        except PortError:
            self.records[job.spec.name] = before
            raise
        await self._swing(cells.job_key(job.spec.name), job_cell(job, ended.state))

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
        if job_record.state == "running":
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


def decode_head(key: str, value: bytes, kind: type[S]) -> S:
    """Decode a cell this program wrote; raise CorruptStateError when it is not of its form any more."""
    try:
        return msgspec.json.decode(value, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CorruptStateError(f"head {key}: {error}") from error
