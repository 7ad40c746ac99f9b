"""How jobs of the engine end: by a person, a target, a drain, and across a crash."""

import msgspec
import numpy as np
import pytest

from aggregator import views
from aggregator.errors import RefusedError
from aggregator.hidden import FINE_BITS
from broker_bridge import cells
from broker_bridge.ports import Conflict
from edge_client.wire import grid, topics
from edge_client.wire.messages import (
    DeviceState,
    JobEnd,
    Metrics,
    Offer,
    TaskStatus,
    VersionNotice,
)
from tests.unit.aggregator.conftest import same


def test_a_stopped_job_says_so_and_folds_what_is_left(drive, bundle):
    """I1: ending withdraws the offer, tells every participant, and commits what the log still holds."""

    async def body(site):
        job = await site.start_job(bundle)
        await site.ask("dev-1")
        await site.update("dev-1", 1)
        await site.step()

        await site.engine.end("job", "enough")
        await site.step()

        assert job.version == 1
        assert await site.down(topics.offer("all", "job"), Offer) is None
        assert (await site.down(topics.end("dev-1", "job"), JobEnd)).reason == "enough"
        _, value = await site.ports.heads.load(cells.job_key("job"))
        assert msgspec.json.decode(value, type=cells.JobCell).state == "ended"
        with pytest.raises(RefusedError, match="has ended already"):
            await site.engine.end("job", "again")

        await site.update("late", 2, base=0)  # admitted before the bridge saw the end
        await site.step()
        assert job.version == 2

    drive(body)


def test_a_draining_job_leaves_nothing_out(drive, bundle):
    """The last versions of a job carry all that deltas left out: nobody pays for their bytes any more."""

    async def body(site):
        job = await site.start_job(bundle, downlink_density=0.1)
        for seed in range(3):
            await site.update(f"dev-{seed}", seed)
        await site.step()
        assert not job.manifest.lossless
        assert 0 < job.manifest.lag_norm == job.history.records[1].lag_norm

        await site.update("dev-1", 9)
        await site.step()
        await site.engine.end("job", "enough")
        await site.step()

        assert (job.version, job.manifest.lossless, job.manifest.downlink_density) == (2, True, 1.0)

    drive(body)


def test_a_job_that_ends_without_a_buffer_exports_all_that_was_learned(drive, bundle):
    """The newest version of an ended job is the server's model rounded to the grid, and its key-frame can be pulled."""

    async def body(site):
        job = await site.start_job(bundle, downlink_density=0.1)
        for seed in range(3):
            await site.update(f"dev-{seed}", seed)
        await site.step()
        exact = job.state.exact()
        assert not job.manifest.lossless
        await site.engine.end("job", "enough")
        await site.step()
        await site.step()

        assert (job.version, job.exported, job.manifest.lossless) == (2, 2, True)
        assert (job.manifest.bases, job.manifest.devices) == ({}, ())
        notice = await site.down(topics.version("all", "job"), VersionNotice)
        frame = grid.decode(await site.ports.blobs.get(notice.keyframe.digest), job.bundle.sizes)
        model = grid.apply(None, frame, None)
        assert (notice.version, notice.version_hash) == (2, grid.model_hash(model).hex())
        assert same(model, [np.rint(x / 2**FINE_BITS) for x in exact])
        site.fresh_engine()
        await site.engine.load()
        await site.step()
        assert site.engine.jobs["job"].version == 2

    drive(body)


def test_an_ended_or_unknown_job_is_answered_at_birth_and_ask(drive, bundle):
    """R-016: a device that was away while its job ended learns it when it comes back."""

    async def body(site):
        await site.start_job(bundle)
        await site.engine.end("job", "enough")
        await site.say("dev-1", "state", DeviceState("ready", 1, jobs=("job", "ghost")))
        await site.ask("dev-2")
        await site.step()

        assert (await site.down(topics.end("dev-1", "job"), JobEnd)).reason == "enough"
        assert "no such job" in (await site.down(topics.end("dev-1", "ghost"), JobEnd)).reason
        assert await site.down(topics.end("dev-2", "job"), JobEnd) is not None

        await site.say("dev-1", "task", TaskStatus("ended", 9), job="job")
        await site.step()
        assert await site.down(topics.end("dev-1", "job"), JobEnd) is None

    drive(body)


