"""`/metrics` for Prometheus: base units, names with `fedfleet_`, and no label that grows with the fleet.

Figures are read when they are asked for, from what the engine has anyway, so nothing is counted twice. Those of one
device are in the API: a label with its id would make a series for each of a million.
"""

from collections import Counter
from collections.abc import Iterable, Iterator

import msgspec
from fastapi import APIRouter, Response
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from aggregator.engine import Engine
from aggregator.job import Job
from broker_bridge import cells
from broker_bridge.cells import BridgeCell

JOBS_MAX = 200  # jobs with series of their own: all that have not ended, and the newest of those that have
STALENESS_EDGES = (0, 1, 2, 4, 8, 16, 32)  # versions
DEVICE_STATES = ("ready", "disconnected", "lost", "unknown")
JOB_STATES = ("running", "paused", "ended")
TEXT = {"text/plain": {"example": 'fedfleet_devices{state="ready"} 16.0\n'}}


def routes(engine: Engine) -> APIRouter:
    """`/metrics`."""
    router = APIRouter(tags=["service"])

    @router.get("/metrics", response_class=Response, responses={200: {"content": TEXT}})
    async def metrics() -> Response:
        """Figures of fleet, jobs and bridge in the text format of Prometheus."""
        _, value = await engine.ports.heads.load(f"{cells.BRIDGE_PREFIX}main")
        bridge = msgspec.json.decode(value, type=BridgeCell) if value else BridgeCell(at=0.0)
        registry = CollectorRegistry()
        registry.register(Figures(engine, bridge))
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    return router


class Figures(Collector):
    """All metrics at one moment."""

    def __init__(self, engine: Engine, bridge: BridgeCell) -> None:
        self._engine = engine
        self._bridge = bridge

    def collect(self) -> Iterator[Metric]:
        """Every metric with its samples."""
        engine = self._engine
        yield _gauge("storage_failing", "1 while storage takes nothing", int(bool(engine.trouble)))
        yield _gauge("jobs_damaged", "jobs that could not be loaded", len(engine.store.damaged))
        states = engine.fleet.states
        yield _gauges("devices", "devices that ever spoke", "state", ((s, states[s]) for s in DEVICE_STATES))
        phases: Counter[str] = Counter(record.state for record in engine.store.records.values())
        yield _gauges("jobs", "jobs", "state", ((s, phases[s]) for s in JOB_STATES))
        yield from self._jobs()
        yield from _bridge(self._bridge)

    def _jobs(self) -> Iterator[Metric]:
        jobs = self._shown()
        newest = {name: job.history.newest for name, job in jobs.items()}
        yield _of_jobs("job_version", "newest version", {n: j.version for n, j in jobs.items()})
        yield _of_jobs(
            "job_training_devices",
            "devices that hold a lease",
            {n: len(j.leases.held) for n, j in jobs.items()},
        )
        yield _of_jobs(
            "job_waiting_devices",
            "devices that wait for one",
            {n: len(j.leases.waiting) for n, j in jobs.items()},
        )
        yield _of_jobs(
            "job_buffered_updates",
            "updates since the newest version",
            {n: j.buffered for n, j in jobs.items()},
        )
        accuracy = {n: m.accuracy for n, m in newest.items() if m is not None and m.accuracy is not None}
        yield _of_jobs("job_accuracy_ratio", "accuracy on the devices' hold-outs, smoothed", accuracy)
        loss = {n: m.loss for n, m in newest.items() if m is not None}
        yield _of_jobs("job_loss", "loss on the devices' hold-outs, smoothed", loss)
        folded = {n: j.history.totals.updates for n, j in jobs.items()}
        yield _totals("job_updates_folded", "updates in versions", "job", folded.items())
        up = {n: j.history.totals.bytes_up for n, j in jobs.items()}
        yield _totals("job_uplink_bytes", "bytes of the updates in versions", "job", up.items())
        yield _staleness(jobs)

    def _shown(self) -> dict[str, Job]:
        records = self._engine.store.records
        names = sorted(
            self._engine.jobs,
            key=lambda name: (records[name].state == "ended", -records[name].created_at),
        )
        return {name: self._engine.jobs[name] for name in sorted(names[:JOBS_MAX])}


def _bridge(cell: BridgeCell) -> Iterator[Metric]:
    yield _total("bridge_uplink_bytes", "bytes of packets from devices", cell.bytes_up)
    yield _total("bridge_downlink_bytes", "bytes of packets to devices", cell.bytes_down)
    yield _total("bridge_uplink_messages", "packets from devices", cell.messages_up)
    yield _total("bridge_downlink_messages", "packets to devices", cell.messages_down)
    yield _total("bridge_updates_accepted", "uids that were accepted", cell.accepted)
    yield _total("bridge_updates_duplicate", "uids that came again", cell.duplicates)
    yield _totals("bridge_updates_rejected", "uids that were refused", "code", sorted(cell.rejected.items()))
    yield _gauge("bridge_partials", "updates of which chunks are missing", cell.partials)
    yield _gauge(
        "bridge_untaken_entries", "entries of the log that the aggregator has not read", cell.untaken
    )


def _staleness(jobs: dict[str, Job]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(
        "fedfleet_job_staleness_versions", "versions that folded updates were behind", labels=["job"]
    )
    for name, job in jobs.items():
        counts = job.history.totals.staleness
        buckets = [
            (f"{edge:g}", sum(n for tau, n in counts.items() if tau <= edge)) for edge in STALENESS_EDGES
        ]
        total = sum(tau * n for tau, n in counts.items())
        family.add_metric([name], [*buckets, ("+Inf", sum(counts.values()))], total)
    return family


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"fedfleet_{name}", text, value=value)


def _gauges(name: str, text: str, label: str, values: Iterable[tuple[str, float]]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"fedfleet_{name}", text, labels=[label])
    for key, value in values:
        family.add_metric([key], value)
    return family


def _of_jobs(name: str, text: str, values: dict[str, int] | dict[str, float]) -> GaugeMetricFamily:
    return _gauges(name, text, "job", values.items())


def _total(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(f"fedfleet_{name}", text, value=value)


def _totals(name: str, text: str, label: str, values: Iterable[tuple[str, float]]) -> CounterMetricFamily:
    family = CounterMetricFamily(f"fedfleet_{name}", text, labels=[label])
    for key, value in values:
        family.add_metric([key], value)
    return family
