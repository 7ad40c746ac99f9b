"""The fleet as people look at it: at one glance, as a table, and why one device does not train."""

import pytest

from aggregator.api import examples
from edge_client.wire.messages import Ask, DataSchema, DatasetInfo, DeviceInfo, DeviceState, TaskStatus

SCHEMA = DataSchema((2, 8), 3)
LEASE_S = 60.0


async def introduce(site, device, *, software="fedfleet 1", dataset="data", cohort="all"):
    await site.say(device, "state", DeviceState("ready", 1, cohort=cohort))
    info = DeviceInfo(software, 1, "aarch64", "ort", ("ternary",), (DatasetInfo(dataset, SCHEMA, 40),))
    await site.say(device, "info", info)


async def status(site, device, state, reason="", *, rev=1, progress=None):
    await site.say(device, "task", TaskStatus(state, rev, reason, progress), job="job")


@pytest.fixture
def fleet(drive, bundle):
    """Run `body(site, api)` on a fleet in which each device does something else."""

    def run(body):
        async def main(site):
            await site.start_job(bundle, lease_s=LEASE_S, concurrency=1)
            for name in ("busy", "declining", "failing", "idle", "lost", "waiting-1", "waiting-2"):
                await introduce(site, name, cohort="lab" if name == "idle" else "all")
            await status(site, "busy", "training", progress=0.25)
            await status(site, "declining", "declined", "on battery")
            await status(site, "failing", "failed", "out of memory")
            for name in ("waiting-1", "waiting-2"):
                await site.ask(name)
                await status(site, name, "asking")
            await site.say("lost", "state", DeviceState("lost", 1))
            await site.step()
            async with site.api() as api:
                await body(site, api)

        drive(main)

    return run


async def rows(api, **query):
    page = (await api.get("/fleet/devices", params=query)).json()
    return {row["device"]: row["doing"] for row in page["devices"]}


def test_the_table_says_what_each_device_does(fleet):
    """One word a device: what it does for the jobs that have not ended, and why not where it says so."""

    async def body(site, api):
        found = await rows(api)
        assert found == {
            "busy": "training",
            "declining": "declined",
            "failing": "failed",
            "idle": "idle",
            "lost": "away",
            "waiting-1": "waiting",
            "waiting-2": "waiting",
        }
        page = (await api.get("/fleet/devices", params={"doing": "declined"})).json()
        assert page["devices"][0]["reason"] == "on battery"
        await api.post("/jobs/job/stop")
        await site.step()
        assert set((await rows(api)).values()) == {"idle", "away"}

    fleet(body)


def test_a_device_that_is_silent_past_its_lease_is_late(fleet):
    """Lateness comes with time, without a message, and goes with one."""

    async def body(site, api):
        site.clock.now += LEASE_S + 1
        assert (await rows(api, doing="late")) == {"busy": "late"}
        (because,) = (await api.get("/fleet/why/busy")).json()["because"]
        assert (
            because["text"]
            == "It took a place and was last heard of 1 minute ago; its lease of 60 s is over."
        )
        await status(site, "busy", "uploading", rev=2)
        await site.step()
        assert (await rows(api, doing="late")) == {}

    fleet(body)


def test_filters_hold_together_and_facets_count_under_the_others(fleet):
    """A facet counts what each of its values would leave, as if it were not set itself."""

    async def body(_site, api):
        page = (await api.get("/fleet/devices", params={"state": "ready", "doing": "declined"})).json()
        assert page["total"] == 1
        assert page["facets"]["state"] == {"ready": 1}
        assert page["facets"]["doing"] == {"training": 1, "declined": 1, "failed": 1, "idle": 1, "waiting": 2}
        assert (await rows(api, q="BATTERY")) == {"declining": "declined"}
        assert (await rows(api, q="aarch64", cohort="lab")) == {"idle": "idle"}
        assert (await rows(api, reason="out of memory")) == {"failing": "failed"}
        assert (await rows(api, software="fedfleet 2")) == {}

    fleet(body)


def test_the_table_is_sorted_and_read_by_windows(fleet):
    """Any window of any order is answered by itself; equal rows are in the order of their ids."""

    async def body(_site, api):
        by_doing = list((await rows(api, sort="doing")).values())
        assert by_doing == ["training", "waiting", "waiting", "failed", "declined", "idle", "away"]
        assert list(await rows(api, order="down", limit=2)) == ["waiting-2", "waiting-1"]
        assert list(await rows(api, offset=5)) == ["waiting-1", "waiting-2"]
        assert list(await rows(api, offset=50)) == []
        assert list(await rows(api, sort="state", limit=1)) == ["lost"]

    fleet(body)


def test_a_row_follows_its_device(fleet):
    """Messages, tags, pauses and forgetting change the row at once."""

    async def body(site, api):
        await rows(api)
        await status(site, "declining", "training", rev=2)
        await site.step()
        assert (await rows(api, doing="training")) == {"busy": "training", "declining": "training"}
        await api.put("/devices/idle/tags", json={"tags": ["roof"]})
        assert (await rows(api, tag="roof")) == {"idle": "idle"}
        await api.post("/devices/idle/pause")
        page = (await api.get("/fleet/devices", params={"doing": "paused"})).json()
        assert [(row["device"], row["reason"]) for row in page["devices"]] == [("idle", "paused by local")]

    fleet(body)


