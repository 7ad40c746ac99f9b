"""The engine on storage that fails for a while: nothing is lost, nothing is half done, and it says so."""

import asyncio
import dataclasses

import httpx
import msgspec
import pytest

from aggregator import engine as engine_module
from aggregator.api.app import create_app
from aggregator.engine import Engine
from broker_bridge import cells
from broker_bridge.ports import CorruptStorage, StorageFull
from broker_bridge.ports.open import open_ports
from edge_client.wire import topics
from edge_client.wire.messages import VersionNotice
from tests.unit.aggregator.conftest import Site

WAIT_S = 10.0


class Disk:
    """Ports whose writes fail while `full`, or from the write numbered `fails_at` on."""

    def __init__(self, ports):
        self.full = False
        self.fails_at = None
        self.error = StorageFull
        self.writes = 0
        self.writer = None  # the task whose writes alone are numbered
        self.ports = dataclasses.replace(
            ports, heads=_Gate(ports.heads, self, {"swing", "drop"}), blobs=_Gate(ports.blobs, self, {"put"})
        )

    def write(self):
        self.writes += self.writer in (None, asyncio.current_task())
        if self.full or (self.fails_at is not None and self.writes >= self.fails_at):
            self.full = True
            raise self.error("fleet.db: disk is full")


class _Gate:
    def __init__(self, port, disk, writes):
        self._port, self._disk, self._writes = port, disk, writes

    def __getattr__(self, name):
        call = getattr(self._port, name)

        async def checked(*arguments):
            self._disk.write()
            return await call(*arguments)

        return checked if name in self._writes else call


async def until(condition):
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - the engine tells nobody
            await asyncio.sleep(0.005)


async def asked(engine, path):
    """What the API answers."""
    transport = httpx.ASGITransport(create_app(engine))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        return (await client.get(path)).json()


@pytest.fixture
def drive(tmp_path, monkeypatch):
    """Run a body with a running engine over a disk that it may fill up."""
    monkeypatch.setattr(engine_module, "RETRY_MIN_S", 0.01)
    monkeypatch.setattr(engine_module, "TICK_S", 0.01)

    def run(body):
        async def main():
            disk = Disk(open_ports("memory:"))
            site = Site(disk.ports, tmp_path)
            work = asyncio.create_task(site.engine.run())
            await site.engine.ready.wait()
            try:
                await body(site, disk, work)
            finally:
                disk.full, disk.fails_at = False, None
                site.engine.stop()
                await asyncio.gather(work, return_exceptions=True)
                await disk.ports.close()

        asyncio.run(asyncio.wait_for(main(), 3 * WAIT_S))

    return run


@pytest.mark.parametrize("fails_at", range(1, 7))
def test_a_commit_on_a_full_disk_is_made_once_there_is_room(drive, bundle, fails_at):
    """I1, I3: whichever write of a commit fails, the model stays as it was and the same updates make one version."""

    async def body(site, disk, _work):
        job = await site.start_job(bundle)
        await until(lambda: not site.engine._dirty)
        before = await site.ports.heads.load(cells.version_key("job"))
        disk.writes, disk.fails_at = 0, fails_at
        for seed in range(3):
            await site.update(f"dev-{seed}", seed)
        await until(lambda: site.engine.trouble)
        now = await site.ports.heads.load(cells.version_key("job"))
        assert now == before or msgspec.json.decode(now[1], type=cells.VersionCell).version == 1
        disk.full, disk.fails_at = False, None
        await until(lambda: not site.engine.trouble)
        job = site.engine.jobs["job"]
        await until(lambda: site.engine.jobs["job"].version == 1)
        assert (job.version, job.manifest.bases, job.buffered) == (1, {0: 3}, 0)
        notice = await site.down(topics.version("all", "job"), VersionNotice)
        assert notice.version == 1

    drive(body)


def test_a_job_that_found_no_room_can_be_started_afterwards(drive, bundle):
    """A start that fails half-way is finished or can be made again; it never blocks its name for ever."""

    async def body(site, disk, _work):
        await site.engine.shelf.add(bundle)
        disk.writer = asyncio.current_task()  # the engine may save its memo meanwhile
        disk.writes, disk.fails_at = 0, 3  # its record is stored, its first version is not
        with pytest.raises(StorageFull):
            await site.start_job(bundle)
        await until(lambda: site.engine.trouble)
        health = await asked(site.engine, "/api/v1/health")
        assert (health["status"], health["reason"]) == ("waiting", "the disk is full")
        disk.full, disk.fails_at = False, None
        await until(lambda: "job" in site.engine.jobs)
        await until(lambda: not site.engine.trouble)
        assert (await asked(site.engine, "/api/v1/health"))["status"] == "ok"
        assert site.engine.jobs["job"].version == 0

    drive(body)


def test_damaged_storage_is_not_waited_for(drive):
    """A file that is damaged does not heal: the engine ends, and its process says why."""

    async def body(site, disk, work):
        disk.error = CorruptStorage
        disk.full = True
        site.engine._dirty = True
        site.clock.now += 10
        with pytest.raises(CorruptStorage):
            await asyncio.wait_for(asyncio.shield(work), WAIT_S)

    drive(body)


def test_an_engine_starts_on_a_full_disk_when_there_is_room(tmp_path, bundle, monkeypatch):
    """An engine whose first load cannot write waits, and is stopped while it does."""
    monkeypatch.setattr(engine_module, "RETRY_MIN_S", 0.01)

    async def main():
        disk = Disk(open_ports("memory:"))
        site = Site(disk.ports, tmp_path)
        await site.engine.load()
        await site.start_job(bundle)
        disk.full = True
        engine = Engine(disk.ports, tmp_path, site.clock)
        work = asyncio.create_task(engine.run())
        await until(lambda: engine.trouble)
        assert not engine.ready.is_set()
        disk.full = False
        await asyncio.wait_for(engine.ready.wait(), WAIT_S)
        engine.stop()
        await work

        disk.full = True
        engine = Engine(disk.ports, tmp_path, site.clock)
        work = asyncio.create_task(engine.run())
        await until(lambda: engine.trouble)
        engine.stop()
        await asyncio.wait_for(work, WAIT_S)

    asyncio.run(main())
