"""The aggregator's loop: read the log in order, feed the jobs, perform what they decide.

One task does all of this, so a job is never seen half-changed; the API calls the same object between steps.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import msgspec
import structlog

from aggregator.audit import AuditLog
from aggregator.board import Board
from aggregator.clocks import waited
from aggregator.deadletters import DeadLetters, Place
from aggregator.downlink import Downlink
from aggregator.errors import AggregatorError, CorruptStateError, NotFoundError, RefusedError, StrategyError
from aggregator.fleet import Fleet
from aggregator.intake import Intake, Taken
from aggregator.job import Job
from aggregator.jobstore import JobRecord, JobStore, blobs_used
from aggregator.journal import Journal
from aggregator.marks import Marks
from aggregator.memo import Memo, MemoStore
from aggregator.progress import Progress
from aggregator.recall import recall
from aggregator.retention import needed
from aggregator.shelf import BundleShelf
from aggregator.spec import JobSpec
from aggregator.stream import Stream
from aggregator.versions import load_cached
from broker_bridge.cells import FanCell
from broker_bridge.ports import Conflict, CorruptStorage, Entry, PortError, Ports, StorageError, StorageFull
from broker_bridge.storage import RETRY_MAX_S, RETRY_MIN_S
from edge_client.wire import topics
from edge_client.wire.limits import FANOUT_BYTES_MAX
from edge_client.wire.messages import JobEnd, Metrics
from edge_client.wire.sparse import Update

READ_LIMIT = 256  # entries of one partition per look: keeps a step short under load
TRIM_INTERVAL_S = 30.0  # trimming at each memo would double the writes
REST_AFTER_S = 300.0  # an ended job keeps its arrays so long: by then its last updates have come
TICK_S = 0.25  # deadlines (leases, max-wait, job ends) are looked at this often when nothing arrives

T = TypeVar("T")
log = structlog.get_logger()


class Engine:
    """All jobs of one engine URL."""

    def __init__(self, ports: Ports, cache: Path, clock: Callable[[], float] = time.time) -> None:
        self.ports = ports
        self.shelf = BundleShelf(ports, cache)
        self.stream = Stream()
        self.journal = Journal(self.stream.publish)
        self.audit = AuditLog(ports.heads)
        self.marks = Marks(ports.heads)
        self.clock = clock
        self._stopping = asyncio.Event()
        self._stepped = asyncio.Event()  # set, and replaced, with each step
        self._stale = True  # memory may be ahead of what is stored, or behind: load before anything else
        self.ready = asyncio.Event()
        self.trouble = ""  # why storage does not take anything now

    async def load(self) -> None:
        """Take up the stored state; also after another engine won a race."""
        store, memos = JobStore(self.ports, self.shelf), MemoStore(self.ports.heads, self.ports.blobs)
        memo = await memos.load()
        jobs = await store.load(memo.jobs)
        dead = DeadLetters(self.ports.heads, self.ports.blobs)
        await asyncio.gather(self.audit.load(), self.marks.load(), dead.load())
        # From here to the next await nobody sees a mixture: the API reads these while the engine loads again.
        self.store, self._memos, self._downlink = store, memos, Downlink(self.ports.heads)
        self._board, self._progress = Board(), Progress(self.ports.heads)
        self.dead = dead
        self.fleet, self.jobs = Fleet(memo.devices), jobs
        self._memo_offsets = {p: memo.offsets.get(p, 0) for p in range(self.ports.partitions)}
        self.cursor = {
            p: min([self._memo_offsets[p], *(job.folded.get(p, 0) for job in self.jobs.values())])
            for p in range(self.ports.partitions)
        }
        self._trim_at = 0.0
        self._dirty = False
        self._intake = Intake(self.fleet, self.jobs, self.store.records, self.marks, store.damaged)
        self._put_aside = {name: memo.jobs[name] for name in store.damaged if name in memo.jobs}
        self._unread = store.damaged.keys() - memo.jobs.keys()
        await recall(self.journal, self.ports.log, self.cursor, dead)
        for job in self.jobs.values():
            job.leases.away(*self.marks.all_paused())  # the memo may be of before the pause
            await self._announce(job)
        self._stale = False
        self.ready.set()

    async def run(self) -> None:
        """Work until `stop`. A lost race loads again; so does storage that fails, after a pause that grows.

        What was not stored did not happen: devices hear of a version, an assignment or an end only after it was.
        """
        pause = RETRY_MIN_S
        while not self._stopping.is_set():
            try:
                if self._stale:
                    await self.load()
                await self._step()
                self.trouble, pause = "", RETRY_MIN_S
                if not self._stale:
                    await self._wait()
            except Conflict as error:
                log.warning("engine.lost_race", error=str(error))
                self._stale = True
            except CorruptStorage:
                raise
            except StorageError as error:
                log.error("storage_failed", what="engine", error=str(error), retry_s=pause)  # noqa: TRY400
                self._stale = True
                full = isinstance(error, StorageFull)
                self.trouble = "the disk is full" if full else "storage fails; the server's log says how"
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), pause)
                pause = min(2 * pause, RETRY_MAX_S)
        self.stream.close()
        if not self._stale:
            await self._save_memo()

    def stop(self) -> None:
        """Ask `run` to end after its current step."""
        self._stopping.set()

    # -- what people ask -----------------------------------------------------------------------------

    async def create(self, spec: JobSpec) -> JobRecord:
        """Start a job and offer it; raise RefusedError."""
        job = await self._stored(self.store.create(spec, self.clock()))
        job.folded = dict(self.cursor)
        self.jobs[spec.name] = job
        await self._announce(job)
        self._dirty = True
        self._tell_job(spec.name)
        log.info("job.started", job=spec.name, parameters=job.bundle.parameters)
        return self.store.records[spec.name]

    async def end(self, name: str, reason: str) -> JobRecord:
        """End a job: withdraw the offer, tell its devices, and commit what is buffered."""
        job = self._unended(name)
        await self._stored(self.store.end(job, reason, self.clock()))
        self._tell_job(name)
        log.info("job.ended", job=name, reason=reason, version=job.version)
        await self._announce(job)
        await self._downlink.fan(name, None)
        for device in sorted(job.participants):
            await self._say_end(device, name)
        self._dirty = True
        return self.store.records[name]

    async def pause(self, name: str) -> None:
        """Assign no more devices; those that train may finish, and conditions that end the job still do."""
        self._unended(name)
        if self.store.records[name].state == "paused":
            raise RefusedError("paused", f"job {name} is paused already")
        await self.store.change(name, state="paused")
        self._tell_job(name)

    async def resume(self, name: str) -> None:
        """Assign devices again."""
        self._unended(name)
        if self.store.records[name].state != "paused":
            raise RefusedError("running", f"job {name} is not paused")
        await self.store.change(name, state="running")
        self._tell_job(name)

    async def promote(self, name: str, version: int | None) -> None:
        """Give people this version, whose model is stored, unless they ask for another; None: no longer any."""
        job = self.jobs[name]
        await self.store.change(name, promoted=version)
        job.promoted = version
        self._tell_job(name)

    async def delete(self, name: str) -> None:
        """Delete an ended job with its versions; raise RefusedError (`running`)."""
        job = self.jobs.get(name)
        if job is None:
            raise NotFoundError(f"no job named {name}")
        self.store.deletable(name)
        if job.due(self.clock(), draining=True):
            raise RefusedError("running", f"the last updates of job {name} are being folded; try again")
        del self.jobs[name]
        try:  # what the broker retains goes first: after a crash in between the job is there to be deleted again
            await self._stored(self._downlink.erase(job.spec.cohort, name))
            await self._stored(self.store.delete(job, blobs_used(self.jobs.values())))
        except PortError:
            if name in self.store.records:
                self.jobs[name] = job
            raise
        self.fleet.drop(name)
        self._dirty = True
        self.stream.publish("job", {"name": name, "state": "deleted"})
        log.info("job.deleted", job=name)

    def _unended(self, name: str) -> Job:
        job = self.jobs.get(name)
        if job is None:
            raise NotFoundError(f"no job named {name}")
        record = self.store.records[name]
        if record.state == "ended":
            raise RefusedError("ended", f"job {name} has ended already: {record.reason}")
        return job

    def _tell_job(self, name: str) -> None:
        record = self.store.records[name]
        data = {"name": name, "state": record.state, "reason": record.reason, "promoted": record.promoted}
        self.stream.publish("job", data)

    def evaluated(self, name: str, version: int, metrics: Metrics) -> None:
        """A version was evaluated on the job's test set."""
        job = self.jobs.get(name)
        if job is not None:
            job.history.on_testset[version] = metrics
            self._dirty = True

    async def _stored(self, change: Awaitable[T]) -> T:
        """Make a change that takes several writes; when one fails the next step begins with what is stored."""
        try:
            return await change
        except StorageError:
            self._stale = True
            raise

    # -- the loop ------------------------------------------------------------------------------------

    async def _step(self) -> None:
        fed, behind = set[str](), False
        for partition in range(self.ports.partitions):
            entries = await self.ports.log.read(partition, self.cursor[partition], READ_LIMIT)
            behind |= len(entries) == READ_LIMIT
            for entry, update in self._intake.ahead(entries):
                intake = await self._take(Place(partition, entry.offset), entry, update)
                if intake is None:
                    return
                self.cursor[partition] = entry.offset
                self._dirty = True
                for device, name, reason in intake.ends:
                    await self._say_end(device, name, reason)
                for device, name in intake.left:
                    await self._downlink.drop(topics.end(device, name))
                    await self._downlink.drop(topics.assign(device, name))
                if intake.forgotten:
                    await self.marks.drop(intake.forgotten)
                    await self._downlink.forget(intake.forgotten, self.jobs)
                    # A replay would take from the device what it got since it came back.
                    await self._save_memo()
                if intake.job is not None:
                    fed.add(intake.job.spec.name)
                    await self._commit_due(intake.job, more=True)
        now = self.clock()
        for job in list(self.jobs.values()):
            await self._look_after(job, now, more=behind and job.spec.name in fed)
        told = self._board.due(self.fleet, self.jobs, self.store.records, now)
        await asyncio.gather(*(self._downlink.say(topic, message) for topic, message in told.items()))
        if self._dirty and self._memos.due(now):
            await self._save_memo()
        await self._progress.tell(self.cursor, now)
        self._stepped.set()
        self._stepped = asyncio.Event()

    async def reached(self, partition: int, offset: int) -> None:
        """Return once this entry of the log was taken."""
        while self.cursor[partition] < offset:
            await self._stepped.wait()

    async def _look_after(self, job: Job, now: float, *, more: bool) -> None:
        """What time brings a job: a version, assignments, its end, and long after that its rest."""
        await self._commit_due(job, more=more)
        record = self.store.records.get(job.spec.name)  # None: deleted while another job was looked at
        if record is None:
            return
        if record.state in ("running", "paused"):
            await self._lead(job, now)
        elif now - (record.ended_at or 0.0) >= REST_AFTER_S and not (
            job.resting or job.buffered or job.broken
        ):
            job.rest()

    async def _take(self, place: Place, entry: Entry, update: Update | None) -> Taken | None:
        """What follows from an entry; None when all must be loaded anew first: it was put aside, or wakes a job."""
        if place in self.dead:
            return Taken()
        try:
            if self._intake.wakes(place.partition, entry):
                self._stale = True
                return None
            wanted = self._intake.wants(entry)
            blob = None if wanted is None else await self._cached(wanted, entry.uid)
            fresh = place.offset > self._memo_offsets[place.partition]
            taken = self._intake.take(place.partition, entry, fresh=fresh, blob=blob, update=update)
            self.journal.take(place.partition, entry)
        except (PortError, AggregatorError):
            raise
        except Exception as error:  # whatever it is, met again at each start it would block the log for ever
            if self.dead.full:
                raise
            log.exception("entry.put_aside", uid=entry.uid, partition=place.partition, offset=place.offset)
            await self.dead.put(place, entry, f"{type(error).__name__}: {error}", self.clock())
            self._stale = True  # it may have been taken by half
            return None
        return taken

    async def _lead(self, job: Job, now: float) -> None:
        reason = job.over(now)
        if reason is not None:
            await self.end(job.spec.name, reason)
            return
        if self.store.records[job.spec.name].state == "paused":
            return
        granted = await self.store.grant(job, now)
        self._dirty |= bool(granted)
        await asyncio.gather(
            *(self._downlink.say(topics.assign(device, job.spec.name), a) for device, a in granted)
        )

    async def _commit_due(self, job: Job, *, more: bool) -> None:
        record = self.store.records.get(job.spec.name)
        draining = record is not None and record.state == "ended"
        if record is None or not job.due(self.clock(), draining=draining, more=more):
            return
        try:
            sealed = job.seal(self.clock(), self.cursor, draining=draining)
        except StrategyError as error:
            job.broken = str(error)
            log.error("strategy.failed", job=job.spec.name, version=job.version, error=str(error))  # noqa: TRY400
            return
        await self.store.commit(job, sealed)
        await self._hand_out(job, draining=draining)
        await self._downlink.say(topics.version(job.spec.cohort, job.spec.name), job.notice())
        self.stream.publish("version", {"job": job.spec.name, **msgspec.to_builtins(job.notice())})
        log.info(
            "version.committed",
            job=job.spec.name,
            version=job.version,
            updates=sum(sealed.manifest.bases.values()),
            bases=sealed.manifest.bases,
            bytes_delta=len(sealed.delta),
            lag_norm=round(sealed.manifest.lag_norm, 6),
        )

    async def _hand_out(self, job: Job, *, draining: bool) -> None:
        """Have the newest delta published to the devices that follow, if any do."""
        delta, name = job.manifest.delta, job.spec.name
        if (
            draining
            or delta is None
            or delta.size > FANOUT_BYTES_MAX
            or not job.audience.listens(self.clock())
        ):
            return
        await self._downlink.fan(name, FanCell(job.spec.cohort, job.version, delta.digest))

    async def _announce(self, job: Job) -> None:
        name, cohort = job.spec.name, job.spec.cohort
        if self.store.records[name].state != "ended":
            await self._downlink.say(topics.offer(cohort, name), job.offer())
        else:
            await self._downlink.clear(topics.offer(cohort, name))
        await self._downlink.say(topics.version(cohort, name), job.notice())

    async def _say_end(self, device: str, name: str, reason: str = "") -> None:
        record = self.store.records.get(name)
        reason = reason or (record.reason if record else "this server knows no such job")
        await self._downlink.say(topics.end(device, name), JobEnd(job=name, reason=reason))

    async def _save_memo(self) -> None:
        """Store a memo, but for when a damaged job's own was lost: once mended it needs the log read again."""
        now = self.clock()
        self._dirty = False
        if self._unread:
            return
        memo = Memo(
            offsets=dict(self.cursor),
            devices=self.fleet.devices,
            jobs=self._put_aside | {name: job.memo(self.cursor) for name, job in self.jobs.items()},
        )
        await self._memos.save(memo, now)
        if waited(self._trim_at, TRIM_INTERVAL_S, now):
            self._trim_at = now
            await self._trim()

    async def _trim(self) -> None:
        """Forget what nobody needs; nothing while a job is damaged, since what that needs is not known."""
        if self.store.damaged:
            return
        for partition, cursor in self.cursor.items():
            await self.ports.log.trim(partition, needed(partition, cursor, self.jobs.values()))

    async def _cached(self, digest: str, uid: str) -> bytes | None:
        """A frame of a job's cache; without one that is damaged the update is folded uncalibrated."""
        try:
            return await load_cached(self.ports.blobs, digest)
        except CorruptStateError as error:
            log.error("cache.damaged", uid=uid, error=str(error))  # noqa: TRY400
            return None

    async def _wait(self) -> None:
        waits = [
            asyncio.create_task(self.ports.log.wait(partition, offset))
            for partition, offset in self.cursor.items()
        ]
        stop = asyncio.create_task(self._stopping.wait())
        done, pending = await asyncio.wait(
            [*waits, stop], timeout=TICK_S, return_when=asyncio.FIRST_COMPLETED
        )
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        for task in done:
            task.result()