def test_the_summary_counts_and_names_what_needs_a_person(fleet):
    """Counts by state and doing, reasons to decline, and alerts with what to look at."""

    async def body(site, api):
        seen = (await api.get("/fleet")).json()
        assert seen["devices"]["states"] == {"ready": 6, "lost": 1}
        assert seen["devices"]["doings"]["waiting"] == 2
        assert seen["devices"]["declined"] == [{"reason": "on battery", "devices": 1}]
        assert [(note["level"], note["state"] or note["doing"]) for note in seen["alerts"]] == [
            ("warn", "lost"),
            ("warn", "failed"),
            ("note", "declined"),
        ]
        site.clock.now += LEASE_S + 1
        texts = [note["text"] for note in (await api.get("/fleet")).json()["alerts"]]
        assert texts[0] == "1 device is late: silent past the lease."

    fleet(body)


def test_the_summary_counts_updates_by_minute_and_their_cost(fleet):
    """Updates are counted in the minute of their version, and their bytes beside what dense ones would take."""

    async def body(site, api):
        for name in ("busy", "waiting-1", "waiting-2"):
            await site.update(name, 1)
        await site.step()
        site.clock.now += 121
        seen = (await api.get("/fleet")).json()
        assert (sum(seen["updates"]["minutes"]), seen["updates"]["minutes"][-3:]) == (3, [3, 0, 0])
        assert seen["cost"]["updates"] == 3
        assert seen["cost"]["bytes_dense"] == 3 * 4 * site.engine.jobs["job"].bundle.parameters
        assert seen["cost"]["bytes_up"] < seen["cost"]["bytes_dense"]

    fleet(body)


def test_many_rejections_are_an_alert(fleet):
    """More than a tenth of the newest verdicts refused, and the most frequent code is named."""

    async def body(site, api):
        for number in range(30):
            await site.reject("failing", "norm" if number else "stale", "too large")
        await site.step()
        texts = [note["text"] for note in (await api.get("/fleet")).json()["alerts"]]
        assert "100% of the newest 30 updates were rejected, most often: norm." in texts

    fleet(body)


@pytest.mark.parametrize(
    ("device", "training", "words"),
    [
        ("busy", True, "It is training, 25% done."),
        ("declining", False, "It declined: on battery."),
        ("failing", False, "Its last attempt failed: out of memory. It tries again by itself."),
        ("lost", False, "Its connection broke without a farewell less than a minute ago."),
        ("waiting-2", False, "It is willing and waits for a place: 1 of 1 are taken, and 1 device waits."),
        ("idle", False, "It has not asked for a place yet"),
    ],
)
def test_a_sentence_says_why_a_device_does_not_train(fleet, device, training, words):
    """Each state of a device has its own reason."""

    async def body(_site, api):
        (because,) = (await api.get(f"/fleet/why/{device}")).json()["because"]
        assert because["training"] is training
        assert because["text"].startswith(words)

    fleet(body)


def test_the_reason_may_be_the_job_or_a_person(fleet):
    """A paused job, a paused device, another cohort, no data and no job are reasons, too."""

    async def body(site, api):
        async def text(device="idle"):
            return (await api.get(f"/fleet/why/{device}")).json()["because"][-1]["text"]

        await introduce(site, "elsewhere", dataset="other")
        await site.step()
        assert await text("elsewhere") == "The job wants the data set data; it lends other."
        await api.post("/jobs/job/pause")
        assert await text() == "The job is paused: no device gets a place."
        await api.post("/devices/idle/pause")
        assert (await text()).startswith("It was paused by local less than a minute ago")
        await api.post("/devices/idle/resume")
        await api.post("/jobs/job/stop")
        assert await text() == "No job is running: there is nothing to train."
        assert (await api.get("/fleet/why/nobody")).status_code == 404

    fleet(body)


