"""What people do to jobs, bundles and versions through the API, over memory ports."""

import asyncio

import pytest

from broker_bridge import cells
from edge_client.wire import topics
from edge_client.wire.messages import Assignment, VersionNotice

JOB = {"name": "job", "dataset": "data", "buffer_size": 1, "staleness_max": 0}


def refused(response, status, code, *words):
    problem = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert (response.status_code, problem["code"]) == (status, code), problem
    assert [word for word in words if word not in problem["detail"]] == [], problem["detail"]


async def upload(api, bundle):
    return (await api.post("/bundles", content=bundle)).json()["digest"]


def test_a_paused_job_assigns_nobody_until_it_is_resumed(drive, bundle):
    """While a job is paused who asks waits, updates under way are folded, and the offer stands."""

    async def body(site):
        await site.start_job(bundle)
        async with site.api() as api:
            assert (await api.post("/jobs/job/pause")).json()["state"] == "paused"
            await site.ask("dev-1")
            await site.update("dev-2", 1)
            await site.step()
            waiting = (await api.get("/jobs/job")).json()
            assert (waiting["training"], waiting["waiting"], waiting["buffered"]) == (0, 1, 1)
            refused(await api.post("/jobs/job/pause"), 409, "paused")
            site.fresh_engine()
            await site.engine.load()
        async with site.api() as api:
            assert (await api.get("/jobs/job")).json()["state"] == "paused"
            assert (await api.post("/jobs/job/resume")).json()["state"] == "running"
            refused(await api.post("/jobs/job/resume"), 409, "running", "not paused")
            await site.ask("dev-1", 2)
            await site.step()
            assert (await site.down(topics.assign("dev-1", "job"), Assignment)).version == 0
            await api.post("/jobs/job/stop")
            refused(await api.post("/jobs/job/pause"), 409, "ended", "stopped by a person")

    drive(body)


def test_a_paused_job_still_ends_at_its_deadline(drive, bundle):
    """A pause stops the training, not the clock."""

    async def body(site):
        await site.start_job(bundle, end={"deadline_s": 10})
        async with site.api() as api:
            await api.post("/jobs/job/pause")
            site.clock.now += 11
            await site.step()
            assert (await api.get("/jobs/job")).json()["state"] == "ended"

    drive(body)


async def blobs(site):
    """All that is stored but the memo, which is written every second."""
    _, memo = await site.ports.heads.load("memo")
    return {digest async for digest in site.ports.blobs.list()} - {memo.decode()}


def test_a_deleted_job_leaves_nothing_but_its_name(drive, bundle):
    """Deleting an ended job frees its blobs and cells, spares those of a job on the same bundle, and keeps the name."""

    async def body(site):
        async with site.api() as api:
            digest = await upload(api, bundle)
            await api.post("/jobs", json={**JOB, "name": "other", "bundle": digest})
            before = await blobs(site)
            await site.start_job(bundle, buffer_size=1)
            for seed in range(3):
                await site.update("dev-1", seed)
                await site.step()
            refused(await api.delete("/jobs/job"), 409, "running", "stop it first")
            await api.post("/jobs/job/stop")
            await site.step()
            assert (await api.delete("/jobs/job")).status_code == 204

            assert await blobs(site) == before
            assert (await site.ports.heads.load(cells.job_key("job")))[0] == 0
            assert (await site.ports.heads.load(cells.version_key("job")))[0] == 0
            assert await site.down(topics.version("all", "job"), VersionNotice) is None
            refused(await api.get("/jobs/job"), 404, "not_found")
            refused(await api.post("/jobs", json={**JOB, "bundle": digest}), 409, "exists", "another name")
            await site.step()
            assert (await api.get("/jobs/other/model")).status_code == 200

        site.fresh_engine()  # reads the log of the deleted job's updates again
        await site.engine.load()
        site.engine.cursor = dict.fromkeys(site.engine.cursor, 0)
        await site.step()
        assert set(site.engine.jobs) == {"other"}

    drive(body)


def test_a_deletion_that_was_cut_short_is_finished_at_the_next_start(drive, bundle):
    """When the server dies after a job is marked deleted the rest goes when it loads its state."""

    async def body(site):
        async with site.api() as api:
            await upload(api, bundle)
            before = await blobs(site)
            await site.start_job(bundle, buffer_size=1)
            await site.update("dev-1", 1)
            await site.step()
            await api.post("/jobs/job/stop")
            await site.step()
        await site.engine.store.change("job", state="deleted")
        site.fresh_engine()
        await site.engine.load()

        assert await blobs(site) == before
        assert site.engine.jobs == {}

    drive(body)


