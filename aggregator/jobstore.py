"""Jobs in the ports: create, load, commit a version, end. The shell around `job.Job`."""

import asyncio
import hashlib
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from aggregator import testset
from aggregator.admission import job_cell, version_cell
from aggregator.errors import CorruptStateError, NotFoundError, RefusedError
from aggregator.hidden import State
from aggregator.job import Job, JobMemo
from aggregator.learner import Learner, Sealed
from aggregator.spec import JobSpec, check_bundle
from aggregator.testset import TestSet
from aggregator.versions import (
    VersionManifest,
    first,
    load_delta,
    load_manifest,
    load_model,
    load_slots,
    load_state,
    load_sums,
    put_manifest,
    record,
)
from broker_bridge import cells
from broker_bridge.ports import Conflict, CorruptBlob, Digest, MissingBlob, PortError, Ports
from broker_bridge.ports.files import storage_error
from edge_client.bundle import PARAMS, Bundle, BundleError, open_bundle
from edge_client.wire import grid
from edge_client.wire.errors import RemoteWireError
from edge_client.wire.messages import Assignment, BlobRef
from firmware_tools.errors import ToolError
from firmware_tools.inspect import inspect

SPEC_PREFIX = "spec/"
S = TypeVar("S", bound=msgspec.Struct)


class JobRecord(msgspec.Struct):
    """A job as people see it; the head `spec/<job>`."""

    spec: JobSpec
    bundle: BlobRef
    created_at: float
    state: Literal["running", "ended"] = "running"
    ended_at: float | None = None
    reason: str = ""


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
        self.records: dict[str, JobRecord] = {}
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
        """Load every job at its newest version; raise CorruptStateError."""
        jobs = {}
        for change in await self._ports.heads.list(SPEC_PREFIX):
            if change.value is None:
                continue
            job_record = decode_head(change.key, change.value, JobRecord)
            name = job_record.spec.name
            self._revisions[change.key] = change.revision
            self.records[name] = job_record
            bundle, _ = await self._shelf.open(job_record.bundle.digest)
            cell = b""
            for key in (cells.version_key(name), cells.job_key(name)):
                self._revisions[key], cell = await self._ports.heads.load(key)
            if self._revisions[cells.version_key(name)] == 0:
                jobs[name] = await self._begin(job_record, bundle)  # the engine died inside `create`
                continue
            jobs[name] = await self._resume(job_record, bundle, memos.get(name, JobMemo()))
            if cell != msgspec.json.encode(job_cell(jobs[name], job_record.state)):  # it died inside `end`
                await self._swing(cells.job_key(name), job_cell(jobs[name], job_record.state))
        return jobs

    async def commit(self, job: Job, sealed: Sealed) -> None:
        """Store a version and swing the head to it (I3); raise Conflict when another engine was first."""
        blobs = self._ports.blobs
        await asyncio.gather(*(blobs.put(data) for data in sealed.blobs))
        digest = await put_manifest(blobs, sealed.manifest)
        surplus = job.advance(sealed, digest)
        job.history.add(record(digest, sealed.manifest))
        await self._swing(cells.version_key(job.spec.name), version_cell(job))
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

    async def _resume(self, job_record: JobRecord, bundle: Bundle, memo: JobMemo) -> Job:
        blobs = self._ports.blobs
        _, value = await self._ports.heads.load(cells.version_key(job_record.spec.name))
        digest = decode_head("the version", value, cells.VersionCell).manifest
        chain = [(digest, await load_manifest(blobs, digest))]
        while chain[-1][1].parent:
            parent = chain[-1][1].parent
            chain.append((parent, await load_manifest(blobs, parent)))
        state = await load_state(blobs, chain[0][1], bundle.manifest.sizes)
        job = self._job(job_record, bundle, (*chain[0], state))
        for ancestor_digest, ancestor in reversed(chain):
            job.history.add(record(ancestor_digest, ancestor))
            job.learner.recall(ancestor)
        await self._fill(job.learner)
        job.recall(memo)
        stored = {digest async for digest in blobs.list()}
        job.recent = {m.version: m for _, m in reversed(chain) if m.keyframe.digest in stored}
        if job_record.state == "running":
            for version in range(max(1, job.oldest), job.version + 1):
                job.paths.extend(version, await load_delta(blobs, job.recent[version]))
                if job_record.spec.mixing:
                    model = await load_model(blobs, job.recent[version], bundle.manifest.sizes)
                    job.learner.remember(version, model)
        return job

    async def _fill(self, learner: Learner) -> None:
        """Load what the newest version says of the next besides its model."""
        blobs, manifest = self._ports.blobs, learner.manifest
        learner.slots = await load_slots(blobs, manifest)
        sums = await load_sums(blobs, manifest)
        if sums is not None:
            learner.cache.sums, learner.cache.weight = sums, manifest.cache_weight

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