@pytest.mark.parametrize(
    ("fields", "turns", "words"),
    [
        (
            {"robust": {"device_share_max": 0.25}},
            (["dev-0"], ["dev-0"]),
            "It is willing, and has given as many updates to the version in the making as count of one device",
        ),
        (
            {"strategy": "fedavg"},
            (["dev-0"], ["dev-0"]),
            "It is willing and has given its update of this round; it gets a place in the next one.",
        ),
        (
            {"strategy": "fedavg", "over_selection": 1, "concurrency": 9},
            (["dev-1"], ["dev-2", "dev-3", "dev-4", "dev-0"]),
            "It is willing and waits for the next round: all places of this one are taken, and 1 device waits.",
        ),
        (
            {"concurrency": 2},
            ([], ["dev-1", "dev-2", "dev-0"]),
            "It is willing and waits for a place: 2 of 2 are taken, and 1 device waits.",
        ),
    ],
    ids=["its share is given", "it took part in the round", "the round is full", "all places are taken"],
)
def test_a_willing_device_waits_for_what_it_is_told(drive, bundle, fields, turns, words):
    """It is said to wait for a place only when all are taken: else for the next version or the next round."""
    given, willing = turns  # updates of the version in the making, and asks after them

    async def body(site):
        await site.start_job(bundle, buffer_size=4, **fields)
        await introduce(site, "dev-0")
        for number in range(8):  # two versions, after which shares of devices are known
            await site.update(f"dev-{number}", number, base=number // 4 if fields.get("strategy") else 0)
            await site.step()
        job = site.engine.jobs["job"]
        assert (job.version, job.buffered) == (2, 0)
        for device in given:
            await site.update(device, 9)
        for device in willing:
            await site.ask(device)
            await site.step()
            site.clock.now += 1
        await status(site, "dev-0", "asking")
        await site.step()
        async with site.api() as api:
            (because,) = (await api.get("/fleet/why/dev-0")).json()["because"]
            assert "dev-0" in job.leases.waiting
            assert because["text"].startswith(words)

    drive(body)


def test_a_free_place_is_not_waited_for(drive, bundle):
    """Between an ask and its answer the place is on its way, unless storage fails; an ask that never came is missed."""

    async def body(site):
        job = await site.start_job(bundle, concurrency=8)
        for name in ("asks", "holds"):
            await introduce(site, name)
            await status(site, name, "asking")
        await site.ask("holds")
        await site.step()
        async with site.api() as api:

            async def text(device):
                return (await api.get(f"/fleet/why/{device}")).json()["because"][0]["text"]

            assert await text("holds") == "It was given a place and has not begun yet."
            assert (await text("asks")).startswith("It asks for a place, and the server has no such ask")
            job.ask("asks", Ask("job", 1, 10), site.clock.now)  # taken, and the step not over yet
            told = "It is willing, and free places are given out in a moment: 1 of 8 are taken."
            assert await text("asks") == told
            site.engine.trouble = "the disk is full"
            told = "It is willing, and there are free places, but the server waits: the disk is full."
            assert await text("asks") == told

    drive(body)


def test_tags_are_changed_on_many_devices(fleet):
    """Each change is made or refused by itself, with the reason; what a device has already changes nothing."""

    async def body(_site, api):
        change = {"devices": ["busy", "idle", "nobody"], "add": ["roof", "lab"]}
        answer = (await api.post("/fleet/tags", json=change)).json()
        assert answer["changed"] == 2
        assert [(r["device"], r["code"]) for r in answer["refused"]] == [("nobody", "not_found")]
        again = (await api.post("/fleet/tags", json={**change, "add": ["roof"], "remove": ["none"]})).json()
        assert again["changed"] == 0
        gone = {"devices": ["busy"], "remove": ["roof"], "add": ["x" * 65]}
        assert (await api.post("/fleet/tags", json=gone)).json()["refused"][0]["code"] == "bad_tags"
        assert (await api.get("/devices/busy")).json()["tags"] == ["lab", "roof"]
        many = await api.post("/fleet/tags", json={"devices": ["busy"] * 501})
        assert (many.status_code, many.json()["code"]) == (422, "bad_request")
        wrong = await api.post("/fleet/tags", json={"devices": ["busy"], "tags": []})
        assert (wrong.status_code, wrong.json()["code"]) == (422, "bad_request")

    fleet(body)


def test_many_devices_are_paused_and_resumed(fleet):
    """A device that is in that state already counts as unchanged, one that never spoke is refused by name."""

    async def body(_site, api):
        some = {"devices": ["idle", "waiting-1", "nobody"]}
        paused = (await api.post("/fleet/pause", json=some)).json()
        assert (paused["changed"], [r["device"] for r in paused["refused"]]) == (2, ["nobody"])
        assert (await rows(api, doing="paused")) == {"idle": "paused", "waiting-1": "paused"}
        assert (await api.post("/fleet/pause", json=some)).json()["changed"] == 0
        assert (await api.post("/fleet/resume", json=some)).json()["changed"] == 2
        assert (await rows(api, doing="paused")) == {}

    fleet(body)


def test_the_examples_have_the_fields_of_these_answers(fleet):
    """The OpenAPI document shows what the server really answers; what is counted by name differs."""

    async def body(_site, api):
        seen, table = (await api.get("/fleet")).json(), (await api.get("/fleet/devices")).json()
        assert seen.keys() == examples.FLEET.keys()
        for part in ("devices", "updates", "cost"):
            assert seen[part].keys() == examples.FLEET[part].keys()
        assert seen["alerts"][0].keys() == examples.FLEET["alerts"][0].keys()
        assert table.keys() == examples.ROWS.keys()
        assert table["facets"].keys() == examples.ROWS["facets"].keys()
        assert table["devices"][0].keys() == examples.ROW.keys()

    fleet(body)


def test_who_asks_is_told_what_they_may(drive):
    """A page knows which buttons to show."""

    async def body(site):
        await site.step()
        async with site.api() as api:
            assert (await api.get("/me")).json() == {"name": "local", "role": "admin"}

    drive(body)
