"""What happened lately, from the log: verdicts on updates, and a timeline of each device. Pure.

It is bounded and not stored: after a restart it is made again of the entries that the log still has.
"""

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

import msgspec

from broker_bridge.ports import Entry, Kind
from broker_bridge.records import EvaluationRecord, EventRecord, RejectionRecord, UpdateRecord
from edge_client.wire.messages import Ask, DeviceInfo, DeviceState, Evaluation, TaskStatus, decode
from edge_client.wire.topics import Uid

UPDATES_KEPT = 1000  # verdicts, of all devices together
TIMELINE_KEPT = 48  # moments of one device: some ten participations
TIMELINE_DEVICES = 10_000  # devices with a timeline, those that spoke last: 100 MB at the most
TEXT_MAX = 300  # characters of a device's own words that are kept; they come from a stranger


class Verdict(msgspec.Struct, frozen=True):
    """What was said to an update; `code` and `reason` are empty when it was accepted."""

    number: int
    at: float
    uid: str
    device: str
    job: str
    verdict: str
    code: str = ""
    reason: str = ""
    bytes: int | None = None


class Moment(msgspec.Struct, frozen=True):
    """One thing a device did or was told; `what` and `detail` are its own words, or a verdict's."""

    at: float
    kind: str
    job: str = ""
    what: str = ""
    detail: str = ""


class Journal:
    """The newest verdicts and moments; `tell` is called with each that is new as an event."""

    def __init__(self, tell: Callable[[Any, dict[str, Any]], None]) -> None:
        self.updates: deque[Verdict] = deque(maxlen=UPDATES_KEPT)
        self._tell = tell
        self._number = 0
        self._timelines: OrderedDict[str, deque[Moment]] = OrderedDict()
        self._seen: dict[int, int] = {}

    def timeline(self, device: str) -> list[Moment]:
        """What is known of a device's doings, newest first."""
        return list(reversed(self._timelines.get(device, ())))

    def note(self, device: str, moment: Moment) -> None:
        """Note and tell what an operator did to a device."""
        self._keep(device, moment)
        self._say(device, moment)

    def take(self, partition: int, entry: Entry, *, live: bool = True) -> None:
        """Note an entry of the log unless it was noted before; tell of it when it is `live`."""
        if entry.offset <= self._seen.get(partition, 0):
            return
        self._seen[partition] = entry.offset
        match entry.kind:
            case Kind.UPDATE:
                self._update(entry, live=live)
            case Kind.REJECTION:
                self._rejection(entry, live=live)
            case Kind.EVALUATION:
                uid, record = Uid.parse(entry.uid), msgspec.msgpack.decode(entry.body, type=EvaluationRecord)
                version = decode(Evaluation, record.payload).version
                self._keep(uid.device, Moment(record.at, "evaluation", uid.job, f"version {version}"))
            case Kind.EVENT:
                self._event(entry, live=live)

    def _update(self, entry: Entry, *, live: bool) -> None:
        uid, record = Uid.parse(entry.uid), msgspec.msgpack.decode(entry.body, type=UpdateRecord)
        self._verdict(uid, record.at, "accepted", size=record.wire_bytes, live=live)
        self._keep(uid.device, Moment(record.at, "update", uid.job, "accepted", f"{record.wire_bytes} B"))

    def _rejection(self, entry: Entry, *, live: bool) -> None:
        uid, record = Uid.parse(entry.uid), msgspec.msgpack.decode(entry.body, type=RejectionRecord)
        self._verdict(uid, record.at, "rejected", record.code, record.message[:TEXT_MAX], live=live)
        self._keep(
            uid.device, Moment(record.at, "rejection", uid.job, record.code, record.message[:TEXT_MAX])
        )

    def _verdict(
        self,
        uid: Uid,
        at: float,
        verdict: str,
        code: str = "",
        reason: str = "",
        *,
        size: int | None = None,
        live: bool,
    ) -> None:
        self._number += 1
        note = Verdict(self._number, at, str(uid), uid.device, uid.job, verdict, code, reason, size)
        self.updates.append(note)
        if live:
            self._tell("update" if not code else "rejection", msgspec.to_builtins(note))

    def _event(self, entry: Entry, *, live: bool) -> None:
        record = msgspec.msgpack.decode(entry.body, type=EventRecord)
        moment = _moment(record)
        if record.topic == "forget":
            self._forget(record.device)
        else:
            self._keep(record.device, moment)
        if live:
            self._say(record.device, moment)

    def _say(self, device: str, moment: Moment) -> None:
        self._tell("device", {"device": device, **msgspec.to_builtins(moment)})

    def _forget(self, device: str) -> None:
        self._timelines.pop(device, None)
        self.updates = deque((u for u in self.updates if u.device != device), maxlen=UPDATES_KEPT)

    def _keep(self, device: str, moment: Moment) -> None:
        if device not in self._timelines:
            self._timelines[device] = deque(maxlen=TIMELINE_KEPT)
            if len(self._timelines) > TIMELINE_DEVICES:
                self._timelines.popitem(last=False)
        self._timelines.move_to_end(device)
        self._timelines[device].append(moment)


class _At(msgspec.Struct, array_like=True):
    at: float


def happened_at(entry: Entry) -> float:
    """The Unix time of an entry, which every record begins with."""
    return msgspec.msgpack.decode(entry.body, type=_At).at


def _moment(record: EventRecord) -> Moment:
    at, payload = record.at, record.payload
    match record.topic:
        case "state":
            state = decode(DeviceState, payload)
            return Moment(at, "birth" if state.state == "ready" else "gone", what=state.state)
        case "info":
            return Moment(at, "info", what=decode(DeviceInfo, payload).software[:TEXT_MAX])
        case "ask":
            ask = decode(Ask, payload)
            holds = "no version" if ask.holds is None else f"version {ask.holds}"
            return Moment(at, "ask", ask.job, holds, f"{ask.n_samples} samples")
        case "forget":
            return Moment(at, "forgotten")
    status = decode(TaskStatus, payload)
    return Moment(at, "task", record.job, status.state, status.reason[:TEXT_MAX])
