"""The jobs and versions that admission judges by, followed from the heads."""

import asyncio
from typing import TypeVar

import msgspec

from broker_bridge import cells
from broker_bridge.cells import JobCell, VersionCell
from broker_bridge.ports import Heads
from broker_bridge.storage import persistently

Cell = TypeVar("Cell", JobCell, VersionCell)


class Catalog:
    """A copy of the job and version cells, at most a moment old; `refresh` makes one job's current."""

    def __init__(self, heads: Heads) -> None:
        self._heads = heads
        self._jobs: dict[str, JobCell] = {}
        self._versions: dict[str, VersionCell] = {}

    def job(self, job: str) -> JobCell | None:
        """The cell of a job as last seen."""
        return self._jobs.get(job)

    def version(self, job: str) -> VersionCell | None:
        """The version cell of a job as last seen."""
        return self._versions.get(job)

    async def follow(self) -> None:
        """Keep the copy current until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow(cells.JOB_PREFIX, self._jobs, JobCell))
            tasks.create_task(self._follow(cells.VERSION_PREFIX, self._versions, VersionCell))

    async def refresh(self, job: str) -> None:
        """Read a job's cells now: a verdict that a newer cell could change must not rest on the copy."""
        _put(self._jobs, job, (await self._heads.load(cells.job_key(job)))[1], JobCell)
        _put(self._versions, job, (await self._heads.load(cells.version_key(job)))[1], VersionCell)

    async def _follow(self, prefix: str, table: dict[str, Cell], kind: type[Cell]) -> None:
        after = 0

        async def follow() -> None:
            nonlocal after
            async for change in self._heads.watch(prefix, after):
                _put(table, change.key[len(prefix) :], change.value or b"", kind)
                after = change.revision

        await persistently(follow, "catalog")


def _put(table: dict[str, Cell], job: str, value: bytes, kind: type[Cell]) -> None:
    if value:
        table[job] = msgspec.json.decode(value, type=kind)
    else:
        table.pop(job, None)
