"""The engine over memory ports: what the log says becomes versions, assignments and endings."""

import itertools

import msgspec
import numpy as np
import pytest

from aggregator import engine, views
from aggregator.buffer import Buffer
from aggregator.commit import advance, mean_update
from aggregator.errors import RefusedError
from aggregator.fold import Fold
from aggregator.hidden import follow
from aggregator.versions import blobs_of, load_manifest, load_state
from broker_bridge import cells
from broker_bridge.ports import Conflict, Kind
from broker_bridge.records import RejectionRecord, UpdateRecord
from edge_client.wire import sparse, topics
from edge_client.wire.messages import (
    Ask,
    DeviceState,
    VersionNotice,
)
from tests.unit.aggregator.conftest import same


def test_a_full_buffer_makes_a_version(drive, bundle):
    """K updates are folded and committed; the head, its manifest and the notice say so."""

    async def body(site):
        job = await site.start_job(bundle)
        for seed in range(3):
            await site.update(f"dev-{seed}", seed)

        await site.step()

        assert job.version == 1
        assert job.buffered == 0
        _, value = await site.ports.heads.load(cells.version_key("job"))
        assert msgspec.json.decode(value, type=cells.VersionCell).version == 1
        assert job.manifest.bases == {0: 3}
        notice = await site.down(topics.version("all", "job"), VersionNotice)
        assert (notice.version, notice.updates) == (1, 3)
        assert (notice.bytes_delta, notice.lossless) == (job.manifest.delta.size, True)
        assert 0 < notice.bits_per_parameter < 32
        assert notice.bytes_to_bound > 0.5

    drive(body)


@pytest.mark.parametrize("density", [0.1, 1.0])
@pytest.mark.parametrize("kind", ["bundle", "observing_bundle"])
def test_replaying_the_log_ranges_of_a_manifest_gives_the_same_bytes(drive, kind, density, request):
    """I2: a version can be made again from its manifest, its parent and the log, whatever the order and restarts."""

    async def body(site):
        job = await site.start_job(
            request.getfixturevalue(kind), buffer_size=4, server_lr=1.5, downlink_density=density
        )
        statistics = len(job.bundle.statistics)
        for seed in range(12):
            await site.update(f"dev-{seed % 5}", seed, base=max(0, job.version - seed % 2))
            await site.step()
            if seed == 5:  # in the middle of a buffer, with a model that devices do not have in full
                before = job.state
                site.fresh_engine()
                await site.engine.load()
                job = site.engine.jobs["job"]
                assert same(before.model, job.state.model)
                assert same(before.lag, job.state.lag)
        assert job.version == 3

        for record in job.history.records[1:]:
            manifest = await load_manifest(site.ports.blobs, record.manifest)
            parent = await load_manifest(site.ports.blobs, manifest.parent)
            weights = np.array([t.size for t in job.bundle.tensors])
            fold = Fold(job.bundle.sizes, "uniform")
            buffer = Buffer(fold, parent.bounds, weights)
            for partition, (after, upto) in sorted(manifest.included.items(), reverse=True):
                for entry in reversed(await site.ports.log.read(partition, after, 1000)):
                    if entry.offset <= upto and entry.kind is Kind.UPDATE:
                        update = msgspec.msgpack.decode(entry.body, type=UpdateRecord)
                        decoded = sparse.decode(update.frame, job.bundle.sizes, statistics)
                        buffer.add(
                            topics.Uid.parse(entry.uid).device, decoded, update.frame, wire_bytes=0, at=0.0
                        )
            before = await load_state(site.ports.blobs, parent, job.bundle.sizes)
            steps = [t.step_exp for t in job.bundle.table]
            step = mean_update(fold, manifest.weights, statistics=sum(job.bundle.sizes) - weights.sum())
            step[: weights.sum()] *= manifest.server_lr
            exact = advance(before.exact(), steps, step)
            again = follow(exact, before.model, steps, manifest.downlink_density, statistics=statistics)
            after = await load_state(site.ports.blobs, manifest, job.bundle.sizes)
            assert same(again.model, after.model)
            assert same(again.lag, after.lag)
            assert manifest.lossless == (density == 1.0)
            assert fold.count == sum(manifest.bases.values())

    drive(body)


