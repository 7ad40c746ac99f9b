"""Why a device trains or does not, in sentences for the person who asks. Pure."""

from collections.abc import Collection, Mapping, Sequence

import msgspec

from aggregator.fleet import DeviceRecord, TaskRecord
from aggregator.leases import Leases
from aggregator.marks import Pause

_AWAY = {
    "lost": "Its connection broke without a farewell {ago}. It goes on by itself when it is back.",
    "disconnected": "It said farewell and disconnected {ago}. It goes on by itself when it is started again.",
    "unknown": "It never said that it is there. Is its daemon running, and allowed to publish its state?",
}


class Because(msgspec.Struct, frozen=True):
    """`training` says whether it works for `job` ("" where no job is concerned) now; `text` says why or why not."""

    job: str
    training: bool
    text: str


class Work(msgspec.Struct, frozen=True):
    """What a device has to know of a job that has not ended.

    `places` are those of the job, of a job with a `barrier` those of its round. Who is `barred` gets none before the
    next version. `trouble` says why the server can give none at all, "" when it can.
    """

    name: str
    paused: bool
    cohort: str
    dataset: str
    places: int
    lease_s: float
    barrier: bool = False
    barred: Collection[str] = ()
    trouble: str = ""


def why(
    record: DeviceRecord,
    paused: Pause | None,
    works: Sequence[Work],
    leases: Mapping[str, Leases],
    now: float,
) -> list[Because]:
    """A sentence for each job that has not ended, or one when none comes into question."""
    if record.state != "ready":
        return [Because("", training=False, text=_AWAY[record.state].format(ago=_ago(now - record.seen)))]
    if not works:
        return [Because("", training=False, text="No job is running: there is nothing to train.")]
    found = [_for_job(record, work, leases[work.name], now) for work in works]
    if paused is None:
        return found
    text = (
        f"It was paused by {paused.by} {_ago(now - paused.at)}: it gets no place until somebody resumes it."
    )
    return [*(because for because in found if because.training), Because("", training=False, text=text)]


def _for_job(record: DeviceRecord, work: Work, leases: Leases, now: float) -> Because:
    task = record.tasks.get(work.name)
    state = task.status.state if task is not None and task.status is not None else None
    if task is not None and state in ("training", "pulling", "uploading"):
        return _busy(task, work, now)
    return Because(work.name, training=False, text=_idle(record, work, leases, task, state))


def _busy(task: TaskRecord, work: Work, now: float) -> Because:
    assert task.status is not None
    silent_s = now - task.at
    if silent_s > work.lease_s:
        text = f"It took a place and was last heard of {_ago(silent_s)}; its lease of {work.lease_s:g} s is over."
        return Because(work.name, training=False, text=text)
    progress = task.status.progress
    match task.status.state:
        case "pulling":
            text = "It is fetching the model."
        case "uploading":
            text = "It has trained and is sending its update."
        case _:
            text = "It is training." if progress is None else f"It is training, {progress:.0%} done."
    return Because(work.name, training=True, text=text)


def _idle(
    record: DeviceRecord, work: Work, leases: Leases, task: TaskRecord | None, state: str | None
) -> str:
    reason = task.status.reason if task is not None and task.status is not None else ""
    if work.cohort not in (record.cohort, "all"):
        return f"The job is offered to the cohort {work.cohort}; this device is in {record.cohort}."
    if state == "declined":
        return f"It declined: {reason}."
    if state == "failed":
        return f"Its last attempt failed: {reason}. It tries again by itself."
    if work.paused:
        return "The job is paused: no device gets a place."
    if record.device in leases.held:
        return "It was given a place and has not begun yet."
    if record.device in leases.waiting:
        return _waiting(record.device, work, leases)
    if record.info is not None and work.dataset not in (
        names := [data.name for data in record.info.datasets]
    ):
        has = f"it lends {', '.join(names)}" if names else "it lends no data at all"
        return f"The job wants the data set {work.dataset}; {has}."
    if state == "ended":
        return f"It ended its part: {reason}." if reason else "It ended its part."
    if state == "asking":  # the ask is on its way, or was lost, or came while the device was paused
        return (
            "It asks for a place, and the server has no such ask of it so far; it asks again after a while."
        )
    return "It has not asked for a place yet; devices ask again after a while."


def _waiting(device: str, work: Work, leases: Leases) -> str:
    """Why a device whose ask is here has no place: that all are taken is but one reason."""
    taken, waiting = len(leases.held), len(leases.waiting)
    if device in work.barred and work.barrier:
        return "It is willing and has given its update of this round; it gets a place in the next one."
    if device in work.barred:
        return (
            "It is willing, and has given as many updates to the version in the making as count of one device "
            "(robust.device_share_max); it gets a place once that version is made."
        )
    wait = f"{waiting} {'device waits' if waiting == 1 else 'devices wait'}"
    if taken >= work.places and work.barrier:
        return f"It is willing and waits for the next round: all places of this one are taken, and {wait}."
    if taken >= work.places:
        return f"It is willing and waits for a place: {taken} of {work.places} are taken, and {wait}."
    if work.trouble:
        return f"It is willing, and there are free places, but the server waits: {work.trouble}."
    return f"It is willing, and free places are given out in a moment: {taken} of {work.places} are taken."


def _ago(seconds: float) -> str:
    for unit, name in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= unit:
            count = int(seconds / unit)
            return f"{count} {name}{'s' * (count != 1)} ago"
    return "less than a minute ago"
