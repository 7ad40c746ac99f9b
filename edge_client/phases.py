"""The phases of a job on a device, as a table: (phase, event) → what happens, and the phases it may lead to.

Steps change the job and append actions; they do no I/O. docs/device.md shows this table as a diagram.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edge_client import events as ev
from edge_client import following
from edge_client.job import Device, Job, Phase, blobs
from edge_client.matching import mismatch
from edge_client.trainer_protocol import Failed, Progress, Trained
from edge_client.wire import topics
from edge_client.wire.messages import CODECS, Ask, Assignment, DatasetInfo, Offer

JOBS_MAX = 16  # jobs one device serves at a time: each holds a model, a residual and perhaps an update
BACKOFF_S = 15.0  # first wait after a failed participation; doubles
BACKOFF_MAX_S = 3600.0  # a device that always fails asks once an hour: enough to be seen, cheap for the fleet
LEASE_SLACK = 0.5  # share of the lease after its end that a pull may still go on: a late update counts, by τ
PROGRESS_EVERY_S = 1.0  # most often that progress is published
FATAL_CODES = frozenset({"bad_data", "schema_mismatch", "bad_bundle"})  # trying again would fail again


# -- from offer to ask ------------------------------------------------------------------------------


def meet(device: Device, event: ev.OfferSeen, now: float) -> None:
    """Take a new offer in. Another model or data set under a name that is held ends the job held first."""
    offer = event.offer
    job = device.jobs.get(offer.job)
    if job is None:
        device.jobs[offer.job] = Job(offer, 0, held=0)
    elif job.phase is Phase.ENDING:
        job.successor = offer
    elif _essence(offer) != _essence(job.offer):
        job.successor = offer
        end(device, job, ev.OfferWithdrawn(job.name), now)


def _essence(offer: Offer) -> tuple[object, ...]:
    """What makes an offer another job, when it changes: model, residual and training depend on it."""
    return offer.bundle.digest, offer.dataset, offer.data


def obstacle(device: Device, offer: Offer) -> str | None:
    """Why this device cannot serve an offer: "" nothing, None not known yet."""
    if offer.dataset not in device.declared:
        return f"no data set {offer.dataset!r} is declared on this device"
    known = device.datasets.get(offer.dataset)
    if known is None:
        return None
    if isinstance(known, str):
        return f"data set {offer.dataset!r}: {known}"
    why = mismatch(known.data, offer.data)
    if why:
        return f"data set {offer.dataset!r}: {why}"
    if known.n_samples < offer.samples_min:
        return f"data set {offer.dataset!r} has {known.n_samples} samples, the job wants {offer.samples_min}"
    served = sum(1 for job in device.jobs.values() if job.saved and job.name != offer.job)
    return f"this device serves {JOBS_MAX} jobs already" if served >= JOBS_MAX else ""


def consider(device: Device, job: Job, event: Any, now: float) -> None:
    """Ask when data and offer fit, decline when they do not, else wait."""
    if isinstance(event, ev.OfferSeen):
        renew(device, job, event, now)
    if job.due is not None and now < job.due:
        return
    why = obstacle(device, job.offer)
    if why:
        decline(device, job, why)
    elif why is not None:
        ask(device, job, now)


def reconsider(device: Device, job: Job, event: Any, now: float) -> None:
    """A changed offer is a new decision; the same one, seen again on connect, is not."""
    if event.offer != job.offer:
        job.due = None
        consider(device, job, event, now)


def renew(device: Device, job: Job, event: Any, _now: float) -> None:
    """The offer was changed while the job goes on."""
    if event.offer != job.offer:
        job.offer = event.offer
        if job.saved:
            device.save(job)


def decline(device: Device, job: Job, why: str) -> None:
    """Not this offer; a changed one is considered again."""
    following.stop(device, job)
    job.phase, job.due, job.assignment = Phase.DECLINED, None, None
    device.status(job, "declined", why)


def ask(device: Device, job: Job, now: float) -> None:
    """Ask under the job's number; a job without one gets the next."""
    if job.ask == 0 or not job.saved:
        renumber(device, job)
    job.phase, job.asked = Phase.ASKING, job.chain.top
    device.status(job, "asking")
    repeat(device, job, None, now)


