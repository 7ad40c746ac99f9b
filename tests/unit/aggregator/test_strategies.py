"""Strategies in the engine: each preset makes the model its paper's formula gives, also across restarts."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from aggregator.hidden import FINE_BITS
from edge_client.wire import messages, sparse, topics

EXAMPLE = Path(__file__).parents[3] / "examples" / "strategy"


def exact(job):
    """The server's model x, flat float64."""
    steps = [t.step_exp - FINE_BITS for t in job.bundle.table]
    return np.concatenate(
        [np.ldexp(x.astype(float), s) for x, s in zip(job.state.exact(), steps, strict=True)]
    )


def flat(job, frame):
    """An update as one float64 vector."""
    update = sparse.decode(frame, job.bundle.sizes)
    sizes = [t.size for t in job.bundle.tensors]
    return np.concatenate([t.dense(n) for t, n in zip(update.weights.tensors, sizes, strict=True)]).astype(
        float
    )


def close(job, expected):
    """Up to a fine grid step, 2^-FINE_BITS of the largest step a tensor has."""
    tolerance = 2.0 ** (max(t.step_exp for t in job.bundle.table) - FINE_BITS)
    return np.abs(exact(job) - expected).max() <= tolerance


async def restarted(site):
    await site.engine._save_memo()
    site.fresh_engine()
    await site.engine.load()
    return site.engine.jobs["job"]


@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_calibrated_is_ca2fl(drive, bundle, beta):
    """I2: x ← x + h + Σ (Δ_i - h_i) / K with h_i what each device sent last, and the same after any restart."""

    async def body(site):
        job = await site.start_job(
            bundle, strategy="calibrated", cache_weight=beta, buffer_size=2, robust={"clip_factor": None}
        )
        x, cache = exact(job), {}
        for version, devices in enumerate((("a", "b"), ("b", "c"), ("c", "a"), ("a", "b"))):
            h = np.mean(list(cache.values()), axis=0) if cache else 0.0
            fresh = {}
            for device in devices:
                fresh[device] = flat(job, await site.update(device, 10 * version + ord(device), base=version))
                await site.step()
                if device == devices[0] and version % 2:
                    job = await restarted(site)
                    await site.step()
            x = x + beta * h + sum(u - beta * cache.get(d, 0.0) for d, u in fresh.items()) / 2
            cache |= fresh

            assert job.version == version + 1
            assert close(job, x)
            x = exact(job)
        stored = {str(digest) async for digest in site.ports.blobs.list()}
        assert {e.frame.digest for e in job.learner.cache.entries.values()} <= stored

    drive(body)


def test_a_replaced_frame_is_deleted(drive, bundle):
    """I6: of each device the cache keeps one frame, and the one that the version before the newest had."""

    async def body(site):
        await site.start_job(bundle, strategy="calibrated", buffer_size=1)
        frames = []
        for seed in range(3):
            frames.append(await site.update("a", seed))
            await site.step()
        stored = [await site.ports.blobs.get(d) async for d in site.ports.blobs.list()]

        assert [frame in stored for frame in frames] == [False, True, True]

    drive(body)


@pytest.mark.parametrize("name", ["momentum", "adam", "yogi", "amsgrad"])
def test_an_optimiser_goes_on_after_a_restart_as_if_nothing_had_been(drive, bundle, name):
    """I2: a server optimiser's state lies with the version that it made."""

    async def run(site, *, restarts):
        job = await site.start_job(bundle, buffer_size=1, server_lr=0.1, optimizer={"name": name})
        for seed in range(4):
            await site.update("a", seed)
            await site.step()
            if restarts:
                job = await restarted(site)
        return exact(job)

    results = []
    for restarts in (False, True):

        async def body(site, restarts=restarts):
            results.append(await run(site, restarts=restarts))

        drive(body)
    assert np.array_equal(*results)


def test_fedasync_mixes_models(drive, bundle):
    """With a = 0.6 s(τ) and K = 1: x ← (1 - a) x + a (x_base + Δ) (Xie et al. 2019, alg. 1), also after a restart."""

    async def body(site):
        job = await site.start_job(bundle, strategy="fedasync", buffer_size=1, robust={"clip_factor": None})
        models = [exact(job)]
        for seed, base in enumerate((0, 0, 1, 3)):
            if seed == 3:
                job = await restarted(site)
            frame = await site.update("a", seed, base=base)
            await site.step()
            alpha = 0.6 * (1 + seed - base) ** -0.5
            expected = (1 - alpha) * models[-1] + alpha * (models[base] + flat(job, frame))

            assert np.abs(exact(job) - expected).max() <= 2.0**-14  # devices hold x̂: x rounded to the grid
            models.append(exact(job))

    drive(body)


def test_rounds_begin_over_selected_and_end_with_the_first(drive, bundle):
    """fedavg: 1.3 K devices begin, K make the version, the others are refused as stale and a new round begins."""

    async def body(site):
        job = await site.start_job(bundle, strategy="fedavg", buffer_size=3)
        for number in range(8):
            await site.ask(f"dev-{number}")
        await site.step()
        assert sorted(job.leases.held) == ["dev-0", "dev-1", "dev-2", "dev-3"]

        await site.update("dev-0", 0)
        await site.step()
        await site.ask("dev-0", 2)
        await site.step()
        assert sorted(job.leases.held) == ["dev-1", "dev-2", "dev-3"]  # nobody is in one round twice

        await site.update("dev-1", 1)
        await site.update("dev-2", 2)
        await site.step()

        assert job.version == 1
        assert job.hashes().keys() == {1}  # of dev-3's update nothing can come any more
        assert sorted(job.leases.held) == ["dev-0", "dev-4", "dev-5", "dev-6"]

    drive(body)


