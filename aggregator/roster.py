"""The fleet as a table: a row a device, found by filters, sorted, counted by facet. Pure.

Ten thousand rows are asked for again and again while people scroll and type, so a row is made anew only when its
device changed.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Literal, NamedTuple

import msgspec

from aggregator.fleet import DeviceRecord, Fleet, TaskRecord
from aggregator.marks import Mark

Doing = Literal["training", "late", "waiting", "failed", "paused", "declined", "idle", "away"]
DOINGS: tuple[Doing, ...] = ("training", "late", "waiting", "failed", "paused", "declined", "idle", "away")
Sort = Literal["device", "state", "doing", "reason", "cohort", "seen", "accepted", "rejected", "software"]
FACETS = ("state", "doing", "reason", "cohort", "tag", "software")
FACET_VALUES_MAX = 50  # of one facet, the most frequent: a list that people choose from

_DOING: dict[str, Doing] = {
    "training": "training",
    "pulling": "training",
    "uploading": "training",
    "asking": "waiting",
    "failed": "failed",
    "declined": "declined",
}


class Row(msgspec.Struct, frozen=True):
    """One device. `job` is the one that `doing` and `reason` are about, "" for none.

    `due` is the Unix time after which a device that trains is late: it was silent for longer than its lease.
    """

    device: str
    state: str
    doing: Doing
    job: str
    reason: str
    seen: float
    cohort: str
    tags: list[str]
    software: str
    accepted: int
    rejected: int
    due: float | None
    text: str  # what a search looks into


class Query(NamedTuple):
    """Which devices; None and "" let all through."""

    q: str = ""
    state: str | None = None
    doing: str | None = None
    reason: str | None = None
    cohort: str | None = None
    tag: str | None = None
    software: str | None = None


class Found(NamedTuple):
    """Rows in order, and by facet how many devices each value has under the other filters."""

    rows: list[Row]
    facets: dict[str, Counter[str]]


class Roster:
    """Rows of all devices; `leases_s` are the leases of the jobs that have not ended, by name."""

    def __init__(self) -> None:
        self._fleet: Fleet | None = None
        self._leases_s: dict[str, float] = {}
        self._rows: dict[str, tuple[tuple[int, int], Row]] = {}

    def rows(
        self,
        fleet: Fleet,
        leases_s: Mapping[str, float],
        marks: Callable[[str], Mark],
        revision: Callable[[str], int],
        now: float,
    ) -> list[Row]:
        """All rows at Unix time `now`; `revision` grows when somebody changes a device's `marks`."""
        if fleet is not self._fleet or self._leases_s != leases_s:
            self._fleet, self._leases_s, self._rows = fleet, dict(leases_s), {}
        known, touched = self._rows, fleet.touched
        for name, record in fleet.devices.items():
            mark = (touched.get(name, 0), revision(name))
            entry = known.get(name)
            if entry is None or entry[0] != mark:
                known[name] = (mark, _row(record, fleet.text(record), marks(name), self._leases_s))
        if len(known) > len(fleet.devices):
            for name in known.keys() - fleet.devices.keys():
                del known[name]
                touched.pop(name, None)
        return [
            row if row.due is None or row.due >= now else msgspec.structs.replace(row, doing="late")
            for _, row in known.values()
        ]


def find(rows: Sequence[Row], query: Query, sort: Sort, *, descending: bool = False) -> Found:
    """The rows that pass all filters, sorted; equal ones by device."""
    if query.q:
        q = query.q.casefold()
        rows = [row for row in rows if q in row.text]
    wanted = [(name, value) for name in FACETS if (value := getattr(query, name)) is not None]
    passed: list[Row] = []
    nearly: dict[str, list[Row]] = {name: [] for name in FACETS}  # those that this filter alone keeps out
    for row in rows:
        misses = [name for name, value in wanted if not _has(row, name, value)]
        if not misses:
            passed.append(row)
        elif len(misses) == 1:
            nearly[misses[0]].append(row)
    passed.sort(key=attrgetter("device"), reverse=descending and sort == "device")
    if sort == "doing":
        passed.sort(key=lambda row: DOINGS.index(row.doing), reverse=descending)
    elif sort != "device":
        passed.sort(key=attrgetter(sort), reverse=descending)
    return Found(passed, {name: _count(name, passed) + _count(name, nearly[name]) for name in FACETS})


def _has(row: Row, name: str, value: str) -> bool:
    return value in row.tags if name == "tag" else bool(getattr(row, name) == value)


def _count(name: str, rows: Sequence[Row]) -> Counter[str]:
    if name == "tag":
        return Counter(tag for row in rows for tag in row.tags)
    counts = Counter(map(attrgetter(name), rows))
    del counts[""]
    return counts


def _row(record: DeviceRecord, text: str, mark: Mark, leases_s: Mapping[str, float]) -> Row:
    doing, job, task = _doing(record, leases_s)
    status = None if task is None else task.status
    reason = status.reason if status is not None and doing in ("declined", "failed") else ""
    if mark.paused is not None and doing in ("waiting", "failed", "declined", "idle"):
        doing, reason = "paused", f"paused by {mark.paused.by}"
    due = task.at + leases_s[job] if task is not None and doing == "training" else None
    software = record.info.software if record.info is not None else ""
    words = [text, *(word.casefold() for word in (record.state, job, reason, *mark.tags))]
    return Row(
        device=record.device,
        state=record.state,
        doing=doing,
        job=job,
        reason=reason,
        seen=record.seen,
        cohort=record.cohort,
        tags=mark.tags,
        software=software,
        accepted=sum(task.accepted for task in record.tasks.values()),
        rejected=sum(sum(task.rejected.values()) for task in record.tasks.values()),
        due=due,
        text="\n".join(words),
    )


def _doing(record: DeviceRecord, leases_s: Mapping[str, float]) -> tuple[Doing, str, TaskRecord | None]:
    """What a device does for the jobs that have not ended, of several the first of DOINGS; and for which."""
    if record.state != "ready":
        return "away", "", None
    found = [
        (DOINGS.index(doing), name, task)
        for name, task in record.tasks.items()
        if name in leases_s
        and task.status is not None
        and (doing := _DOING.get(task.status.state)) is not None
    ]
    if not found:
        return "idle", "", None
    index, name, task = min(found, key=lambda item: item[:2])
    return DOINGS[index], name, task
