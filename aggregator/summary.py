"""The fleet at one look: how many devices do what, how fast updates come, what they cost, what needs a person. Pure."""

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any, Literal

import msgspec

from aggregator.job import Job
from aggregator.journal import Verdict
from aggregator.roster import Row

MINUTES = 60  # of the update rate
REASONS_MAX = 8  # why devices decline, the most frequent
REJECTED_SHARE = 0.1  # of the newest verdicts, from which on a person should look
VERDICTS_MIN = 20  # fewer say nothing about a share
SILENT_S = 60.0  # the bridge writes its counters each second in which anything happens
STUCK_S = 600.0  # a job with devices that made no version for so long
DENSE_BYTES = 4  # of one weight of a dense fp32 update

Level = Literal["bad", "warn", "note"]


class Alert(msgspec.Struct, frozen=True):
    """Something a person should know; `job` and `doing` or `state` say what to look at, "" for nothing."""

    level: Level
    text: str
    job: str = ""
    state: str = ""
    doing: str = ""


def devices(rows: Sequence[Row]) -> dict[str, Any]:
    """How many devices are connected how, and do what; and the most frequent reasons to decline."""
    software = Counter(map(attrgetter("software"), rows))
    reasons = Counter(row.reason for row in rows if row.doing == "declined")
    return {
        "total": len(rows),
        "states": Counter(map(attrgetter("state"), rows)),
        "doings": Counter(map(attrgetter("doing"), rows)),
        "declined": [{"reason": r, "devices": n} for r, n in reasons.most_common(REASONS_MAX)],
        "software": [
            {"software": s or "unknown", "devices": n} for s, n in software.most_common(REASONS_MAX)
        ],
    }


def rate(jobs: Iterable[Job], now: float) -> list[int]:
    """Updates that went into versions, a minute each, the last MINUTES of them, oldest first."""
    begin = now - 60 * MINUTES
    minutes = [0] * MINUTES
    for job in jobs:
        for record in reversed(job.history.records):
            if record.at < begin:
                break
            minutes[min(MINUTES - 1, max(0, int((record.at - begin) / 60)))] += record.updates
    return minutes


def cost(jobs: Iterable[Job]) -> dict[str, int]:
    """Bytes that updates took, and would have taken as dense fp32."""
    up = dense = updates = 0
    for job in jobs:
        totals = job.history.totals
        updates += totals.updates
        up += totals.bytes_up
        dense += totals.updates * job.bundle.parameters * DENSE_BYTES
    return {"updates": updates, "bytes_up": up, "bytes_dense": dense}


def verdicts(newest: Sequence[Verdict] | deque[Verdict]) -> dict[str, Any]:
    """What was said to the newest updates, and which codes the refused got."""
    codes = Counter(verdict.code for verdict in newest if verdict.code)
    refused = sum(codes.values())
    return {"accepted": len(newest) - refused, "rejected": refused, "codes": dict(codes.most_common())}


def alerts(
    found: Mapping[str, Any],
    judged: Mapping[str, Any],
    jobs: Mapping[str, Job],
    *,
    trouble: str,
    damaged: Iterable[str],
    dead_letters: int,
    now: float,
) -> list[Alert]:
    """What needs a person, worst first. `found` is from `devices`, `judged` from `verdicts`."""
    notes: list[Alert] = []
    if trouble:
        notes.append(Alert("bad", f"The server waits: {trouble}. Nothing is lost; it goes on by itself."))
    notes += [
        Alert("bad", f"Job {name} cannot be loaded; fedfleet doctor says what is damaged.")
        for name in damaged
    ]
    if dead_letters:
        notes.append(
            Alert(
                "bad", f"{_count(dead_letters, 'log entry', 'log entries')} could not be taken and lie aside."
            )
        )
    for name, job in jobs.items():
        notes += _of_job(name, job, found, now)
    if late := found["doings"].get("late", 0):
        notes.append(
            Alert(
                "warn",
                f"{_count(late, 'device is', 'devices are')} late: silent past the lease.",
                doing="late",
            )
        )
    if lost := found["states"].get("lost", 0):
        notes.append(Alert("warn", f"{_count(lost, 'device is', 'devices are')} lost.", state="lost"))
    if failed := found["doings"].get("failed", 0):
        notes.append(
            Alert(
                "warn", f"On {_count(failed, 'device', 'devices')} the last attempt failed.", doing="failed"
            )
        )
    if found["declined"]:
        declined, first = found["doings"].get("declined", 0), found["declined"][0]["reason"]
        text = f"{_count(declined, 'device declines', 'devices decline')}, most often: {first}"
        notes.append(Alert("note", text, doing="declined"))
    total = judged["accepted"] + judged["rejected"]
    if total >= VERDICTS_MIN and judged["rejected"] > REJECTED_SHARE * total:
        code = next(iter(judged["codes"]))
        share = judged["rejected"] / total
        notes.append(
            Alert("warn", f"{share:.0%} of the newest {total} updates were rejected, most often: {code}.")
        )
    order = ("bad", "warn", "note")
    return sorted(notes, key=lambda note: order.index(note.level))


def _of_job(name: str, job: Job, found: Mapping[str, Any], now: float) -> list[Alert]:
    """Alerts of one job that has not ended."""
    if job.broken:
        return [Alert("bad", f"Job {name} makes no versions: {job.broken}", job=name)]
    if not found["states"].get("ready", 0):
        return [Alert("warn", f"Job {name} has nobody to train on: no device is online.", job=name)]
    newest = job.history.records[-1].at if job.history.records else job.created_at
    if job.leases.held and now - newest > STUCK_S:
        minutes = int((now - newest) / 60)
        return [Alert("warn", f"Job {name} has made no version for {minutes} minutes.", job=name)]
    return []


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"
