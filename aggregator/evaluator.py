"""Evaluates new versions of jobs on the test sets that people gave them, beside the engine.

Only the newest version is evaluated: while one takes long, others may pass. What devices report on their hold-outs
stays what rules look at; this is for people.
"""

import asyncio
from pathlib import Path

import structlog

from aggregator import testset
from aggregator.engine import Engine
from aggregator.errors import AggregatorError
from aggregator.job import Job
from aggregator.testset import TestSet
from aggregator.versions import load_model
from broker_bridge.ports import PortError
from edge_client.bundle import BundleError
from edge_client.training import TrainingSession
from edge_client.wire import grid
from edge_client.wire.messages import Metrics

POLL_S = 0.5  # how late a new version is noticed; far below what evaluating one takes

log = structlog.get_logger()


class Evaluator:
    """One task that looks at all jobs in turn; sessions and test sets of running jobs stay loaded."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._loaded: dict[str, tuple[TrainingSession, TestSet]] = {}
        self._broken: set[str] = set()

    async def run(self) -> None:
        """Work until cancelled; a job whose test set cannot be used is named in the log and left out."""
        await self._engine.ready.wait()
        while True:
            for job in list(self._engine.jobs.values()):
                name = job.spec.name
                if job.spec.testset is None or name in self._broken or job.version in job.history.on_testset:
                    continue
                try:
                    await self._evaluate(job)
                except (AggregatorError, PortError, BundleError, MemoryError) as error:
                    self._broken.add(name)
                    log.error("evaluation.failed", job=name, version=job.version, error=str(error))  # noqa: TRY400
            for name in [n for n in self._loaded if self._ended(n)]:
                del self._loaded[name]
            await asyncio.sleep(POLL_S)

    async def _evaluate(self, job: Job) -> None:
        name, version = job.spec.name, job.version
        if name not in self._loaded:
            self._loaded[name] = await self._load(job)
        session, data = self._loaded[name]
        model = await load_model(self._engine.ports.blobs, job.manifest, job.bundle.sizes)
        metrics = await asyncio.to_thread(_figures, session, data, model)
        # The engine may have loaded its jobs anew meanwhile.
        self._engine.evaluated(name, version, metrics)
        log.info("version.evaluated", job=name, version=version, loss=metrics.loss, accuracy=metrics.accuracy)

    async def _load(self, job: Job) -> tuple[TrainingSession, TestSet]:
        assert job.spec.testset is not None
        bundle, _ = await self._engine.shelf.open(job.bundle_ref.digest)
        fitted = testset.fit(await self._engine.shelf.testset(job.spec.testset), job.bundle.data)
        return await asyncio.to_thread(TrainingSession, Path(bundle.path)), fitted

    def _ended(self, name: str) -> bool:
        job = self._engine.jobs.get(name)
        running = job is not None and self._engine.store.records[name].state != "ended"
        return not running and (job is None or job.version in job.history.on_testset)


def _figures(session: TrainingSession, data: TestSet, model: tuple[grid.Grid, ...]) -> Metrics:
    table = session.bundle.manifest.table
    session.load(
        {t.name: grid.from_grid(v, t.step_exp).reshape(t.shape) for t, v in zip(table, model, strict=True)}
    )
    return session.evaluate(data.x, data.y)
