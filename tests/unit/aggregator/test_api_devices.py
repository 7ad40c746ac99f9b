"""Devices, updates, events and the audit log through the API, over memory ports."""

import asyncio
import json

import pytest

from aggregator import audit
from aggregator.api import examples
from aggregator.audit import AuditEntry, AuditLog
from aggregator.stream import EVENTS_KEPT, Stream
from broker_bridge.ports.open import open_ports
from edge_client.wire.messages import DeviceInfo, DeviceState, TaskStatus

HOSTILE = "<script>alert(1)</script>\u202e"


async def born(site, *devices):
    for device in devices:
        await site.say(device, "state", DeviceState("ready", 1, cohort="lab" if device < "b" else "all"))
    await site.step()


def test_devices_are_found_by_state_cohort_tag_and_text(drive):
    """Filters hold together, search finds ids, tags and software in any case, and the answer counts states."""

    async def body(site):
        await born(site, "a-1", "a-2", "b-1")
        await site.say("b-1", "state", DeviceState("lost", 1))
        await site.say(
            "a-2", "info", DeviceInfo("fedfleet 9.9 Beta", 1, "aarch64", "onnxruntime", ("ternary",))
        )
        await site.step()
        async with site.api() as api:
            await api.put("/devices/a-1/tags", json={"tags": ["Roof", "Roof", "a b"]})

            async def names(**query):
                page = (await api.get("/devices", params=query)).json()
                assert page["total"] == len(page["devices"])
                return [device["device"] for device in page["devices"]]

            assert await names() == ["a-1", "a-2", "b-1"]
            assert await names(state="lost") == ["b-1"]
            assert await names(cohort="lab", tag="Roof") == ["a-1"]
            assert await names(q="roof") == ["a-1"]
            assert await names(q="BETA") == ["a-2"]
            assert await names(state="ready", q="b-1") == []
            everything = (await api.get("/devices", params={"limit": 2})).json()
            assert everything["states"] == {"ready": 2, "lost": 1}
            assert (everything["next"], everything["total"]) == ("a-2", 3)
            rest = (await api.get("/devices", params={"limit": 2, "cursor": "a-2"})).json()
            assert ([d["device"] for d in rest["devices"]], rest["next"]) == (["b-1"], None)

    drive(body)


def test_a_device_shows_what_it_did(drive, bundle):
    """Births, asks, statuses, updates and refusals of a device are on its timeline, newest first."""

    async def body(site):
        await site.start_job(bundle)
        await born(site, "dev-1")
        await site.ask("dev-1")
        await site.say("dev-1", "task", TaskStatus("declined", 1, reason="on battery"), job="job")
        await site.update("dev-1", 1)
        await site.reject("dev-1", "norm", "its norm is 900")
        await site.step()
        async with site.api() as api:
            shown = (await api.get("/devices/dev-1")).json()
        kinds = [(moment["kind"], moment["what"]) for moment in shown["timeline"]]
        assert kinds == [
            ("rejection", "norm"),
            ("update", "accepted"),
            ("task", "declined"),
            ("ask", "no version"),
            ("birth", "ready"),
        ]
        assert shown["timeline"][2]["detail"] == "on battery"

    drive(body)


def test_a_device_has_the_same_fields_whatever_it_said(drive, bundle):
    """What a device left out, because it is the default, is there all the same."""

    async def body(site):
        await site.start_job(bundle)
        await born(site, "dev-1")
        await site.say("dev-1", "task", TaskStatus("training", 1), job="job")
        await site.say("dev-1", "info", DeviceInfo("s", 1, "aarch64", "ort", ("ternary",)))
        await site.step()
        async with site.api() as api:
            shown = (await api.get("/devices/dev-1")).json()
        assert shown["tasks"]["job"]["status"] == {
            "state": "training",
            "rev": 1,
            "reason": "",
            "progress": None,
        }
        assert shown["info"]["datasets"] == []

    drive(body)