def test_a_vanished_device_does_not_block_a_round(drive, bundle):
    """When its lease is over another device takes its place in the round."""

    async def body(site):
        job = await site.start_job(bundle, strategy="fedavg", buffer_size=2, over_selection=1, lease_s=60)
        for number in range(4):
            await site.ask(f"dev-{number}")
        await site.step()
        await site.update("dev-0", 0)
        site.clock.now += 61
        await site.step()
        assert sorted(job.leases.held) == ["dev-2"]
        await site.update("dev-2", 2)
        await site.step()

        assert job.version == 1

    drive(body)


def test_a_round_waits_for_its_quorum(drive, bundle):
    """After max_wait_s a round of too few updates goes on waiting; with as many as the quorum it is committed."""

    async def body(site):
        job = await site.start_job(bundle, strategy="fedavg", buffer_size=4, quorum=2, max_wait_s=100)
        await site.update("dev-0", 0)
        await site.step()
        site.clock.now += 101
        await site.step()
        assert job.version == 0
        await site.update("dev-1", 1)
        await site.step()

        assert (job.version, job.manifest.bases) == (1, {0: 2})

    drive(body)


def test_a_flood_of_one_device_counts_as_its_share(drive, bundle):
    """I11: what a device sends beyond its share of a buffer weighs nothing and fills nothing."""

    async def body(site):
        job = await site.start_job(
            bundle, buffer_size=4, robust={"device_share_max": 0.25, "clip_factor": None}
        )
        for number in range(8):
            await site.update(f"dev-{number}", number)
        await site.step()
        assert job.version == 2
        before = exact(job)
        flood = [await site.update("flood", 50 + i) for i in range(9)]
        await site.step()
        assert (job.version, job.buffered) == (2, 9)
        honest = [await site.update(f"dev-{i}", 70 + i) for i in range(3)]
        await site.step()

        mean = sum(flat(job, frame) for frame in (flood[0], *honest)) / 4
        assert job.version == 3
        assert close(job, before + mean)
        assert job.manifest.total_weight == 4

    drive(body)


def test_a_huge_update_is_scaled_down_to_what_is_usual(drive, bundle):
    """The bound is a multiple of the median norm of the versions before, and stands in their manifest."""

    async def body(site):
        job = await site.start_job(
            bundle, buffer_size=4, robust={"clip_factor": 0.5, "device_share_max": None}
        )
        for number in range(16):
            await site.update(f"dev-{number}", number)
            await site.step()
        bound = job.manifest.bounds.norm
        assert bound is not None
        before = exact(job)
        frames = [await site.update(f"dev-{i}", i) for i in range(4)]
        await site.step()

        step = exact(job) - before
        updates = [flat(job, frame) for frame in frames]
        assert all(np.linalg.norm(u) > bound for u in updates)
        clipped = [u * np.floor(256 * bound / np.linalg.norm(u)) / 256 for u in updates]
        assert close(job, before + sum(clipped) / 4)
        assert np.linalg.norm(step) <= bound

    drive(body)


@pytest.fixture
def own_strategy(tmp_path, monkeypatch):
    """The example installed as a package of its own would be."""
    shutil.copy(EXAMPLE / "trust.py", tmp_path / "trust.py")
    info = tmp_path / "fedfleet_trust-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fedfleet-trust\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[fedfleet.strategies]\ntrust = trust:Trust\nmad = trust:Mad\n[fedfleet.staleness]\nodd = trust:odd\n"
    )
    with (tmp_path / "trust.py").open("a") as code:
        code.write(
            "\n\nclass Mad(Strategy):\n    def step(self, mean, slots, delay):\n        return mean * np.nan, {}\n"
            "\n\ndef odd(tau):\n    return 1.0 / (1 + tau)\n"
        )
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("own_strategy")
def test_a_strategy_of_ones_own_runs_by_its_name(drive, bundle):
    """The example, a package of its own of no more than forty lines, folds with its own weights and defaults."""

    async def body(site):
        job = await site.start_job(bundle, strategy="trust", buffer_size=2)
        assert job.spec.staleness_max == 10
        for seed, base in ((0, 0), (1, 0), (2, 0), (3, 1)):
            await site.update(f"dev-{seed}", seed, base=base)
            await site.step()

        assert (job.version, job.manifest.weights) == (2, {0: 0.5, 1: 1.0})
        assert job.manifest.slots is not None

    drive(body)
    assert len((EXAMPLE / "trust.py").read_text().splitlines()) <= 40


@pytest.mark.usefixtures("own_strategy")
def test_a_staleness_function_of_ones_own_runs_by_its_name(drive, bundle):
    """An entry point in `fedfleet.staleness` is s(τ)."""

    async def body(site):
        job = await site.start_job(bundle, staleness="odd", buffer_size=1)
        for seed in range(2):
            await site.update("a", seed, base=0)
            await site.step()

        assert job.manifest.weights == {0: 0.5}

    drive(body)


@pytest.mark.usefixtures("own_strategy")
def test_a_strategy_that_computes_nonsense_cannot_commit(drive, bundle):
    """A step that is not finite ends the job with the reason; the model stays what it was."""

    async def body(site):
        job = await site.start_job(bundle, strategy="mad", buffer_size=1)
        await site.update("a", 0)
        await site.step()
        await site.step()

        record = site.engine.store.records["job"]
        assert (job.version, record.state) == (0, "ended")
        assert "not 143 finite values" in record.reason
        end = await site.down(topics.offer("all", "job"), messages.Offer)
        assert end is None

    drive(body)
