"""What one log entry means for the fleet and its job. Pure.

Replay after a restart begins at the oldest offset that anything needs: updates are skipped below a job's
folded offset, everything else below the memo's (`fresh` is False).
"""

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import msgspec

from aggregator.fleet import Fleet
from aggregator.job import Job
from aggregator.jobstore import JobRecord
from aggregator.marks import Marks
from broker_bridge.decoding import attempt
from broker_bridge.ports import Entry, Kind
from broker_bridge.records import EvaluationRecord, EventRecord, RejectionRecord, UpdateRecord
from edge_client.wire import together
from edge_client.wire.errors import RemoteWireError
from edge_client.wire.messages import CODECS, Ask, DeviceInfo, DeviceState, Evaluation, TaskStatus, decode
from edge_client.wire.sparse import Update
from edge_client.wire.topics import Uid

UNKNOWN_JOB = "unknown"
NO_CODEC = f"no codec in common: the server takes {', '.join(CODECS)}; update the device's software"


@dataclass(slots=True)
class Taken:
    """What follows from an entry: `job` got an update; `left` removed a workspace.

    `ends` are to be told that a job is over for them: device, job, and why ("": as the job's record says). `forgotten`
    names a device that an operator had forgotten.
    """

    job: Job | None = None
    ends: list[tuple[str, str, str]] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)
    forgotten: str = ""