def test_a_job_ends_at_its_target_on_the_hold_outs(drive, bundle):
    """Enough smoothed hold-out accuracy ends a job, and nothing else is looked at."""

    async def body(site):
        await site.start_job(bundle, end={"target_accuracy": 0.8})
        await site.evaluate("dev-1", 0, 0.7)
        await site.step()
        assert site.engine.store.records["job"].state == "running"

        for number in range(5):
            await site.evaluate(f"dev-{number}", 0, 0.9)
        await site.step()

        record = site.engine.store.records["job"]
        assert record.state == "ended"
        assert "target accuracy" in record.reason

    drive(body)


def test_a_job_without_an_accuracy_is_judged_by_its_loss(drive, detector):
    """Best version, notice, view and end follow the loss; the threshold is the devices' mean by samples."""

    async def body(site):
        job = await site.start_job(detector, buffer_size=1, end={"target_loss": 0.3})
        for number, loss in enumerate((2.0, 4.0), 1):
            await site.update(f"dev-{number}", number)
            await site.step()
            await site.report(f"dev-{number}", number, Metrics(400 * number, loss, threshold=2 * loss))
        await site.step()

        notice = await site.down(topics.version("all", "job"), VersionNotice)
        view, version = views.job(site.engine, "job"), views.version(job, job.history.records[1])
        assert job.best() == 1
        assert job.exported == 2
        await site.update("dev-1", 9)
        await site.step()
        assert (job.version, job.exported) == (3, 2)
        assert (notice.accuracy, view["accuracy"], view["error"]) == (None, None, None)
        assert view["loss"] == pytest.approx((400 * 2 + 800 * 4) / 1200)
        assert view["threshold"] == pytest.approx(2 * view["loss"])
        assert (version["loss"], version["threshold"], version["holdout_n"]) == (2.0, 4.0, 400)

        await site.report("dev-3", 2, Metrics(100_000, 0.1, threshold=0.2))
        await site.step()
        assert "target loss of 0.3" in site.engine.store.records["job"].reason

    drive(body)


def test_a_target_that_the_bundle_cannot_reach_is_refused(drive, detector):
    """I13: a reconstruction has no accuracy to wait for, and the refusal says what to ask for instead."""

    async def body(site):
        with pytest.raises(RefusedError, match=r"reconstruction has no accuracy; use end\.target_loss"):
            await site.start_job(detector, end={"target_accuracy": 0.9})
        assert site.engine.jobs == {}

    drive(body)


def test_a_crash_inside_the_end_of_a_job_does_not_leave_it_open(drive, bundle):
    """I1, I11: a job whose record says ended is closed for admission after the next load."""

    async def body(site):
        await site.start_job(bundle)
        revision, value = await site.ports.heads.load("spec/job")
        ended = msgspec.json.decode(value) | {"state": "ended", "reason": "by a person"}
        await site.ports.heads.swing("spec/job", revision, msgspec.json.encode(ended))

        site.fresh_engine()
        await site.engine.load()

        _, value = await site.ports.heads.load(cells.job_key("job"))
        assert msgspec.json.decode(value, type=cells.JobCell).state == "ended"

    drive(body)


def test_a_job_whose_end_was_not_stored_is_still_running(drive, bundle):
    """A stop that storage refused changes nothing, and works when it is asked for again."""

    async def body(site):
        await site.start_job(bundle)
        revision, value = await site.ports.heads.load("spec/job")
        await site.ports.heads.swing("spec/job", revision, value)
        with pytest.raises(Conflict):
            await site.engine.end("job", "by a person")
        assert site.engine.store.records["job"].state == "running"

        await site.engine.load()
        assert (await site.engine.end("job", "by a person")).state == "ended"

    drive(body)
