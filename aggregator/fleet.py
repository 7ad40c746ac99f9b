"""What is known of each device, from its own words in the log. Pure."""

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


class Fleet:
    """All devices that ever spoke, by id."""

    def __init__(self, devices: dict[str, DeviceRecord] | None = None) -> None:
        self.devices = devices or {}
        self.touched: dict[
            str, int
        ] = {}  # by device, a number that grows with each change: who shows them redraws those
        self._changes = 0

    def device(self, device: str, at: float) -> DeviceRecord:
        """The record of a device that spoke at Unix time `at`, about to be changed."""
        record = self.devices.get(device)
        if record is None:
            record = self.devices[device] = DeviceRecord(device)
        record.seen = max(record.seen, at)
        self._changes += 1
        self.touched[device] = self._changes
        return record

    def task(self, device: str, job: str, at: float) -> TaskRecord:
        """The record of a device's part in a job."""
        return self.device(device, at).tasks.setdefault(job, TaskRecord())

    def state(self, device: str, state: DeviceState, at: float) -> bool:
        """Apply a birth, farewell or will; False when it is the will of a connection already replaced."""
        record = self.device(device, at)
        if state.conn_seq < record.conn_seq:
            return False
        record.state, record.conn_seq, record.cohort = state.state, state.conn_seq, state.cohort
        return True

    def status(self, device: str, job: str, status: TaskStatus, at: float) -> None:
        """Apply a status unless a newer one is known."""
        task = self.task(device, job, at)
        if task.status is None or status.rev >= task.status.rev:
            task.status, task.at = status, at
