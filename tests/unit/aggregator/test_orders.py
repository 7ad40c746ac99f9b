"""What operators do to a device through the API, over memory ports: pause, resume, forget."""

import asyncio
import contextlib

import pytest

from broker_bridge import cells
from edge_client.wire import topics
from edge_client.wire.messages import Assignment, DeviceState, TaskStatus


async def born(site, *devices):
    for device in devices:
        await site.say(device, "state", DeviceState("ready", 1))
    await site.step()


@contextlib.asynccontextmanager
async def running(site):
    """The engine works by itself meanwhile."""
    work = asyncio.create_task(site.engine.run())
    try:
        yield
    finally:
        site.engine.stop()
        await work


async def assigned(site, device):
    return await site.down(topics.assign(device, "job"), Assignment)


def refused(response, status, code, word=""):
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert word in response.json()["detail"]


def test_a_paused_device_gets_no_work_until_it_is_resumed(drive, bundle):
    """Neither an ask before the pause nor one after it gets a place, over a restart too; another device does."""

    async def body(site):
        await site.start_job(bundle, concurrency=1)
        await born(site, "dev-1", "dev-2", "dev-3")
        await site.ask("dev-3")
        await site.step()
        await site.ask("dev-1")
        await site.step()
        async with site.api() as api:
            paused = (await api.post("/devices/dev-1/pause")).json()
            assert paused["paused"] == {"by": "local", "at": site.clock.now}
            await site.engine._save_memo()
            site.fresh_engine()
            await site.engine.load()
        async with site.api() as api:
            await site.ask("dev-1", 2)
            await site.ask("dev-2")
            await site.update("dev-3", 1)
            await site.step()
            assert await assigned(site, "dev-2")
            assert await assigned(site, "dev-1") is None
            assert (await api.post("/devices/dev-1/resume")).json()["paused"] is None
            await site.update("dev-2", 2)
            await site.ask("dev-1", 3)
            await site.step()
            assert (await assigned(site, "dev-1")).ask == 3

    drive(body)


def test_a_pause_holds_where_the_server_is_killed_right_behind_it(drive, bundle):
    """A memo of before the pause gives the device no place."""

    async def body(site):
        await site.start_job(bundle, concurrency=1)
        await born(site, "dev-1", "dev-2")
        await site.ask("dev-2")
        await site.step()
        await site.ask("dev-1")
        await site.step()
        await site.engine._save_memo()
        async with site.api() as api:
            await api.post("/devices/dev-1/pause")
        site.fresh_engine()
        await site.engine.load()
        await site.update("dev-2", 1)
        await site.step()
        assert await assigned(site, "dev-1") is None

    drive(body)


def test_what_a_device_got_since_it_came_back_outlives_a_kill(drive):
    """Reading the log again after a crash forgets a device as it was, not as it is since."""

    async def body(site):
        await born(site, "dev-1")
        await site.say("dev-1", "state", DeviceState("lost", 1))
        await site.step()
        async with site.api() as api:
            forgetting = asyncio.create_task(api.post("/devices/dev-1/forget"))
            while not forgetting.done():
                await asyncio.sleep(0)
                await site.step()
        await born(site, "dev-1")
        async with site.api() as api:
            await api.put("/devices/dev-1/tags", json={"tags": ["lab"]})
        site.fresh_engine()  # as after kill -9
        await site.engine.load()
        await site.step()
        async with site.api() as api:
            assert (await api.get("/devices/dev-1")).json()["tags"] == ["lab"]

    drive(body)


def test_a_device_that_trains_when_it_is_paused_may_finish(drive, bundle):
    """Its place and its update are its own; after them it gets no other."""

    async def body(site):
        job = await site.start_job(bundle, buffer_size=1)
        await born(site, "dev-1")
        await site.ask("dev-1")
        await site.step()
        async with site.api() as api:
            await api.post("/devices/dev-1/pause")
            assert "dev-1" in job.leases.held
            await site.update("dev-1", 1)
            await site.ask("dev-1", 2)
            await site.step()
            assert (job.version, job.leases.held, job.leases.waiting) == (1, {}, {})

    drive(body)


