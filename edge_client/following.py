"""How a job gets from the model its workspace has to the one it trains from: by pulled blobs, or deltas handed out.

While an assignment asks for it, the device listens to the job's deltas; those that go on from what it can build are
kept and applied by the next training, which then starts from the newest version. Steps of the table in phases.py.
"""

from typing import Any

from edge_client import events as ev
from edge_client.job import Device, Job
from edge_client.wire.messages import Assignment


def heed(device: Device, job: Job, assignment: Assignment, now: float) -> None:
    """Listen while the lease lasts, or no more, as the assignment says."""
    if not assignment.follow:
        stop(device, job)
        return
    job.follow_end = now + assignment.not_before_s + assignment.lease_s
    if not job.follows:
        job.follows = True
        device.actions.append(ev.Follow(job.name, yes=True))


def stop(device: Device, job: Job) -> None:
    """Listen no more."""
    if job.follows:
        job.follows = False
        device.actions.append(ev.Follow(job.name, yes=False))


def answers(job: Job, assignment: Assignment) -> bool:
    """False for an answer to an ask of before a restart that named deltas lost since: no way leads from here."""
    given = assignment.model or assignment.version == job.asked
    return bool(given) or job.chain.reaches(assignment.version, assignment.version_hash)


def route(job: Job, assignment: Assignment) -> set[str]:
    """Choose the way to the assigned version, or past it; return the digests of the blobs to pull for it."""
    if job.chain.reaches(assignment.version, assignment.version_hash):
        return set()
    prefix = job.chain.upto(job.asked) or []
    pulled = [blob.digest for blob in assignment.model]
    job.route = (*(delta.digest for delta in prefix), *pulled)
    job.relies = bool(prefix)
    job.base_hash = assignment.version_hash
    if assignment.version in {delta.version for delta in job.chain.deltas}:
        job.chain.deltas.clear()  # they lead to another model of that version
    job.chain.rebase(assignment.version)
    return set(pulled)


def training(job: Job, assignment: Assignment) -> ev.Train:
    """The training to start now, from the newest version that can be built."""
    deltas = job.chain.deltas
    job.relies = job.relies or bool(deltas)
    version, model_hash = assignment.version, job.base_hash
    if deltas:
        version, model_hash = deltas[-1].version, deltas[-1].model_hash
    job.trains_from = version
    frames = (*job.route, *(delta.digest for delta in deltas))
    return ev.Train(job.offer, assignment, frames, version, model_hash)


def mismatched(device: Device, job: Job) -> None:
    """What was built is not the model it should be: without the deltas handed out, or else anew from a key-frame."""
    if job.relies:
        stop(device, job)
        job.chain.deltas.clear()
        job.hold(job.held)
    else:
        job.hold(None)


def heard(device: Device, job: Job, event: Any, now: float) -> None:
    """A delta came; one that does not go on from the newest shows a gap, which only a pull closes."""
    if not job.follows:  # a subscription that an earlier run left with the broker
        device.actions.append(ev.Follow(job.name, yes=False))
        return
    outcome = "gap" if event.delta is None or now > job.follow_end else job.chain.take(event.delta)
    if outcome == "kept":
        device.actions.append(ev.KeepDelta(event.delta, event.data))
    elif outcome == "gap":
        stop(device, job)