def test_a_bundle_is_deleted_only_when_no_job_uses_it(drive, bundle):
    """A bundle in use is refused with the job's name; once unused it goes and is not listed any more."""

    async def body(site):
        async with site.api() as api:
            digest = await upload(api, bundle)
            await api.post("/jobs", json={**JOB, "bundle": digest})
            (entry,) = (await api.get("/bundles")).json()["bundles"]
            assert (entry["digest"], entry["size"], entry["jobs"]) == (digest, len(bundle), ["job"])
            refused(await api.delete(f"/bundles/{digest}"), 409, "in_use", "job")
            await api.post("/jobs/job/stop")
            assert (await api.delete("/jobs/job")).status_code == 204
            assert (await api.delete(f"/bundles/{digest}")).status_code == 204
            assert (await api.get("/bundles")).json() == {"bundles": [], "next": None, "total": 0}
            refused(await api.get(f"/bundles/{digest}"), 404, "not_found")
            refused(await api.delete(f"/bundles/{digest}"), 404, "not_found")

    drive(body)


def test_validating_a_job_starts_none(drive, bundle):
    """A spec is checked against bundle and names in use, and comes back with all its fields."""

    async def body(site):
        async with site.api() as api:
            digest = await upload(api, bundle)
            checked = await api.post("/jobs/validate", json={**JOB, "bundle": digest})
            assert checked.json()["spec"]["training"]["steps"] == 20
            assert checked.json()["parameters"] == 143
            refused(await api.get("/jobs/job"), 404, "not_found")
            refused(
                await api.post("/jobs/validate", json={**JOB, "bundle": "0" * 64}), 404, "not_found", "bundle"
            )
            refused(
                await api.post("/jobs/validate", json={**JOB, "bundle": digest, "quorum": 9}), 422, "bad_spec"
            )
            await api.post("/jobs", json={**JOB, "bundle": digest})
            refused(await api.post("/jobs/validate", json={**JOB, "bundle": digest}), 409, "exists")

    drive(body)


def test_the_promoted_version_is_kept_and_is_the_model_by_default(drive, bundle):
    """A promoted version outlives retention and a restart, and is what an export without a version gives."""

    async def body(site):
        await site.start_job(bundle, buffer_size=1, staleness_max=0)
        async with site.api() as api:
            for seed in range(12):
                await site.update("dev-1", seed)
                await site.step()
                if seed == 0:
                    promoted = await api.post("/jobs/job/versions/1/promote")
                    assert promoted.json()["promoted"] is True
            assert (await api.get("/jobs/job/model")).headers["X-Fedfleet-Version"] == "1"
            refused(await api.post("/jobs/job/versions/2/promote"), 410, "not_stored", "0, 1, 4")
            refused(await api.post("/jobs/job/versions/99/promote"), 404, "not_found")
        site.fresh_engine()
        await site.engine.load()
        async with site.api() as api:
            assert (await api.get("/jobs/job")).json()["promoted_version"] == 1
            assert (await api.get("/jobs/job/model")).headers["X-Fedfleet-Version"] == "1"
            assert (await api.get("/jobs/job/model?version=12")).headers["X-Fedfleet-Version"] == "12"

    drive(body)


def test_a_promotion_is_taken_back(drive, bundle):
    """Without it the newest version is exported, and the one that was promoted goes with the others of its age."""

    async def body(site):
        job = await site.start_job(bundle, buffer_size=1, staleness_max=0)
        async with site.api() as api:
            refused(await api.post("/jobs/job/unpromote"), 409, "not_promoted")
            await site.update("dev-1", 0)
            await site.step()
            seen = (await api.get("/jobs/job")).headers["ETag"]
            await api.post("/jobs/job/versions/1/promote")
            refused(await api.post("/jobs/job/unpromote", headers={"If-Match": seen}), 412, "stale_etag")
            assert (await api.post("/jobs/job/unpromote")).json()["promoted_version"] is None
            for seed in range(1, 12):
                await site.update("dev-1", seed)
                await site.step()
            assert (await api.get("/jobs/job/model")).headers["X-Fedfleet-Version"] == "12"
            assert 1 not in job.recent

    drive(body)