def renumber(device: Device, job: Job) -> None:
    """Give the next participation its own number, so that an answer to an old ask is known as such."""
    job.ask = device.next_ask
    device.next_ask += 1
    device.save(job)


def repeat(device: Device, job: Job, event: Any, now: float) -> None:
    """Publish the outstanding ask: when asking begins, on connect, and when unanswered for long."""
    if isinstance(event, ev.Tick) and (job.due is None or now < job.due):
        return
    job.due = now + device.stretch(max(job.offer.retry_s, 1.0))
    info = device.datasets.get(job.offer.dataset)
    if device.connected and isinstance(info, DatasetInfo):
        if isinstance(event, ev.Connected):
            restate(device, job, event, now)
        message = Ask(job.name, job.ask, info.n_samples, job.asked, CODECS)
        device.actions.append(ev.Publish(topics.ask(device.name), message))


def restate(device: Device, job: Job, _event: Any, _now: float) -> None:
    """Say the last status again on a new connection: it may have been said into the void."""
    if job.said is not None:
        device.say(job.name, job.said)


# -- from assignment to training --------------------------------------------------------------------


def assigned(device: Device, job: Job, event: Any, now: float) -> None:
    """Take the answer to the outstanding ask; any other is late."""
    assignment: Assignment = event.assignment
    if assignment.ask != job.ask or not following.answers(job, assignment):
        return
    job.assignment, job.phase, job.started = assignment, Phase.PULLING, False
    following.heed(device, job, assignment, now)
    job.missing = {assignment.bundle.digest, *following.route(job, assignment)}
    job.due = now + assignment.not_before_s
    job.lease_end = job.due + assignment.lease_s * (1 + LEASE_SLACK)
    advance(device, job, None, now)


def advance(device: Device, job: Job, _event: Any, now: float) -> None:
    """Begin the pull when its time has come; give it up when the lease is long over."""
    if job.due is None or now < job.due or job.assignment is None:
        return
    if job.started:  # what was pulled stays until the next assignment, which may be of the same version
        renumber(device, job)
        leave_pull(job)
        ask(device, job, now)
        return
    job.started, job.due = True, job.lease_end
    device.status(job, "pulling")
    device.keep_blobs()
    device.actions.extend(ev.Pull(blob) for blob in blobs(job.assignment) if blob.digest in job.missing)
    if not job.missing:  # another job has pulled them while this one waited
        job.phase = Phase.READY


def pulled(_device: Device, job: Job, event: Any, _now: float) -> None:
    """A blob came; with the last one the job waits for the trainer."""
    job.missing.discard(event.digest)
    if not job.missing and job.started:
        job.phase = Phase.READY


def pull_failed(device: Device, job: Job, event: Any, now: float) -> None:
    """Without its blobs this participation is over."""
    fail(device, job, f"pull: {event.reason}", now)


def start_next(device: Device, now: float) -> None:
    """Give the trainer, when it is free, to a job that is ready; then that job uploads and others have their turn."""
    ready = next((job for job in device.jobs.values() if job.phase is Phase.READY), None)
    if device.training is not None or ready is None or ready.assignment is None:
        return
    device.training = ready
    ready.phase, ready.due, ready.progress_at = Phase.TRAINING, None, now
    device.status(ready, "training", progress=0.0)
    device.actions.append(following.training(ready, ready.assignment))