def test_a_restart_mid_buffer_folds_each_update_once(drive, bundle):
    """I1, I2: an engine that dies with a part-full buffer and loses its memory ends at the same bytes."""

    async def body(site):
        await site.start_job(bundle)
        reference = Fold(site.engine.jobs["job"].bundle.sizes, "uniform")
        for seed in range(5):
            frame = await site.update(f"dev-{seed}", seed, base=0)
            await site.step()
            if seed >= 3:
                reference.add(sparse.decode(frame, site.engine.jobs["job"].bundle.sizes))
            if seed % 2:
                await site.engine._save_memo()
        before = site.engine.jobs["job"]
        assert (before.version, before.buffered) == (1, 2)

        site.fresh_engine()
        await site.engine.load()
        await site.step()

        after = site.engine.jobs["job"]
        assert (after.version, after.digest, after.buffered) == (1, before.digest, 2)
        assert np.array_equal(
            after.learner.buffer.fold.buckets[0].sums.dense(), reference.buckets[0].sums.dense()
        )
        assert sum(r.updates for r in after.history.records) == 3

    drive(body)


def test_a_restart_after_a_commit_folds_nothing_again(drive, bundle):
    """I1: offsets lie in the manifest, so a crash right after the head swung repeats nothing."""

    async def body(site):
        await site.start_job(bundle)
        for seed in range(3):
            await site.update(f"dev-{seed}", seed)
        await site.step()
        digest = site.engine.jobs["job"].digest

        site.fresh_engine()  # no memo was ever written
        await site.engine.load()
        await site.step()

        job = site.engine.jobs["job"]
        assert (job.version, job.digest, job.buffered) == (1, digest, 0)

    drive(body)


def test_a_commit_in_the_middle_of_reading_again_folds_nothing_twice(drive, bundle):
    """I1: an engine that reads one partition again commits while another's folded entries are yet to be passed."""

    async def body(site):
        await site.start_job(bundle)
        first, last = (
            next(d for d in map("dev-{}".format, range(999)) if topics.partition(d, n) == at)
            for n, at in ((site.ports.partitions, 0), (site.ports.partitions, site.ports.partitions - 1))
        )
        for seed, device in enumerate((first, last, last)):
            await site.update(device, seed)
        site.engine._memos.saved_at = site.clock()  # it dies before the next memo
        await site.step()
        assert site.engine.jobs["job"].version == 1
        for seed in range(3, 6):
            await site.update(first, seed)

        site.fresh_engine()
        await site.engine.load()
        await site.step()

        job = site.engine.jobs["job"]
        assert (job.version, job.manifest.bases, job.buffered) == (2, {1: 3}, 0)

    drive(body)


def test_two_racing_engines_make_one_chain(drive, bundle):
    """I3: the engine that loses the race reloads and goes on from the winner's version."""

    async def body(site):
        await site.start_job(bundle)
        winner = site.engine
        site.fresh_engine()
        loser = site.engine
        await loser.load()
        loser._memos.saved_at = site.clock()  # the race is for the version, not for the memo
        for seed in range(2):
            await site.update(f"dev-{seed}", seed)
        await loser._step()
        await site.update("dev-2", 2)
        await winner._step()
        await site.update("dev-3", 3, base=0)

        with pytest.raises(Conflict):
            await loser._step()
        await loser.load()
        await loser._step()

        assert (loser.jobs["job"].version, loser.jobs["job"].digest) == (1, winner.jobs["job"].digest)
        assert loser.jobs["job"].buffered == 1

    drive(body)


def test_a_part_full_buffer_is_committed_after_max_wait(drive, bundle):
    """A fleet too small for the buffer still makes versions."""

    async def body(site):
        job = await site.start_job(bundle, max_wait_s=20)
        await site.update("dev-1", 1)
        await site.step()
        assert job.version == 0

        site.clock.now += 20
        await site.step()

        assert job.version == 1

    drive(body)


@pytest.mark.parametrize("ended", [False, True])
def test_what_waited_in_the_log_makes_full_versions(drive, bundle, ended, monkeypatch):
    """I1: after an outage longer than max_wait_s, or the end of a job, a backlog is folded K at a time, not one by one."""
    monkeypatch.setattr(engine, "READ_LIMIT", 2)

    async def body(site):
        job = await site.start_job(bundle, max_wait_s=20)
        for seed in range(14):
            await site.update(f"dev-{seed % 7}", seed)
        site.clock.now += 60
        if ended:
            await site.engine.end("job", "enough")
        for _ in range(7):
            await site.step()

        assert [record.updates for record in job.history.records] == [0, 3, 3, 3, 3, 2]

    drive(body)


@pytest.mark.parametrize("jump", [-86_400, 86_400])
def test_a_clock_that_is_set_holds_nothing_up(drive, bundle, jump):
    """I1: after a jump of a day a part-full buffer becomes a version, memos are written, and places come free."""

    async def body(site):
        job = await site.start_job(bundle, max_wait_s=20, concurrency=1)
        await site.say("dev-9", "ask", Ask("job", 1, 50), job="job")
        await site.update("dev-1", 1)
        await site.step()
        assert (job.version, list(job.leases.held)) == (0, ["dev-9"])
        memo, _ = await site.ports.heads.load("memo")

        site.clock.now += jump
        await site.update("dev-2", 1)
        await site.say("dev-3", "ask", Ask("job", 1, 50), job="job")
        await site.step()
        if jump < 0:
            assert list(job.leases.held) == ["dev-9"]
            site.clock.now += job.spec.lease_s
            await site.step()

        assert job.version >= 1
        assert list(job.leases.held) == ["dev-3"]
        assert (await site.ports.heads.load("memo"))[0] > memo

    drive(body)


