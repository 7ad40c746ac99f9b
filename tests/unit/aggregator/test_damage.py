"""Damaged storage: what is found damaged is said, and the version before keeps serving."""

import msgspec
import pytest

from aggregator import snapshot, views
from aggregator.errors import RefusedError
from aggregator.memo import MEMO_KEY
from aggregator.snapshot import taken
from aggregator.versions import load_manifest
from broker_bridge import cells
from broker_bridge.ports import Kind
from edge_client.wire import topics
from edge_client.wire.messages import Assignment, DeviceState, JobEnd


def spoil(site, digest):
    """Flip a bit of a stored blob."""
    data = bytearray(site.ports.blobs._blobs[digest])
    data[len(data) // 2] ^= 1
    site.ports.blobs._blobs[digest] = bytes(data)


async def trained(site, bundle, versions=2, **fields):
    """A job with so many versions, of three updates each."""
    await site.start_job(bundle, **fields)
    for seed in range(3 * versions):
        await site.update(f"dev-{seed % 3}", seed)
        await site.step()
    await site.engine._save_memo()
    return site.engine.jobs["job"]


async def restarted(site):
    site.fresh_engine()
    await site.engine.load()
    return site.engine.jobs["job"]


async def cell(site):
    _, value = await site.ports.heads.load(cells.version_key("job"))
    return msgspec.json.decode(value, type=cells.VersionCell)


def test_a_damaged_keyframe_is_made_again(drive, bundle):
    """I5: the key-frame of the newest version comes back from the one before and the delta, to the last byte."""

    async def body(site):
        job = await trained(site, bundle)
        spoil(site, job.manifest.keyframe.digest)
        after = await restarted(site)
        assert (after.version, after.digest, after.buffered) == (2, job.digest, 0)
        await site.ports.blobs.get(after.manifest.keyframe.digest)
        assert views.job(site.engine, "job")["damage"] == ""

    drive(body)


def test_a_damaged_bundle_is_stored_again_from_its_copy(drive, bundle):
    """A job whose bundle is damaged goes on from the copy that it is opened through, when that is sound."""

    async def body(site):
        job = await trained(site, bundle)
        digest = job.bundle_ref.digest
        spoil(site, digest)
        after = await restarted(site)
        assert (after.version, site.engine.store.damaged) == (2, {})
        assert len(await site.ports.blobs.get(digest)) == job.bundle_ref.size

        spoil(site, digest)
        for copy in site.engine.shelf._cache.glob(f"{digest}*"):
            copy.write_bytes(b"another")
        with pytest.raises(KeyError):
            await restarted(site)
        assert list(site.engine.store.damaged) == ["job"]

    drive(body)


@pytest.mark.parametrize("kind", ["keyframe", "delta", "merged"])
def test_a_blob_that_assignments_name_is_stored_again(drive, bundle, kind):
    """A model or delta that is damaged while the server runs comes back before devices ask for it in vain for long."""

    async def body(site):
        job = await trained(site, bundle, versions=4)
        holds = {"keyframe": None, "delta": 3, "merged": 1}[kind]
        job.paths.take_fresh()

        async def named(number):
            await site.ask("dev-1", number=number, holds=holds)
            await site.step()
            assignment = await site.down(topics.assign("dev-1", "job"), Assignment)
            assert assignment.ask == number
            return assignment.model

        before = await named(1)
        digests = [blob.digest for blob in before]
        assert (digests == [job.manifest.keyframe.digest]) == (kind == "keyframe")
        assert (digests == [job.manifest.delta.digest]) == (kind == "delta")
        assert kind != "merged" or digests == job.paths.merged[4]
        for blob in before:
            spoil(site, blob.digest)
        for number in (2, 3):  # a merged delta is made anew for the next one that asks
            site.clock.now += 200
            after = await named(number)
        assert after == before
        for blob in after:
            await site.ports.blobs.get(blob.digest)

    drive(body)


PARTS = {"manifest": lambda job: job.digest, "lag": lambda job: job.manifest.lag.digest}
SETTINGS = {"plain": {}, "adam": {"optimizer": {"name": "adam"}}, "cached": {"strategy": "calibrated"}}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("part", PARTS)
def test_a_lost_version_is_made_again_from_the_one_before_and_the_log(drive, bundle, part, settings):
    """I1, I2: what cannot be mended makes the job go on from the version before; the same updates give the same model."""

    async def body(site):
        job = await trained(site, bundle, versions=3, downlink_density=0.2, **SETTINGS[settings])
        lost = job.manifest
        assert lost.version == 3
        spoil(site, PARTS[part](job))
        after = await restarted(site)
        assert after.version == (await cell(site)).version == 2
        damage = views.job(site.engine, "job")["damage"]
        assert "version 3 is damaged" in damage
        assert "goes on from version 2" in damage
        await site.step()
        again = site.engine.jobs["job"]
        assert (again.version, again.manifest.bases) == (3, lost.bases)
        assert again.manifest.model_hash == lost.model_hash
        assert again.manifest.lag == lost.lag
        assert (await restarted(site)).digest == again.digest
        assert views.job(site.engine, "job")["damage"] == damage

    drive(body)


def test_an_update_of_a_lost_version_is_folded_all_the_same(drive, bundle):
    """I1: what admission took is folded, also when the version it is based on was lost since."""

    async def body(site):
        job = await trained(site, bundle, downlink_density=0.2)
        await site.update("dev-7", 7, base=2)
        await site.evaluate("dev-7", 2, 0.5)
        await site.step()
        spoil(site, job.manifest.lag.digest)
        assert (await restarted(site)).version == 1
        await site.step()
        after = site.engine.jobs["job"]
        assert (after.version, after.buffered) == (2, 1)

    drive(body)


def test_updates_of_the_newest_version_stay_in_the_log(drive, bundle, monkeypatch):
    """I1: trimming leaves what a job folds again when it has to go back a version."""
    monkeypatch.setattr("aggregator.retention.LOG_KEPT", 0)

    async def body(site):
        job = await trained(site, bundle, downlink_density=0.2)
        await site.engine._trim()
        spoil(site, job.manifest.lag.digest)
        assert (await restarted(site)).version == 1
        await site.step()
        assert site.engine.jobs["job"].manifest.model_hash == job.manifest.model_hash

    drive(body)


def test_a_job_beyond_help_does_not_stop_the_others(drive, bundle):
    """A job whose last two versions are damaged is named; others go on, and its devices and updates are kept."""

    async def body(site):
        job = await trained(site, bundle, downlink_density=0.2)
        await site.start_job(bundle, name="other")
        await site.update("dev-9", 9, base=2)
        newest = job.digest
        spoil(site, newest)
        spoil(site, job.manifest.parent)
        site.fresh_engine()
        await site.engine.load()
        assert set(site.engine.jobs) == {"other"}
        assert set(site.engine.store.damaged) == {"job"}
        with pytest.raises(RefusedError, match="doctor") as caught:
            views.find_job(site.engine, "job")
        assert caught.value.code == "damaged"
        await site.ask("dev-1", number=9)
        await site.say("dev-2", "state", DeviceState("ready", 1, "all", ("job",)))
        await site.step()
        assert await site.down(topics.end("dev-1", "job"), JobEnd) is None
        assert await site.down(topics.end("dev-2", "job"), JobEnd) is None
        site.clock.now += 1000
        await site.engine._save_memo()

        spoil(site, newest)  # a person puts it back
        spoil(site, job.manifest.parent)
        assert (await restarted(site)).version == 2
        await site.step()
        assert sum(r.updates for r in site.engine.jobs["job"].history.records) == 7  # it waited long enough

    drive(body)


def test_a_damaged_memo_is_said_and_done_without(drive, bundle):
    """What only the memo knew is read from the log again as far as that goes; no update is folded twice."""

    async def body(site):
        job = await trained(site, bundle)
        _, value = await site.ports.heads.load(MEMO_KEY)
        spoil(site, value.decode())
        after = await restarted(site)
        await site.step()
        assert (after.version, after.buffered, after.digest) == (2, 0, job.digest)
        assert site.engine.fleet.devices["dev-0"].tasks["job"].accepted == 2

    drive(body)


def test_a_damaged_frame_of_the_cache_does_not_stop_the_job(drive, bundle):
    """I1: an update whose predecessor cannot be read is folded uncalibrated instead of for ever blocking the log."""

    async def body(site):
        job = await trained(site, bundle, strategy="calibrated")
        for entry in job.learner.cache.entries.values():
            spoil(site, entry.frame.digest)
        for seed in range(3):
            await site.update(f"dev-{seed}", 50 + seed)
        await site.step()
        assert job.version == 3

    drive(body)


class Reads:
    """Counts what is read of the blobs."""

    def __init__(self, blobs):
        self.count, self._blobs = 0, blobs

    def __getattr__(self, name):
        self.count += name == "get"
        return getattr(self._blobs, name)


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_start_reads_a_snapshot_and_the_manifests_after_it(drive, bundle, settings, monkeypatch):
    """A start knows from a snapshot what the whole chain says; a damaged one is made again from the chain."""
    monkeypatch.setattr(snapshot, "INTERVAL_VERSIONS", 16)
    monkeypatch.setattr(snapshot, "SEGMENT_VERSIONS", 10)

    async def body(site):
        await site.start_job(bundle, buffer_size=1, staleness_max=1, **SETTINGS[settings])
        for seed in range(40):
            await site.update(f"dev-{seed % 3}", seed)
            await site.step()
        job = site.engine.jobs["job"]
        assert job.version == 40
        whole = taken(job)
        _, value = await site.ports.heads.load("history/job")
        kept = snapshot.decode(site.ports.blobs._blobs[value.decode()])
        assert (len(kept.segments), [r.version for r in kept.records]) == (3, [30, 31, 32])

        blobs = site.engine.ports.blobs
        reads = Reads(blobs)
        object.__setattr__(site.ports, "blobs", reads)
        after = await restarted(site)
        assert taken(after) == whole
        assert sorted(after.recent) == sorted(job.recent)
        few = reads.count

        for damaged in (kept.segments[1].digest, value.decode()):
            spoil(type("Site", (), {"ports": type("Ports", (), {"blobs": blobs})}), damaged)
            reads.count = 0
            assert taken(await restarted(site)) == whole
            assert few < reads.count - 16
        object.__setattr__(site.ports, "blobs", blobs)

    drive(body)


def test_a_history_is_written_in_segments_of_which_none_stays_behind(drive, bundle, monkeypatch):
    """A record is written a bounded number of times; segments with lost versions go, and all do with their job."""
    monkeypatch.setattr(snapshot, "INTERVAL_VERSIONS", 1)
    monkeypatch.setattr(snapshot, "SEGMENT_VERSIONS", 4)

    async def stored(site):
        _, value = await site.ports.heads.load("history/job")
        kept = snapshot.decode(site.ports.blobs._blobs[value.decode()])
        return kept, {value.decode(), *(segment.digest for segment in kept.segments)}

    async def body(site):
        job = await trained(site, bundle, versions=7)
        before, ours = await stored(site)
        assert (len(before.segments), before.records) == (2, [])
        spoil(site, job.manifest.keyframe.digest)
        spoil(site, job.manifest.delta.digest)
        job = await restarted(site)
        assert job.version == 6
        for seed in range(9):
            await site.update(f"dev-{seed % 3}", 100 + seed)
            await site.step()
        later, theirs = await stored(site)
        assert (len(later.segments), [r.version for r in later.records]) == (2, [8, 9, 10])
        assert later.segments[0] == before.segments[0]
        assert not (ours - theirs) & site.ports.blobs._blobs.keys()

        await site.engine.end("job", "enough")
        await site.engine.delete("job")
        assert not theirs & site.ports.blobs._blobs.keys()

    drive(body)


def test_every_version_has_a_manifest_after_a_loss(drive, bundle):
    """I3: the chain of a job that went back a version has no gap."""

    async def body(site):
        job = await trained(site, bundle, versions=3, downlink_density=0.2)
        spoil(site, job.manifest.lag.digest)
        await restarted(site)
        await site.step()
        digest, numbers = site.engine.jobs["job"].digest, []
        while digest:
            manifest = await load_manifest(site.ports.blobs, digest)
            numbers.append(manifest.version)
            digest = manifest.parent
        assert numbers == [3, 2, 1, 0]
        entries = [e for p in range(site.ports.partitions) for e in await site.ports.log.read(p, 0, 100)]
        assert sum(e.kind is Kind.UPDATE for e in entries) == 9

    drive(body)


def test_a_memo_lost_with_a_job_is_made_again_when_the_job_is_mended(drive, bundle):
    """While a job is damaged of which no memo knows, none is written: the log is read again for that job as well."""

    async def body(site):
        job = await trained(site, bundle)
        await site.evaluate("dev-1", 2, 0.75)
        await site.step()
        await site.engine._save_memo()
        figures = views.job(site.engine, "job")["accuracy"]
        assert figures == 0.75
        _, value = await site.ports.heads.load(MEMO_KEY)
        spoil(site, value.decode())
        spoil(site, job.manifest.keyframe.digest)
        spoil(site, job.manifest.parent)
        site.fresh_engine()
        await site.engine.load()
        assert list(site.engine.store.damaged) == ["job"]
        await site.ask("dev-1", number=9)
        await site.step()
        site.clock.now += 1000
        await site.step()
        await site.engine._save_memo()

        spoil(site, job.manifest.keyframe.digest)  # a person puts them back
        spoil(site, job.manifest.parent)
        await restarted(site)
        await site.step()
        assert views.job(site.engine, "job")["accuracy"] == figures

    drive(body)


JUNK = (b"junk", b"\x93\xcb\x41\x00\x00\x00\x00\x00\x00\x00\xc4\x03abc\x05")  # no record; an update, no frame


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize("kind", [Kind.UPDATE, Kind.EVALUATION, Kind.EVENT, Kind.REJECTION])
def test_an_entry_that_cannot_be_taken_is_put_aside_and_blocks_nothing(drive, bundle, kind, junk):
    """I1: such an entry is kept with its reason; what comes before and behind it is folded exactly once."""

    async def body(site):
        await site.start_job(bundle)
        await site.update("dev-1", 1)
        uid = site.uid("dev-1")
        partition = topics.partition("dev-1", site.ports.partitions)
        name = str(uid) if kind is not Kind.EVENT else "event:dev-1:x"
        await site.ports.log.append(partition, name, kind, junk)
        for seed in (2, 3):
            await site.update("dev-1", seed)
        for _ in range(3):
            await site.step()
            if site.engine._stale:
                await site.engine.load()
        for _ in range(2):
            job = site.engine.jobs["job"]
            assert sum(r.updates for r in job.history.records) == 3
            assert job.buffered == 0
            (letter,) = site.engine.dead.letters.values()
            assert letter.uid == name
            assert await site.ports.blobs.get(letter.body) == junk
            await restarted(site)
            await site.step()

    drive(body)


def test_updates_that_cannot_be_decoded_together_are_decoded_alone(drive, bundle, monkeypatch):
    """I1: a bug in decoding many at once stops nothing, and every update is folded."""
    monkeypatch.setattr("edge_client.wire.rows.Table", None)

    async def body(site):
        await site.start_job(bundle)
        for seed in (1, 2, 3):
            await site.update(f"dev-{seed}", 1)
        await site.step()
        assert sum(r.updates for r in site.engine.jobs["job"].history.records) == 3
        assert not site.engine.dead.letters

    drive(body)


def test_more_entries_that_cannot_be_taken_than_there_may_be_end_the_engine(drive, bundle, monkeypatch):
    """I6: a program that can take nothing says so instead of passing over the log."""
    monkeypatch.setattr("aggregator.deadletters.LETTERS_MAX", 2)

    async def body(site):
        await site.start_job(bundle)
        for _ in range(3):
            await site.ports.log.append(0, str(site.uid("dev-1")), Kind.UPDATE, b"junk")
        for _ in range(2):
            await site.step()
            await site.engine.load()
        with pytest.raises(msgspec.DecodeError):
            await site.step()

    drive(body)
