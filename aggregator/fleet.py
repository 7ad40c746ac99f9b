"""What is known of each device, from its own words in the log. Pure.

What people ask all the time, how many devices are in which state and what they do for a job, is counted as it changes,
so that an answer does not go through ten thousand devices.
"""

from bisect import insort
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from edge_client.wire.messages import DeviceInfo, DeviceState, TaskStatus


class TaskRecord(msgspec.Struct):
    """A device's last word on one job, and the verdicts on what it sent."""

    status: TaskStatus | None = None
    at: float = 0.0
    accepted: int = 0
    rejected: dict[str, int] = {}


class DeviceRecord(msgspec.Struct):
    """One device; `seen` is the Unix time of its last message."""

    device: str
    state: Literal["ready", "disconnected", "lost", "unknown"] = "unknown"
    conn_seq: int = 0
    cohort: str = "all"
    seen: float = 0.0
    info: DeviceInfo | None = None
    tasks: dict[str, TaskRecord] = {}


@dataclass(slots=True)
class Tally:
    """Of one job: what connected devices said last that they do for it, and what was refused, by code."""

    doing: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)


class Fleet:
    """All devices that ever spoke, by id; `names` are sorted, `states` counts devices, `tallies` are by job.

    The records are changed by its methods alone, which keep the counts right.
    """

    def __init__(self, devices: dict[str, DeviceRecord] | None = None) -> None:
        self.devices = devices or {}
        self.touched: dict[
            str, int
        ] = {}  # by device, a number that grows with each change: who shows them redraws those
        self._changes = 0
        self.names = sorted(self.devices)
        self.states: Counter[str] = Counter()
        self.tallies: dict[str, Tally] = {}
        self._texts: dict[str, str] = {}
        for record in self.devices.values():
            self._count(record, 1)
            for job, task in record.tasks.items():
                self._tally(job).rejected.update(task.rejected)

    def device(self, device: str, at: float) -> DeviceRecord:
        """The record of a device that spoke at Unix time `at`, about to be changed."""
        record = self.devices.get(device)
        if record is None:
            record = self.devices[device] = DeviceRecord(device)
            insort(self.names, device)
            self._count(record, 1)
        record.seen = max(record.seen, at)
        self._touch(device)
        return record

    def task(self, device: str, job: str, at: float) -> TaskRecord:
        """The record of a device's part in a job."""
        return self.device(device, at).tasks.setdefault(job, TaskRecord())

    def state(self, device: str, state: DeviceState, at: float) -> bool:
        """Apply a birth, farewell or will; False when it is the will of a connection already replaced."""
        record = self.device(device, at)
        if state.conn_seq < record.conn_seq:
            return False
        self._count(record, -1)
        record.state, record.conn_seq, record.cohort = state.state, state.conn_seq, state.cohort
        self._count(record, 1)
        self._texts.pop(device, None)
        return True

    def info(self, device: str, info: DeviceInfo, at: float) -> None:
        """A device described itself."""
        self.device(device, at).info = info
        self._texts.pop(device, None)

    def status(self, device: str, job: str, status: TaskStatus, at: float) -> None:
        """Apply a status unless a newer one is known."""
        task = self.task(device, job, at)
        if task.status is not None and status.rev < task.status.rev:
            return
        if self.devices[device].state == "ready":
            doing = self._tally(job).doing
            if task.status is not None:
                _add(doing, task.status.state, -1)
            _add(doing, status.state, 1)
        task.status, task.at = status, at
        self._texts.pop(device, None)

    def text(self, record: DeviceRecord) -> str:
        """What a search looks into of a device's words, casefolded."""
        text = self._texts.get(record.device)
        if text is None:
            words = [record.device, record.cohort]
            if record.info is not None:
                words += [record.info.software, record.info.arch, *(d.name for d in record.info.datasets)]
            words += [task.status.reason for task in record.tasks.values() if task.status is not None]
            text = self._texts[record.device] = "\n".join(words).casefold()
        return text

    def reject(self, device: str, job: str, code: str, at: float) -> None:
        """Something that a device sent for a job was refused."""
        task = self.task(device, job, at)
        task.rejected[code] = task.rejected.get(code, 0) + 1
        self._tally(job).rejected[code] += 1

    def forget(self, device: str) -> None:
        """Remove a device."""
        record = self.devices.pop(device, None)
        if record is None:
            return
        self.names.remove(device)
        self._texts.pop(device, None)
        self._count(record, -1)
        for job, task in record.tasks.items():
            for code, count in task.rejected.items():
                _add(self._tally(job).rejected, code, -count)

    def drop(self, job: str) -> None:
        """Remove what devices did for a job."""
        self.tallies.pop(job, None)
        for record in self.devices.values():
            if record.tasks.pop(job, None) is not None:
                self._texts.pop(record.device, None)
                self._touch(record.device)

    def tally(self, job: str) -> Tally:
        """What devices do for a job."""
        return self.tallies.get(job) or Tally()

    def _touch(self, device: str) -> None:
        self._changes += 1
        self.touched[device] = self._changes

    def _tally(self, job: str) -> Tally:
        return self.tallies.setdefault(job, Tally())

    def _count(self, record: DeviceRecord, by: int) -> None:
        """Count a device's state, and while it is connected what it does, in or out."""
        _add(self.states, record.state, by)
        if record.state == "ready":
            for job, task in record.tasks.items():
                if task.status is not None:
                    _add(self._tally(job).doing, task.status.state, by)


def _add(counts: Counter[str], key: str, by: int) -> None:
    """Add, and keep no zeros."""
    counts[key] += by
    if not counts[key]:
        del counts[key]
