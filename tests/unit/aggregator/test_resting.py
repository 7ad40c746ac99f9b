"""A job that ended long ago keeps no arrays in memory, and still answers and folds what comes late."""

import numpy as np
import pytest

from aggregator import engine as engine_module
from aggregator import views
from aggregator.versions import load_model
from tests.unit.aggregator.test_damage import restarted, trained


async def ended(site, bundle, **fields):
    """A job that ended long ago."""
    job = await trained(site, bundle, **fields)
    await site.engine.end("job", "enough")
    site.clock.now += engine_module.REST_AFTER_S
    await site.step()
    return job


def test_an_ended_job_lets_go_of_its_arrays_and_still_answers(drive, bundle):
    """I6: what only a further version needs goes after a while; figures, versions and the model stay."""

    async def body(site):
        job = await trained(site, bundle)
        await site.engine.end("job", "enough")
        await site.step()
        assert not job.resting
        before = [views.version(job, record) for record in job.history.records]
        model = job.state.model
        site.clock.now += engine_module.REST_AFTER_S
        await site.step()
        assert job.resting
        assert job.state.model == ()
        assert [views.version(job, record) for record in job.history.records] == before
        assert views.job(site.engine, "job")["version"] == 2
        stored = await load_model(site.ports.blobs, job.manifest, job.bundle.sizes)
        assert all(np.array_equal(a, b) for a, b in zip(stored, model, strict=True))
        await site.step()
        assert not site.engine._stale

    drive(body)


@pytest.mark.parametrize("fields", [{}, {"strategy": "calibrated"}, {"optimizer": {"name": "adam"}}])
def test_a_late_update_of_a_resting_job_is_folded(drive, bundle, fields):
    """I1: an update that admission took just before the end is folded however late it is read."""

    async def body(site):
        job = await ended(site, bundle, **fields)
        assert job.resting
        await site.update("dev-5", 99, base=2)
        await site.step()
        assert site.engine._stale
        await site.engine.load()
        await site.step()
        after = site.engine.jobs["job"]
        assert (after.version, sum(r.updates for r in after.history.records)) == (3, 7)
        assert not site.engine._stale
        await site.step()
        assert after.resting
        assert (await restarted(site)).digest == after.digest

    drive(body)