def test_the_examples_have_the_fields_of_real_answers(drive, bundle):
    """The OpenAPI document shows what the server really answers, field by field."""

    async def body(site):
        await site.start_job(bundle, buffer_size=1)
        await born(site, "dev-1")
        await site.say("dev-1", "task", TaskStatus("training", 1), job="job")
        await site.update("dev-1", 1)
        await site.step()
        shown = {
            "/jobs": examples.page("jobs", examples.JOB),
            "/jobs/job": examples.JOB,
            "/jobs/job/participation": examples.PARTICIPATION,
            "/jobs/job/versions/1": examples.VERSION,
            "/bundles": examples.page("bundles", examples.BUNDLE),
            "/devices": examples.page("devices", examples.DEVICE, states={"ready": 1}),
            "/devices/dev-1": {**examples.DEVICE, "timeline": [examples.MOMENT]},
            "/me": examples.ME,
            "/fleet/why/dev-1": examples.WHY,
            "/updates": examples.page("updates", examples.VERDICT),
            "/events/recent?kinds=audit": examples.page("events", examples.EVENT),
            "/audit": examples.page("audit", examples.AUDIT),
        }
        async with site.api() as api:
            await api.post("/devices/dev-1/pause")
            await api.post("/jobs/job/pause")
            for path, example in shown.items():
                assert fields(example) == fields((await api.get(path)).json()), path
            document = (await api.get("/openapi.json")).json()["paths"]
        told = document["/api/v1/jobs/{name}"]["get"]["responses"]["200"]["content"]["application/json"]
        assert told["example"]["spec"]["name"] == "exercise"

    drive(body)


FREE = {"device_states", "rejected", "staleness", "states"}  # keys that are data


def fields(value):
    """The fields of an answer, of lists and of maps by name those of the first."""
    if isinstance(value, list):
        return fields(value[0]) if value else None
    if not isinstance(value, dict):
        return None
    if "tasks" in value:
        value = {**value, "tasks": list(value["tasks"].values())}
    return {name: None if name in FREE else fields(inner) for name, inner in value.items()}


def test_words_of_a_device_are_data(drive, bundle):
    """What a hostile device says comes back as JSON that no browser takes for a page, and is cut to a bound."""

    async def body(site):
        await site.start_job(bundle)
        await born(site, "dev-1")
        status = TaskStatus("failed", 1, reason=HOSTILE * 100)
        await site.say("dev-1", "task", status, job="job")
        await site.step()
        async with site.api() as api:
            response = await api.get("/devices/dev-1")
            assert response.headers["content-type"] == "application/json"
            assert response.headers["x-content-type-options"] == "nosniff"
            assert "default-src 'none'" in response.headers["content-security-policy"]
            assert len(response.json()["timeline"][0]["detail"]) == 300
            tagged = await api.put("/devices/dev-1/tags", json={"tags": ["<b>x</b>"]})
            assert tagged.json()["tags"] == ["<b>x</b>"]

    drive(body)


@pytest.mark.parametrize(
    ("body", "code", "word"),
    [
        ({"tags": ["x" * 65]}, "bad_tags", "64"),
        ({"tags": [""]}, "bad_tags", "printable"),
        ({"tags": ["a\n"]}, "bad_tags", "printable"),
        ({"tags": [" a"]}, "bad_tags", "blanks"),
        ({"tags": [str(i) for i in range(17)]}, "bad_tags", "16"),
        ({"tags": "roof"}, "bad_request", "$.tags"),
        ({"tag": ["roof"]}, "bad_request", "tag"),
        ([], "bad_request", "body"),
    ],
)
def test_tags_that_cannot_be_are_refused(drive, body, code, word):
    """I6: tags are few, short and printable, and a refused list changes none."""

    async def main(site):
        await born(site, "dev-1")
        async with site.api() as api:
            response = await api.put("/devices/dev-1/tags", json=body)
            assert (response.status_code, response.json()["code"]) == (422, code)
            assert word in response.json()["detail"]
            assert (await api.get("/devices/dev-1")).json()["tags"] == []
            assert (await api.put("/devices/none/tags", json={"tags": []})).status_code == 404

    drive(main)