def answered(device: Device, job: Job, event: Any, now: float) -> None:
    """Progress, an update, or a failure of the training for the outstanding ask."""
    if event.ask != job.ask or job.assignment is None:
        return
    match event.answer:
        case Progress(step, steps):
            if now - job.progress_at >= PROGRESS_EVERY_S:
                job.progress_at = now
                device.status(job, "training", progress=round(step / max(steps, 1), 3))
        case Trained() as trained:
            device.actions.append(ev.StoreUpdate(job.name, job.trains_from, trained))
        case Failed(code, message):
            refuse(device, job, code, message, now)


def refuse(device: Device, job: Job, code: str, message: str, now: float) -> None:
    """The child could not train: never again, anew from a key-frame, or after a while."""
    if code in FATAL_CODES:
        renumber(device, job)
        decline(device, job, message)
        retire(device, job)
    elif code == "resync":
        following.mismatched(device, job)
        fail(device, job, message, now, at_once=job.failures == 0)
    else:
        if code == "storage":  # no fault of the job: as soon as there is room it goes on
            job.failures = 0
        fail(device, job, message, now)


def died(device: Device, job: Job, event: Any, now: float) -> None:
    """The child ended without a result: out of memory, killed or crashed."""
    if event.ask == job.ask:
        fail(device, job, event.reason, now)


def store_failed(device: Device, job: Job, event: Any, now: float) -> None:
    """The update could not be kept, so it is not sent: a crash would reuse its name (I12)."""
    fail(device, job, event.reason, now)


def fail(device: Device, job: Job, why: str, now: float, *, at_once: bool = False) -> None:
    """This participation is over; ask anew after a wait that doubles with each failure in a row."""
    retire(device, job)
    device.status(job, "failed", why)
    wait = 0.0 if at_once else device.stretch(min(BACKOFF_S * 2**job.failures, BACKOFF_MAX_S))
    job.failures = min(job.failures + 1, 16)
    job.phase, job.due = Phase.OFFERED, now + wait
    renumber(device, job)


def leave_pull(job: Job) -> None:
    """The assignment is void, and so is the way to its version, unless it was built."""
    job.assignment, job.started = None, False
    job.missing.clear()
    job.hold(job.held)


def retire(device: Device, job: Job) -> None:
    """Leave pulling or training; its blobs are not needed any more."""
    leave_pull(job)
    if device.training is job:
        device.training = None
    device.keep_blobs()


# -- from update to verdict -------------------------------------------------------------------------


def stored(device: Device, job: Job, event: Any, _now: float) -> None:
    """The update is durable: from here on only a verdict ends this participation (I4)."""
    job.held, job.ask, job.due = event.version, event.ask, None
    device.next_ask = max(device.next_ask, event.ask + 1)
    retire(device, job)
    job.phase = Phase.UPLOADING
    device.outgoing.add(event.rows)
    device.status(job, "uploading")


def judged(device: Device, job: Job, event: Any, now: float) -> None:
    """The verdict on the update came (an evaluation's leaves the update waiting)."""
    if device.outgoing.update_of(job.name) is not None:
        return
    code = event.receipt.code
    if code == "resync":
        following.stop(device, job)
        job.hold(None)
    job.phase, job.due = Phase.OFFERED, None
    if event.receipt.verdict == "accepted" or code == "stale":
        job.failures = 0
    elif code == "resync" and job.failures == 0:  # a key-frame heals it, if the server agrees with itself
        job.failures = 1
    else:  # what was refused for its content would be refused again: do not spin
        job.due = now + device.stretch(min(BACKOFF_S * 2**job.failures, BACKOFF_MAX_S))
        job.failures = min(job.failures + 1, 16)
        device.status(job, "failed", f"rejected: {code} {event.receipt.message}".rstrip())
    consider(device, job, None, now)


# -- the end ----------------------------------------------------------------------------------------


