"""A job from what is stored: its newest version, its history, and what to do when some of it is damaged.

A key-frame is made again from the version before and the delta. What cannot be made again makes the job go on from
the version before, whose blobs are kept for that; the updates of the lost one are in the log and are folded again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from aggregator.errors import CorruptStateError
from aggregator.hidden import State
from aggregator.job import Job
from aggregator.optimizer import Slots
from aggregator.snapshot import Snapshot
from aggregator.sums import Ints
from aggregator.versions import (
    VersionManifest,
    load_delta,
    load_manifest,
    load_model,
    load_slots,
    load_state,
    load_sums,
    mend_keyframe,
    record,
)
from broker_bridge.cells import VersionCell
from broker_bridge.ports import Blobs

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Newest:
    """A version with all that the next one is made from; `damage` says why it is not the one the head names."""

    digest: str
    manifest: VersionManifest
    state: State
    slots: Slots
    sums: Ints | None
    damage: str = ""


async def newest(blobs: Blobs, cell: VersionCell, sizes: Sequence[int]) -> Newest:
    """The version that the head names, or the one before when it is damaged; raise CorruptStateError."""
    try:
        return await _whole(blobs, cell.manifest, sizes)
    except CorruptStateError as error:
        if not cell.parent:
            raise
        damage = f"version {cell.version} is damaged ({error})"
        try:
            before = await _whole(blobs, cell.parent, sizes)
        except CorruptStateError as other:
            raise CorruptStateError(f"{damage}, and so is the one before ({other})") from other
        number = before.manifest.version
        text = f"{damage}; the job goes on from version {number}, folding the updates of the lost one again"
        return Newest(before.digest, before.manifest, before.state, before.slots, before.sums, text)


async def _whole(blobs: Blobs, digest: str, sizes: Sequence[int]) -> Newest:
    manifest = await load_manifest(blobs, digest)
    try:
        state = await load_state(blobs, manifest, sizes)
    except CorruptStateError as error:
        if not await mend_keyframe(blobs, manifest, sizes):
            raise
        log.warning("keyframe.mended", job=manifest.job, version=manifest.version, damage=str(error))
        state = await load_state(blobs, manifest, sizes)
    return Newest(
        digest, manifest, state, await load_slots(blobs, manifest), await load_sums(blobs, manifest)
    )


async def recall(blobs: Blobs, job: Job, snapshot: Snapshot | None, stored: set[str]) -> None:
    """Give a job at its newest version its history, from a snapshot and the manifests after it.

    `stored` are the digests of all blobs. Raise CorruptStateError when a manifest that no snapshot covers is damaged.
    """
    chain = [(job.digest, job.manifest)]
    while chain[-1][1].parent:
        digest, manifest = chain[-1]
        if snapshot is not None and manifest.version < len(snapshot.records):
            if digest == snapshot.manifest:
                break
            snapshot = None  # of a version that was lost
        chain.append((manifest.parent, await load_manifest(blobs, manifest.parent)))
    if snapshot is not None and chain[-1][0] == snapshot.manifest:
        chain.pop()
        for known in snapshot.records:
            job.history.add(known)
        job.learner.take_up(snapshot.past)
        kept = {v: snapshot.records[v].manifest for v in snapshot.kept}
        models = {v: await load_manifest(blobs, digest) for v, digest in kept.items()}
    else:
        models = {}
    for digest, manifest in reversed(chain):
        job.history.add(record(digest, manifest))
        job.learner.recall(manifest)
        models[manifest.version] = manifest
    job.recent = {v: m for v, m in sorted(models.items()) if m.keyframe.digest in stored or v == job.version}


async def reach(blobs: Blobs, job: Job, sizes: Sequence[int]) -> None:
    """Load what leads devices from recent versions to the newest; a damaged delta is done without."""
    for version in range(max(0, job.oldest), job.version + 1):
        if version not in job.recent:
            continue
        try:
            if version:
                job.paths.extend(version, await load_delta(blobs, job.recent[version]))
            if job.spec.mixing:
                job.learner.remember(version, await load_model(blobs, job.recent[version], sizes))
        except CorruptStateError as error:
            log.warning("version.damaged", job=job.spec.name, version=version, error=str(error))