class Intake:
    """Applies entries to fleet and jobs, which it shares with the engine."""

    def __init__(
        self,
        fleet: Fleet,
        jobs: dict[str, Job],
        records: dict[str, JobRecord],
        marks: Marks,
        damaged: Collection[str] = (),
    ) -> None:
        self._marks = marks
        self._damaged = damaged
        self._fleet = fleet
        self._jobs = jobs
        self._records = records

    def wants(self, entry: Entry) -> str | None:
        """The digest of a blob that `take` needs for this entry, None when it needs none."""
        if entry.kind is not Kind.UPDATE:
            return None
        uid = Uid.parse(entry.uid)
        job = self._jobs.get(uid.job)
        return None if job is None else job.wants(uid.device)

    def wakes(self, partition: int, entry: Entry) -> bool:
        """Whether an entry is an update of a job that rests: one that admission took just before the job ended."""
        if entry.kind is not Kind.UPDATE:
            return False
        job = self._jobs.get(Uid.parse(entry.uid).job)
        return job is not None and job.resting and entry.offset > job.folded.get(partition, 0)

    def ahead(self, entries: list[Entry]) -> Iterator[tuple[Entry, Update | None]]:
        """Entries in their order with the updates they hold, many decoded together shortly before they are due.

        None where there is no update, or where it takes `take` to say what is wrong with it.
        """
        start = 0
        while start < len(entries):
            end, size = start, 0
            while end < len(entries) and (
                end == start or size + len(entries[end].body) <= together.BYTES_MAX
            ):
                size += len(entries[end].body)
                end += 1
            updates = self._decoded(entries[start:end])
            yield from ((entry, updates.get(entry.offset)) for entry in entries[start:end])
            start = end

    def _decoded(self, entries: list[Entry]) -> dict[int, Update]:
        """The updates of these entries by offset."""
        frames: dict[str, dict[int, bytes]] = {}
        for entry in entries:
            if entry.kind is Kind.UPDATE:
                with contextlib.suppress(msgspec.DecodeError, RemoteWireError):  # `take` meets it again
                    record = msgspec.msgpack.decode(entry.body, type=UpdateRecord)
                    frames.setdefault(Uid.parse(entry.uid).job, {})[entry.offset] = record.frame
        found: dict[int, Update] = {}
        for name, of_job in frames.items():
            job = self._jobs.get(name)
            if job is not None and len(of_job) > 1:
                bundle = job.bundle
                decoded = attempt(list(of_job.values()), bundle.sizes, len(bundle.statistics))
                found |= {o: u for o, u in zip(of_job, decoded, strict=True) if isinstance(u, Update)}
        return found

    def take(
        self,
        partition: int,
        entry: Entry,
        *,
        fresh: bool,
        blob: bytes | None = None,
        update: Update | None = None,
    ) -> Taken:
        """Apply one entry; `blob` is the one that `wants` named, `update` what `ahead` gave with it."""
        taken = Taken()
        if entry.kind in (Kind.UPDATE, Kind.EVALUATION) and Uid.parse(entry.uid).job in self._damaged:
            return taken  # the log keeps it until the job is mended
        if entry.kind is Kind.UPDATE:
            self._update(partition, entry, taken, blob, fresh=fresh, update=update)
        elif fresh and entry.kind is Kind.EVALUATION:
            self._evaluation(entry)
        elif fresh and entry.kind is Kind.REJECTION:
            self._rejection(entry)
        elif fresh and entry.kind is Kind.EVENT:
            self._event(entry, taken)
        return taken

    def _update(
        self,
        partition: int,
        entry: Entry,
        taken: Taken,
        blob: bytes | None,
        *,
        fresh: bool,
        update: Update | None,
    ) -> None:
        uid = Uid.parse(entry.uid)
        job = self._jobs.get(uid.job)
        if job is None:  # it was deleted, with all that was learned
            return
        record = msgspec.msgpack.decode(entry.body, type=UpdateRecord)
        if fresh:
            self._fleet.task(uid.device, uid.job, record.at).accepted += 1
        if entry.offset > job.folded.get(partition, 0):
            job.update(uid.device, record.frame, record.wire_bytes, record.at, blob, update=update)
            taken.job = job

    def _evaluation(self, entry: Entry) -> None:
        uid = Uid.parse(entry.uid)
        record = msgspec.msgpack.decode(entry.body, type=EvaluationRecord)
        self._fleet.device(uid.device, record.at)
        if uid.job in self._jobs:
            self._jobs[uid.job].history.evaluated(decode(Evaluation, record.payload))

    def _rejection(self, entry: Entry) -> None:
        uid = Uid.parse(entry.uid)
        record = msgspec.msgpack.decode(entry.body, type=RejectionRecord)
        # A name nobody offered is counted as one, so that made-up names cannot fill the memory (I6).
        name = uid.job if uid.job in self._jobs else UNKNOWN_JOB
        self._fleet.reject(uid.device, name, record.code, record.at)
        if uid.job in self._jobs:
            self._jobs[uid.job].leases.release(uid.device, record.at)

    def _event(self, entry: Entry, taken: Taken) -> None:
        record = msgspec.msgpack.decode(entry.body, type=EventRecord)
        device, at = record.device, record.at
        if record.topic == "state":
            self._state(device, decode(DeviceState, record.payload), at, taken)
        elif record.topic == "info":
            self._fleet.info(device, decode(DeviceInfo, record.payload), at)
        elif record.topic == "ask":
            self._ask(device, decode(Ask, record.payload), at, taken)
        elif record.topic == "forget":
            self._forget(device, taken)
        else:
            status = decode(TaskStatus, record.payload)
            if record.job in self._jobs:
                self._fleet.status(device, record.job, status, at)
            if status.state == "ended":
                taken.left.append((device, record.job))
            if status.state in ("failed", "declined", "ended") and record.job in self._jobs:
                self._jobs[record.job].leases.forget(device)

    def _ask(self, device: str, ask: Ask, at: float, taken: Taken) -> None:
        self._fleet.device(device, at)
        if ask.job in self._damaged:
            return  # the device asks again
        if not self._running(ask.job):
            taken.ends.append((device, ask.job, ""))
        elif self._jobs[ask.job].codec(ask) is None:
            taken.ends.append((device, ask.job, NO_CODEC))
        elif not self._marks.paused(device):  # it goes on asking, and is heard once it is resumed
            self._jobs[ask.job].ask(device, ask, at)

    def _forget(self, device: str, taken: Taken) -> None:
        self._fleet.forget(device)
        for job in self._jobs.values():
            job.leases.forget(device)
            job.participants.discard(device)
        taken.forgotten = device

    def _state(self, device: str, state: DeviceState, at: float, taken: Taken) -> None:
        if not self._fleet.state(device, state, at):
            return
        if state.state == "ready":
            taken.ends.extend((device, job, "") for job in state.jobs if not self._running(job))
        else:
            for job in self._jobs.values():
                job.leases.away(device)

    def _running(self, name: str) -> bool:
        if name in self._damaged:  # to be told that it has ended a device would forget it
            return True
        record = self._records.get(name)
        return record is not None and record.state != "ended"