def test_tags_survive_a_restart_and_stale_ones_are_refused(drive):
    """Tags are stored at once, and who edits an old list of them is told."""

    async def body(site):
        await born(site, "dev-1")
        async with site.api() as api:
            seen = (await api.get("/devices/dev-1")).headers["ETag"]
            first = await api.put("/devices/dev-1/tags", json={"tags": ["one"]}, headers={"If-Match": seen})
            assert first.status_code == 200
            second = await api.put("/devices/dev-1/tags", json={"tags": ["two"]}, headers={"If-Match": seen})
            assert (second.status_code, second.json()["code"]) == (412, "stale_etag")
        await site.engine._save_memo()
        site.fresh_engine()
        await site.engine.load()
        async with site.api() as api:
            assert (await api.get("/devices/dev-1")).json()["tags"] == ["one"]

    drive(body)


def test_verdicts_are_listed_with_their_reasons_also_after_a_restart(drive, bundle):
    """The newest verdicts come first, filtered by verdict, job and device; a restart reads them from the log."""

    async def body(site):
        await site.start_job(bundle)
        await site.update("dev-1", 1)
        site.clock.now += 1
        await site.reject("dev-2", "norm", "its norm is 900")
        await site.step()
        await site.engine._save_memo()
        for _ in range(2):
            async with site.api() as api:
                found = (await api.get("/updates")).json()["updates"]
                assert [(u["device"], u["verdict"], u["code"]) for u in found] == [
                    ("dev-2", "rejected", "norm"),
                    ("dev-1", "accepted", ""),
                ]
                assert (found[0]["reason"], found[1]["bytes"] > 0) == ("its norm is 900", True)
                one = (await api.get("/updates", params={"verdict": "accepted", "job": "job"})).json()
                assert [u["device"] for u in one["updates"]] == ["dev-1"]
                assert (await api.get("/updates", params={"device": "x"})).json()["updates"] == []
            site.fresh_engine()
            await site.engine.load()
            await site.step()

    drive(body)


async def take(events, count):
    """The next events of a stream, heartbeats left out."""
    found = []
    async with asyncio.timeout(5):
        async for text in events:
            for part in text.decode().split("\n\n"):
                fields = dict(line.split(": ", 1) for line in part.splitlines() if not line.startswith(":"))
                if fields:
                    found.append((fields["id"], fields["event"], json.loads(fields["data"])))
            if len(found) >= count:
                return found
    return found


def test_events_tell_what_happens(drive, bundle):
    """Jobs, versions, devices, updates, rejections and changes by people are told in order, filtered by kind."""

    async def body(site):
        stream = site.engine.stream
        start = f"{stream.run}-0"
        async with site.api() as api:
            await site.start_job(bundle, buffer_size=1)
            await born(site, "dev-1")
            await site.update("dev-1", 1)
            await site.reject("dev-1", "norm", "too far")
            await site.step()
            await api.post("/jobs/job/pause")
        told = await take(
            stream.follow(start, {"job", "version", "device", "update", "rejection", "audit"}), 7
        )
        kinds = [kind for _, kind, _ in told]
        assert sorted(kinds) == ["audit", "device", "job", "job", "rejection", "update", "version"]
        assert (kinds[0], kinds[-1]) == ("job", "audit")
        only = await take(stream.follow(start, {"version"}), 1)
        assert only[0][2]["version"] == 1
        async with site.api() as api:
            listed = (await api.get("/events/recent", params={"limit": 2})).json()
            assert [(e["id"], e["kind"], e["data"]) for e in listed["events"]] == told[:-3:-1]
            assert (listed["total"], listed["next"]) == (7, "6")
            some = (await api.get("/events/recent", params={"kinds": "job,version"})).json()
            assert [e["kind"] for e in some["events"]] == ["job", "version", "job"]

    drive(body)


def test_a_viewer_goes_on_where_its_connection_broke():
    """After Last-Event-ID come the events since; an id too old, of another run or of nonsense brings `reset`."""

    async def main():
        stream = Stream()
        for n in range(3):
            stream.publish("update", {"n": n})
        seen = await take(stream.follow(f"{stream.run}-1", {"update"}), 2)
        assert [data["n"] for _, _, data in seen] == [1, 2]
        for _ in range(EVENTS_KEPT):
            stream.publish("update", {})
        for last in (f"{stream.run}-1", "0000-5", "x", f"{stream.run}-99999999"):
            assert (await take(stream.follow(last, {"update"}), 1))[0][1] == "reset", last
        stream.close()
        assert [text async for text in stream.follow(None, {"update"})] == [b": connected\n\n"]

    asyncio.run(main())