def test_pausing_is_told_filtered_and_harmless_twice(drive):
    """The device's list, timeline, search and events say who paused it; a stale view is refused."""

    async def body(site):
        await born(site, "dev-1", "dev-2")
        async with site.api() as api:
            seen = (await api.get("/devices/dev-1")).headers["ETag"]
            first = await api.post("/devices/dev-1/pause", headers={"If-Match": seen})
            again = await api.post("/devices/dev-1/pause")
            assert again.json() == first.json()
            assert again.headers["ETag"] == first.headers["ETag"] != seen
            refused(await api.post("/devices/dev-1/resume", headers={"If-Match": seen}), 412, "stale_etag")
            refused(await api.post("/devices/none/pause"), 404, "not_found")
            for query in ({"paused": True}, {"q": "paused by local"}):
                found = (await api.get("/devices", params=query)).json()["devices"]
                assert [device["device"] for device in found] == ["dev-1"]
            await api.put("/devices/dev-1/tags", json={"tags": ["lab"]})
            shown = (await api.get("/devices/dev-1")).json()
            assert (shown["tags"], shown["paused"]["by"]) == (["lab"], "local")
            await api.post("/devices/dev-1/resume")
            kinds = [m["kind"] for m in (await api.get("/devices/dev-1")).json()["timeline"]]
            assert kinds == ["resumed", "paused", "birth"]
            events = (await api.get("/events/recent", params={"kinds": "device"})).json()["events"]
            assert [e["data"]["kind"] for e in events[:3]] == ["resumed", "tags", "paused"]
            actions = [e["action"] for e in (await api.get("/audit")).json()["audit"]]
            assert {"pause_device", "resume_device"} <= set(actions)

    drive(body)


def test_a_forgotten_device_is_gone_over_a_restart_and_new_when_it_is_back(drive, bundle):
    """Records, tags, place, verdicts in lists and what the broker retains of it go; its updates stay folded."""

    async def body(site):
        job = await site.start_job(bundle, buffer_size=1)
        await born(site, "dev-1", "dev-2")
        await site.say("dev-1", "task", TaskStatus("training", 1), job="job")
        await site.ask("dev-1")
        await site.update("dev-1", 1)
        await site.ask("dev-1", 2)
        await site.step()
        async with site.api() as api:
            await api.put("/devices/dev-1/tags", json={"tags": ["lab"]})
            refused(await api.post("/devices/dev-1/forget"), 409, "connected", "switch it off")
        await site.say("dev-1", "state", DeviceState("lost", 1))
        await site.step()
        async with site.api() as api, running(site):
            before = (await api.post("/devices/dev-1/forget")).json()
            assert (before["device"], before["tags"]) == ("dev-1", ["lab"])
        assert job.leases.held == {}
        for _ in range(2):
            async with site.api() as api:
                assert [d["device"] for d in (await api.get("/devices")).json()["devices"]] == ["dev-2"]
                refused(await api.get("/devices/dev-1"), 404, "not_found")
                assert (await api.get("/updates")).json()["updates"] == []
                facts = (await api.get("/jobs/job")).json()
                assert (facts["version"], facts["updates"]) == (1, 1)
            assert await assigned(site, "dev-1") is None
            site.fresh_engine()
            await site.engine.load()
            await site.step()
        await born(site, "dev-1")
        async with site.api() as api:
            back = (await api.get("/devices/dev-1")).json()
            assert (back["tags"], back["tasks"], len(back["timeline"])) == ([], {}, 1)

    drive(body)


def test_forgetting_clears_what_the_broker_retains(drive):
    """The retained birth and description are published empty."""

    async def body(site):
        await site.say("dev-1", "state", DeviceState("lost", 1))
        await site.step()
        told = {}

        async def watch():
            async for change in site.ports.heads.watch(f"{cells.DOWN_PREFIX}d/", 1):
                told[change.key] = change.value
                if len(told) == 2:
                    return

        watching = asyncio.create_task(watch())
        async with site.api() as api, running(site):
            await api.post("/devices/dev-1/forget")
        await asyncio.wait_for(watching, 5)
        assert told == {"down/d/dev-1/state": b"", "down/d/dev-1/info": b""}
        assert all(cells.retained(cells.down_topic(key)) for key in told)

    drive(body)


def test_a_device_is_not_forgotten_while_the_log_stands_still(drive, monkeypatch):
    """Who asks while the server cannot take the entry is told that it will, and it does."""
    monkeypatch.setattr("aggregator.orders.FORGET_S", 0.01)

    async def body(site):
        await site.say("dev-1", "state", DeviceState("lost", 1))
        await site.step()
        async with site.api() as api:
            refused(await api.post("/devices/dev-1/forget"), 503, "busy", "caught up")
            await site.step()
            refused(await api.get("/devices/dev-1"), 404, "not_found")

    drive(body)


@pytest.mark.parametrize("call", ["pause", "resume", "forget"])
def test_a_viewer_may_not_order_devices(drive, call):
    """Orders need the role operator."""

    async def body(site):
        await born(site, "dev-1")
        _, token = await tokens_of(site).create("v", "viewer", lifetime_s=None, now=0.0)
        async with site.api(token=token) as api:
            refused(await api.post(f"/devices/dev-1/{call}"), 403, "forbidden", "operator")

    drive(body)


def tokens_of(site):
    from aggregator.tokens import Tokens

    return Tokens(site.ports.heads)
