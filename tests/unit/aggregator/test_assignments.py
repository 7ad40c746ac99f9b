"""The engine over memory ports: who gets a place, and what an assignment says."""

import numpy as np
import pytest

from aggregator.versions import load_model
from edge_client.wire import grid, messages, topics
from edge_client.wire.messages import (
    Assignment,
    DeviceState,
)


def test_asks_are_assigned_up_to_the_concurrency(drive, bundle):
    """Willing devices get leases and the newest base; the rest wait until a place is free."""

    async def body(site):
        job = await site.start_job(bundle, concurrency=2)
        for number in range(3):
            await site.ask(f"dev-{number}")
            site.clock.now += 1
        await site.step()

        first = await site.down(topics.assign("dev-0", "job"), Assignment)
        assert (first.ask, first.version, first.version_hash) == (1, 0, job.manifest.model_hash)
        assert first.model == (job.manifest.keyframe,)
        assert await site.down(topics.assign("dev-2", "job"), Assignment) is None

        await site.update("dev-0", 1)
        await site.step()

        assert (await site.down(topics.assign("dev-2", "job"), Assignment)).version == 0

    drive(body)


def test_a_device_that_vanished_frees_its_place(drive, bundle):
    """An expired lease goes to the next, so nobody blocks a job."""

    async def body(site):
        await site.start_job(bundle, concurrency=1, lease_s=60)
        await site.ask("dev-0")
        await site.step()
        await site.ask("dev-1")
        await site.step()
        assert await site.down(topics.assign("dev-1", "job"), Assignment) is None

        site.clock.now += 60
        await site.step()

        assert await site.down(topics.assign("dev-1", "job"), Assignment) is not None

    drive(body)


def test_a_device_that_is_away_gets_no_place(drive, bundle):
    """An ask made before the device left keeps no other waiting; back again, it asks again and gets its turn."""

    async def body(site):
        await site.start_job(bundle, concurrency=1)
        for device in ("first", "gone", "here"):
            await site.ask(device)
        await site.step()
        await site.say("gone", "state", DeviceState("lost", 1))
        await site.update("first", 1)
        await site.step()
        leases = site.engine.jobs["job"].leases
        assert set(leases.held) == {"here"}
        await site.ask("gone", 1)
        await site.step()
        assert set(leases.waiting) == {"gone"}

    drive(body)


def test_a_device_with_an_older_version_gets_deltas(drive, bundle):
    """I5: what leads from the held version to the newest is the least of deltas, merged delta and key-frame."""

    async def body(site):
        job = await site.start_job(bundle, buffer_size=1, concurrency=9)
        for seed in range(6):
            await site.update("dev-9", seed)
            await site.step()
        holds = {f"dev-{h}": None if h == 7 else h for h in (*range(8), 99)}
        for device, version in holds.items():
            await site.ask(device, holds=version)
        await site.step()

        for device, version in holds.items():
            assignment = await site.down(topics.assign(device, "job"), Assignment)
            blobs = [await site.ports.blobs.get(blob.digest) for blob in assignment.model]
            model, at = None, None
            if version is not None and version <= job.version:
                model = await load_model(site.ports.blobs, job.recent[version], job.bundle.sizes)
                at = version
                singles = [job.recent[v].delta for v in range(version + 1, 7)]
                merged = grid.encode_delta(6, version, job.state.model, model)
                least = min(sum(d.size for d in singles), len(merged), job.manifest.keyframe.size)
                assert sum(map(len, blobs)) == (least if version < 6 else 0)
            for blob in blobs:
                frame = grid.decode(blob, job.bundle.sizes)
                model, at = grid.apply(model, frame, at), frame.version
            assert grid.model_hash(model).hex() == assignment.version_hash
            if device in {"dev-7", "dev-99"}:
                assert assignment.model == (job.manifest.keyframe,)
        assert any(job.paths.merged.values())

    drive(body)


def test_merged_deltas_go_with_the_version_they_lead_to(drive, bundle):
    """Retention reaches merged deltas, also those that an engine made before it was started again."""

    async def body(site):
        job = await site.start_job(bundle, buffer_size=1, staleness_max=0)
        for seed in range(5):
            await site.update("dev-1", seed)
            await site.step()
        await site.ask("dev-2", holds=1)
        site.clock.now += 1
        await site.step()
        (digest,) = job.paths.merged[5]

        site.fresh_engine()
        await site.engine.load()
        job = site.engine.jobs["job"]
        assert job.paths.merged == {5: [digest]}
        assert (job.paths.find(1, job.manifest)[0].digest, job.paths.merged) == (digest, {5: [digest]})
        for seed in range(5, 14):
            stored = {known async for known in site.ports.blobs.list()}
            assert digest in stored
            await site.update("dev-1", seed)
            await site.step()

        assert digest not in {known async for known in site.ports.blobs.list()}
        assert not job.paths.merged

    drive(body)


def test_a_device_gets_the_jobs_codec_only_if_it_speaks_it(drive, bundle):
    """The plan names the job's codec to a device that lists it, to others one they list; none in common ends it."""

    async def body(site):
        job = await site.start_job(bundle, training={"codec": "q8"})
        await site.say("new", "ask", messages.Ask("job", 1, 10, codecs=("ternary", "q8")))
        await site.say("old", "ask", messages.Ask("job", 1, 10))
        await site.say("odd", "ask", messages.Ask("job", 1, 10, codecs=("q5", "sign")))
        await site.say("alien", "ask", messages.Ask("job", 1, 10, codecs=("q5",)))
        await site.step()
        plans = [await site.down(topics.assign(name, "job"), Assignment) for name in ("new", "old", "odd")]

        assert [a.plan.codec for a in plans] == ["q8", "ternary", "sign"]
        assert "dense-fp32" in (await site.down(topics.end("alien", "job"), messages.JobEnd)).reason
        assert "alien" not in {*job.leases.held, *job.leases.waiting}

    drive(body)


def test_a_devices_first_updates_carry_more(drive, bundle):
    """The density falls geometrically over a device's own updates, restart or not, and then stays."""

    async def body(site):
        job = await site.start_job(
            bundle, buffer_size=1, training={"density": 0.01, "density_first": 0.16, "warmup": 4}
        )
        seen = [job.density("dev")]
        for seed in range(5):
            await site.update("dev", seed)
            await site.step()
            if seed == 2:
                site.fresh_engine()
                await site.engine.load()
            seen.append(site.engine.jobs["job"].density("dev"))

        np.testing.assert_allclose(seen, [0.16, 0.08, 0.04, 0.02, 0.01, 0.01], rtol=1e-6)
        assert site.engine.jobs["job"].density("other") == pytest.approx(0.16)

    drive(body)
