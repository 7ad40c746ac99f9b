"""What integrators read on MQTT of fleet and jobs: retained messages, said anew when they changed, and not often. Pure.

Devices and versions have retained messages of their own (docs/mqtt.md), so a large fleet brings no more of these.
"""

from collections.abc import Mapping

from aggregator.clocks import waited
from aggregator.fleet import Fleet
from aggregator.job import Job
from aggregator.jobstore import JobRecord
from edge_client.wire import topics
from edge_client.wire.messages import FleetState, JobState, Message

TELL_S = 2.0  # between two messages on one topic: what changes faster is told together


class Board:
    """What was told last, by topic."""

    def __init__(self) -> None:
        self._told: dict[str, Message] = {}
        self._told_at = 0.0

    def due(
        self, fleet: Fleet, jobs: Mapping[str, Job], records: Mapping[str, JobRecord], now: float
    ) -> dict[str, Message]:
        """Messages that changed, by topic, at most every TELL_S seconds; `now` is Unix time."""
        if not waited(self._told_at, TELL_S, now):
            return {}
        self._told_at = now
        states = [records[name].state for name in jobs]
        told: dict[str, Message] = {
            topics.fleet_state(): FleetState(dict(fleet.states), {s: states.count(s) for s in set(states)})
        }
        for name, job in jobs.items():
            told[topics.job_state(name)] = _job(job, records[name])
        changed = {topic: message for topic, message in told.items() if self._told.get(topic) != message}
        self._told = told
        return changed


def _job(job: Job, record: JobRecord) -> JobState:
    newest = job.history.newest
    return JobState(
        job=job.spec.name,
        state="ended" if record.state == "deleted" else record.state,
        reason=record.reason,
        version=job.version,
        promoted=job.promoted,
        accuracy=None if newest is None else newest.accuracy,
        loss=None if newest is None else newest.loss,
        updates=job.history.totals.updates,
        training=len(job.leases.held),
        waiting=len(job.leases.waiting),
    )