def test_versions_form_a_chain(drive, bundle):
    """I3: each version names the manifest of its parent, and its own says which log ranges it holds."""

    async def body(site):
        await site.start_job(bundle, buffer_size=1)
        async with site.api() as api:
            for seed in range(3):
                await site.update("dev-1", seed)
                await site.step()
            versions = (await api.get("/jobs/job/versions")).json()["versions"]
            assert [v["parent"] for v in versions] == [None, *(v["manifest"] for v in versions[:-1])]
            manifest = (await api.get("/jobs/job/versions/2/manifest")).json()
            assert (manifest["digest"], manifest["parent"]) == (
                versions[2]["manifest"],
                versions[1]["manifest"],
            )
            assert manifest["bases"] == {"1": 1}

    drive(body)


def test_lists_come_in_pages(drive, bundle):
    """Pages follow one another without gap or repetition, in either order, until `next` is null."""

    async def body(site):
        await site.start_job(bundle, buffer_size=1)
        async with site.api() as api:
            for seed in range(4):
                await site.update("dev-1", seed)
                await site.step()
            for order, numbers in (("oldest", [0, 1, 2, 3, 4]), ("newest", [4, 3, 2, 1, 0])):
                query, pages = {"limit": "2", "order": order}, []
                while True:
                    page = (await api.get("/jobs/job/versions", params=query)).json()
                    pages.append([v["version"] for v in page["versions"]])
                    assert page["total"] == 5
                    if page["next"] is None:
                        break
                    query["cursor"] = page["next"]
                assert pages == [numbers[:2], numbers[2:4], numbers[4:]]
            refused(await api.get("/jobs/job/versions?cursor=x"), 422, "bad_request", "cursor")
            refused(await api.get("/jobs?limit=0"), 422, "bad_request", "limit")
            refused(await api.get("/jobs?limit=1001"), 422, "bad_request", "limit")
            assert (await api.get("/jobs", params={"cursor": "job"})).json()["jobs"] == []

    drive(body)


def test_who_knows_an_old_state_changes_nothing(drive, bundle):
    """Of two people who stop the job they saw, the second is told that it was changed since."""

    async def body(site):
        await site.start_job(bundle)
        async with site.api() as api:
            seen = (await api.get("/jobs/job")).headers["ETag"]
            paused = await api.post("/jobs/job/pause", headers={"If-Match": seen})
            refused(
                await api.post("/jobs/job/stop", headers={"If-Match": seen}),
                412,
                "stale_etag",
                "read it again",
            )
            refused(await api.delete("/jobs/job", headers={"If-Match": seen}), 412, "stale_etag")
            stop = await api.post("/jobs/job/stop", headers={"If-Match": f'"9", {paused.headers["ETag"]}'})
            assert stop.json()["state"] == "ended"
            refused(await api.post("/jobs/job/stop", headers={"If-Match": "*"}), 409, "ended")

    drive(body)


def test_the_same_key_gets_the_same_answer(drive, bundle):
    """A POST sent again with its Idempotency-Key changes nothing more, and another request may not take its key."""

    async def body(site):
        async with site.api() as api:
            digest = await upload(api, bundle)
            spec, key = {**JOB, "bundle": digest}, {"Idempotency-Key": "k-1"}
            first, second = await asyncio.gather(
                *(api.post("/jobs", json=spec, headers=key) for _ in range(2))
            )
            assert (first.status_code, second.status_code) == (201, 201)
            assert first.json() == second.json()
            assert [r.headers.get("Idempotency-Replayed") for r in (first, second)] == [None, "true"]
            again = await api.post("/jobs", json={**spec, "name": "two"}, headers=key)
            refused(again, 409, "key_reused", "new key")
            refused(await api.post("/jobs", json=spec), 409, "exists")
            refused(
                await api.post("/jobs", json={**spec, "quorum": 9}, headers={"Idempotency-Key": "k-2"}),
                422,
                "bad_spec",
            )
            mended = await api.post("/jobs", json={**spec, "name": "two"}, headers={"Idempotency-Key": "k-2"})
            assert mended.status_code == 201
            refused(
                await api.post("/jobs/job/stop", headers={"Idempotency-Key": "k" * 201}), 422, "bad_request"
            )

    drive(body)


@pytest.mark.parametrize("path", ["/jobs", "/jobs/validate"])
def test_a_spec_over_its_limit_is_refused_before_it_is_read(drive, path):
    """I6: a body that announces two gigabytes is refused at once, one that does not when it passes the limit."""

    async def body(site):
        async with site.api() as api:
            announced = await api.post(path, content=b"{}", headers={"Content-Length": str(2 << 30)})
            refused(announced, 413, "too_large", "65536")

            async def endless():
                while True:
                    yield bytes(30_000)

            refused(await api.post(path, content=endless()), 413, "too_large")

    drive(body)