def end(device: Device, job: Job, event: Any, now: float) -> None:
    """The job is over; what was published still gets its verdict before everything is removed."""
    if device.training is job:
        device.actions.append(ev.StopTrainer())
    device.actions.append(ev.DropUnpublished(job.name))
    device.outgoing.remove_job(job.name, published=False)
    following.stop(device, job)
    retire(device, job)
    job.phase, job.due = Phase.ENDING, None
    job.said = ("ended", event.end.reason if isinstance(event, ev.JobEnded) else "offer withdrawn", None)
    leave(device, job, event, now)


def leave(device: Device, job: Job, _event: Any, now: float) -> None:
    """Remove the job once no published update waits for its verdict."""
    if device.outgoing.update_of(job.name) is not None:
        return
    device.outgoing.remove_job(job.name, published=True)
    del device.jobs[job.name]
    device.actions.append(ev.RemoveWorkspace(job.name))
    device.keep_blobs()
    job.phase = Phase.ENDED
    restate(device, job, None, now)
    if job.successor is not None:
        device.jobs[job.name] = Job(job.successor, 0, held=0)
        consider(device, device.jobs[job.name], None, now)


def forgo(_device: Device, job: Job, _event: Any, _now: float) -> None:
    """The offer that waited for this job to be gone is withdrawn too."""
    job.successor = None


Step = Callable[[Device, Job, Any, float], None]


@dataclass(frozen=True, slots=True)
class Rule:
    """A step and the phases it may lead to; the job may always stay where it is."""

    step: Step
    to: frozenset[Phase] = frozenset()


def _rules() -> dict[tuple[Phase, type], Rule]:
    p = Phase
    asks = (p.ASKING, p.DECLINED)
    failed = (p.OFFERED,)
    rows: list[tuple[Phase, type, Step, tuple[Phase, ...]]] = [
        (p.OFFERED, ev.OfferSeen, consider, asks),
        (p.OFFERED, ev.DataKnown, consider, asks),
        (p.OFFERED, ev.Tick, consider, asks),
        (p.DECLINED, ev.OfferSeen, reconsider, asks),
        (p.ASKING, ev.OfferSeen, reconsider, asks),
        (p.ASKING, ev.Tick, repeat, ()),
        (p.ASKING, ev.Connected, repeat, ()),
        (p.ASKING, ev.Assigned, assigned, (p.PULLING,)),
        (p.PULLING, ev.Tick, advance, (p.ASKING, p.READY, p.TRAINING)),
        (p.PULLING, ev.Pulled, pulled, (p.READY, p.TRAINING)),
        (p.PULLING, ev.PullFailed, pull_failed, failed),
        (p.READY, ev.Tick, advance, (p.ASKING, p.TRAINING)),
        (p.TRAINING, ev.Answered, answered, (p.OFFERED, p.DECLINED)),
        (p.TRAINING, ev.TrainerDied, died, failed),
        (p.TRAINING, ev.Stored, stored, (p.UPLOADING,)),
        (p.TRAINING, ev.StoreFailed, store_failed, failed),
        (p.UPLOADING, ev.ReceiptSeen, judged, (p.OFFERED, *asks)),
        (p.ENDING, ev.ReceiptSeen, leave, (p.ENDED,)),
        (p.ENDING, ev.OfferWithdrawn, forgo, ()),
    ]
    going_on = (p.PULLING, p.READY, p.TRAINING, p.UPLOADING)
    rows += [(phase, ev.DeltaSeen, following.heard, ()) for phase in (p.OFFERED, p.ASKING, *going_on)]
    rows += [(phase, ev.OfferSeen, renew, ()) for phase in going_on]
    spoken = (p.OFFERED, p.DECLINED, *going_on)
    rows += [(phase, ev.Connected, restate, ()) for phase in spoken]
    over = (ev.JobEnded, ev.OfferWithdrawn)
    alive = (p.ASKING, *spoken)
    rows += [(phase, event, end, (p.ENDING, p.ENDED)) for phase in alive for event in over]
    return {(phase, event): Rule(step, frozenset(to)) for phase, event, step, to in rows}


TABLE = _rules()
