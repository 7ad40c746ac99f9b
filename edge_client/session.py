"""What the device does for each job: a table of phases and events; no I/O, no clock (DESIGN §7).

`handle(event, now)` returns the actions to perform, `wake` says when the next Tick is due; `now` is
monotonic seconds. Rows on their way to the bridge are outgoing.py's matter; what a phase does is phases.py's.
"""

import random
from collections.abc import Iterable

from edge_client import phases
from edge_client.events import (
    Action,
    Answered,
    Assigned,
    BridgeState,
    Connected,
    DataKnown,
    DeltaSeen,
    Disconnected,
    Event,
    Follow,
    HurryPulls,
    JobEnded,
    JobRow,
    OfferSeen,
    OfferWithdrawn,
    Publish,
    Pulled,
    PullFailed,
    ReceiptSeen,
    Row,
    RowsFound,
    Settle,
    Stored,
    StoreFailed,
    TrainerDied,
)
from edge_client.job import Device, Job, Phase
from edge_client.phases import TABLE
from edge_client.wire.messages import Receipt
from edge_client.wire.topics import Uid


class Session:
    """All jobs of one device. `first_rev` is above every status revision of earlier runs.

    Jobs of earlier runs go on without their offer being seen again: one that has ended meanwhile is told so
    in answer to the birth, which lists it.
    """

    def __init__(
        self,
        *,
        device: str,
        datasets: Iterable[str],
        jobs: Iterable[JobRow],
        rows: Iterable[Row],
        next_ask: int,
        first_rev: int,
        rng: random.Random,
    ) -> None:
        self._device = Device(
            name=device,
            declared=frozenset(datasets),
            rows=rows,
            next_ask=next_ask,
            first_rev=first_rev,
            rng=rng,
        )
        for kept in jobs:
            job = Job(kept.offer, kept.ask, kept.held, saved=True)
            if self._device.outgoing.update_of(job.name) is not None:
                job.phase = Phase.UPLOADING
                job.said = ("uploading", "", None)
            self._device.jobs[job.name] = job

    @property
    def held_jobs(self) -> tuple[str, ...]:
        """Jobs whose workspaces are held, for the birth message."""
        return tuple(sorted(job.name for job in self._device.jobs.values() if job.saved))

    def phase(self, job: str) -> Phase | None:
        """The phase a job is in; None when it is not known."""
        found = self._device.jobs.get(job)
        return None if found is None else found.phase

    @property
    def outgoing(self) -> int:
        """Rows in memory that wait for a receipt."""
        return len(self._device.outgoing)

    @property
    def wake(self) -> float | None:
        """When the next Tick is due; None when nothing waits for time to pass."""
        times = [job.due for job in self._device.jobs.values() if job.due is not None]
        sending = self._device.outgoing.wake
        return min([*times, *([] if sending is None else [sending])], default=None)

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event at `now` and return what is to be done, in order."""
        device = self._device
        self._note(event, now)
        for job in self._concerned(event):
            rule = TABLE.get((job.phase, type(event)))
            if rule is not None:
                rule.step(device, job, event, now)
        phases.start_next(device, now)
        device.actions.extend(device.outgoing.due(now))
        return device.take_actions()

    def restated(self, reason: str = "") -> list[Publish]:
        """What was last said of each job, said again; with a `reason` that is why nothing goes on."""
        device = self._device
        before, device.actions = device.actions, []
        for job in device.jobs.values():
            if job.said is not None:
                state, why, progress = job.said
                device.say(job.name, (state, reason or why, progress))
        said = [action for action in device.actions if isinstance(action, Publish)]
        device.actions = before
        return said

    def _note(self, event: Event, now: float) -> None:
        """Take in what concerns the whole device."""
        device = self._device
        match event:
            case Connected():
                device.connected = True
                device.outgoing.connected(yes=True)
                following = [job.name for job in device.jobs.values() if job.follows]
                device.actions.extend(Follow(name, yes=True) for name in following)
            case Disconnected():
                device.connected = False
                device.outgoing.connected(yes=False)
            case DataKnown():
                device.datasets[event.name] = event.info or event.reason
            case BridgeState() if device.outgoing.bridge(event):
                device.actions.append(HurryPulls())
            case RowsFound(rows):
                device.outgoing.add(rows)
            case DeltaSeen(name) if name not in device.jobs:
                device.actions.append(Follow(name, yes=False))
            case OfferSeen():
                phases.meet(device, event, now)
            case JobEnded(end) if end.job not in device.jobs:
                device.say(end.job, ("ended", end.reason, None))
            case ReceiptSeen(receipt):
                self._settle(receipt)

    def _concerned(self, event: Event) -> list[Job]:
        jobs = self._device.jobs
        match event:
            case OfferSeen(offer):
                names = [offer.job]
            case OfferWithdrawn(name) | Answered(job=name) | TrainerDied(job=name):
                names = [name]
            case Stored(job=name) | StoreFailed(job=name) | DeltaSeen(job=name):
                names = [name]
            case Assigned(assignment):
                names = [assignment.job]
            case JobEnded(end):
                names = [end.job]
            case Pulled(digest) | PullFailed(digest):
                return [job for job in list(jobs.values()) if digest in job.missing]
            case RowsFound():
                names = []
            case ReceiptSeen(receipt):
                names = [] if receipt.verdict == "incomplete" else [Uid.parse(receipt.uid).job]
            case _:
                return list(jobs.values())
        return [jobs[name] for name in names if name in jobs]

    def _settle(self, receipt: Receipt) -> None:
        """Final receipts remove the row whatever the phase; one for an unknown uid is a duplicate."""
        device = self._device
        uid = Uid.parse(receipt.uid)
        if uid not in device.outgoing:
            return
        if receipt.verdict == "incomplete":
            device.outgoing.incomplete(uid, receipt)
            return
        device.outgoing.remove(uid)
        device.actions.append(Settle(uid, receipt.verdict, receipt.code))