def test_a_silent_stream_beats(monkeypatch):
    """While nothing happens a comment keeps the connection open."""
    monkeypatch.setattr("aggregator.stream.HEARTBEAT_S", 0.01)

    async def main():
        async for text in Stream().follow(None, set()):
            if text == b": heartbeat\n\n":
                return

    asyncio.run(asyncio.wait_for(main(), 5))


def test_a_stream_beats_while_only_other_things_happen(monkeypatch):
    """Events of kinds that a viewer did not ask for do not keep its connection silent."""
    monkeypatch.setattr("aggregator.stream.HEARTBEAT_S", 0.05)
    monkeypatch.setattr("aggregator.stream.BATCH_S", 0.001)

    async def main():
        stream = Stream()

        async def others():
            while True:
                stream.publish("update", {})
                await asyncio.sleep(0.002)

        busy = asyncio.create_task(others())
        async for text in stream.follow(None, {"version"}):
            if text == b": heartbeat\n\n":
                busy.cancel()
                return

    asyncio.run(asyncio.wait_for(main(), 5))


def test_viewers_share_what_they_are_told():
    """Many events in a short time come together, and as one object to all who follow the same kinds."""

    async def main():
        stream = Stream()
        viewers = [stream.follow(None, {"update"}) for _ in range(3)]
        for viewer in viewers:
            await anext(viewer)
        waiting = [asyncio.ensure_future(anext(viewer)) for viewer in viewers]
        for n in range(50):
            stream.publish("update", {"n": n})
        batches = await asyncio.gather(*waiting)
        assert batches[0].count(b"data: ") == 50
        assert batches[0] is batches[1] is batches[2]

    asyncio.run(asyncio.wait_for(main(), 5))


def test_a_slow_viewer_is_told_that_it_lost_events():
    """I6: a viewer that falls behind the ring holds no memory; it gets `reset` and goes on with what is new."""

    async def main():
        stream = Stream()
        viewer = stream.follow(None, {"update"})
        await anext(viewer)
        for n in range(EVENTS_KEPT + 10):
            stream.publish("update", {"n": n})
        assert b"event: reset" in await anext(viewer)
        stream.publish("update", {"n": "new"})
        assert b'"new"' in await anext(viewer)

    asyncio.run(asyncio.wait_for(main(), 5))


def test_who_did_what_is_kept_and_bounded(drive, bundle, monkeypatch):
    """Changes that were made are noted with who made them, refused ones are not, and the oldest make room."""
    monkeypatch.setattr(audit, "AUDIT_KEPT", 3)

    async def body(site):
        await site.start_job(bundle)
        async with site.api() as api:
            for call in ("pause", "pause", "resume", "pause", "stop"):
                await api.post(f"/jobs/job/{call}")
            found = (await api.get("/audit")).json()
            assert [e["action"] for e in found["audit"]] == ["stop_job", "pause_job", "resume_job"]
            assert found["audit"][0]["actor"] == "local"
            assert found["audit"][0]["path"] == "/api/v1/jobs/job/stop"
            assert [e["number"] for e in found["audit"]] == [4, 3, 2]
        site.fresh_engine()
        await site.engine.load()
        assert [entry.number for entry in site.engine.audit.entries] == [2, 3, 4]

    drive(body)


def test_two_servers_note_under_different_numbers():
    """I3: of two servers that note a change at the same time neither loses it."""

    async def main():
        ports = open_ports("memory:")
        logs = [AuditLog(ports.heads), AuditLog(ports.heads)]
        entry = AuditEntry(0, 1.0, "local", "admin", "stop_job", "POST", "/", 200)
        for log in (*logs, *logs):
            await log.add(entry)
        await logs[0].load()
        assert [e.number for e in logs[0].entries] == [1, 2, 3, 4]
        await ports.close()

    asyncio.run(main())