def test_rejections_are_counted_and_change_no_model(drive, bundle):
    """I11: a refused update leaves the model untouched and shows up with its reason."""

    async def body(site):
        job = await site.start_job(bundle)
        digest = job.digest
        record = RejectionRecord(site.clock(), "bad_crc", "damaged")
        for name, uid in (("job", site.uid("dev-1")), ("ghost", topics.Uid("dev-1", "ghost", "0" * 16, 1))):
            assert uid.job == name
            await site.append("dev-1", Kind.REJECTION, record, uid)
        await site.step()

        tasks = site.engine.fleet.devices["dev-1"].tasks
        assert tasks["job"].rejected == {"bad_crc": 1}
        assert tasks["unknown"].rejected == {"bad_crc": 1}
        assert (job.digest, job.buffered) == (digest, 0)

    drive(body)


def test_the_will_of_a_replaced_connection_is_ignored(drive, bundle):
    """R-019: a broker may publish a will late; its conn_seq tells that the device is back already."""

    async def body(site):
        await site.start_job(bundle)
        for state, conn_seq in (("ready", 1), ("ready", 2), ("lost", 1)):
            await site.say("dev-1", "state", DeviceState(state, conn_seq))
        await site.step()
        assert site.engine.fleet.devices["dev-1"].state == "ready"

        await site.say("dev-1", "state", DeviceState("lost", 2))
        await site.step()
        assert site.engine.fleet.devices["dev-1"].state == "lost"

    drive(body)


def test_old_models_go_and_the_chain_stays(drive, bundle):
    """Retention deletes models beyond reach, never a manifest, the first, the best or a reachable version."""

    async def body(site):
        job = await site.start_job(bundle, buffer_size=1, staleness_max=1)
        for seed in range(14):
            await site.update("dev-1", seed)
            if seed == 2:
                await site.evaluate("dev-2", 2, 0.99)
            await site.step()

        assert sorted(job.recent) == [0, 2, *range(5, 15)]
        stored = {digest async for digest in site.ports.blobs.list()}
        for record in job.history.records:
            manifest = await load_manifest(site.ports.blobs, record.manifest)
            for blob in blobs_of(manifest):
                assert (blob.digest in stored) == (record.version in job.recent)
        assert sorted(int(v) for v in job.hashes()) == [13, 14]

        site.fresh_engine()
        await site.engine.load()
        reloaded = site.engine.jobs["job"]
        assert set(itertools.islice(sorted(reloaded.recent, reverse=True), 10)) == set(range(5, 15))

    drive(body)


def test_a_name_is_used_once(drive, bundle):
    """A second job of a name is refused, and the first goes on."""

    async def body(site):
        job = await site.start_job(bundle)
        with pytest.raises(RefusedError, match="choose another name"):
            await site.start_job(bundle)
        assert site.engine.jobs["job"] is job

    drive(body)


def test_a_damaged_bundle_is_refused_and_not_stored(drive, bundle):
    """A bundle with a wrong digest inside is refused by name; nothing of it stays."""

    async def body(site):
        spoiled = bytearray(bundle)
        spoiled[bundle.index(b"cnn1d") + 1] ^= 1
        with pytest.raises(RefusedError) as caught:
            await site.engine.shelf.add(bytes(spoiled))
        assert caught.value.code == "bad_bundle"
        assert [digest async for digest in site.ports.blobs.list()] == []

    drive(body)


def test_versions_tell_what_their_updates_cost(drive, bundle):
    """Bits a parameter and bytes over the entropy bound come from the frames that were folded."""

    async def body(site):
        job = await site.start_job(bundle, buffer_size=2)
        frames = [await site.update(f"dev-{seed}", seed) for seed in range(2)]
        await site.step()
        view = views.version(job, job.history.records[1])
        sizes = np.array([t.size for t in job.bundle.tensors])
        bound = sum(
            sparse.bound_bytes(sparse.decode(f, job.bundle.sizes).weights, sizes, f[3]) for f in frames
        )

        assert view["bits_per_parameter"] == 8 * sum(map(len, frames)) / (2 * job.bundle.parameters)
        assert view["bytes_to_bound"] == pytest.approx(sum(map(len, frames)) / bound, rel=0.01)
        assert views.version(job, job.history.records[0])["bits_per_parameter"] is None

    drive(body)
