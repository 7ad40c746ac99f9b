"""A job's versions made again from the frames that each folded, to compare with what the server stored."""

import itertools

import msgspec
import numpy as np

from aggregator.buffer import Buffer
from aggregator.commit import advance, mean_update
from aggregator.fold import Fold
from aggregator.hidden import follow
from aggregator.versions import load_manifest, load_state
from broker_bridge import cells
from edge_client.wire import grid, sparse
from edge_client.wire.topics import Uid


async def replay(ports, job, bundle, updates):
    """Prove that the versions hold each update once and that each model comes out to the last bit; how many there are.

    `updates` are the accepted ones: uid and frame by partition and offset. `bundle` is a manifest.
    """
    chain = await _chain(ports, job)
    state = await load_state(ports.blobs, chain[0], bundle.sizes)
    folded, reached = set(), {}
    for before, manifest in itertools.pairwise(chain):
        own = _included(manifest, updates, reached)
        uids = {uid for uid, _ in own}
        assert len(uids) == len(own), "an update is in a version twice"
        assert not folded & uids, "an update is in two versions"
        folded |= uids
        state = _next(bundle, before, manifest, state, own)
        assert grid.model_hash(state.model).hex() == manifest.model_hash, (
            f"version {manifest.version} is another model"
        )
    left = {uid for uid, _ in updates.values()} - folded
    assert not left, f"{len(left)} accepted updates are in no version"
    stored = await load_state(ports.blobs, chain[-1], bundle.sizes)
    for ours, theirs in ((state.model, stored.model), (state.lag, stored.lag)):
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True)), (
            "replay gives other bytes"
        )
    return len(chain) - 1


async def _chain(ports, job):
    """Manifests from version 0 to the newest."""
    _, value = await ports.heads.load(cells.version_key(job))
    chain = [await load_manifest(ports.blobs, msgspec.json.decode(value, type=cells.VersionCell).manifest)]
    while chain[-1].parent:
        chain.append(await load_manifest(ports.blobs, chain[-1].parent))
    chain.reverse()
    assert [m.version for m in chain] == list(range(len(chain))), "the chain of versions has a gap"
    return chain


def _included(manifest, updates, reached):
    """Uid and frame of what a version folded, in the order of the log; `reached` is how far those before it went."""
    found = []
    for partition, (after, upto) in sorted(manifest.included.items()):
        assert after >= reached.get(partition, 0), "the ranges of two versions overlap"
        reached[partition] = upto
        places = ((partition, offset) for offset in range(after + 1, upto + 1))
        found += [updates[place] for place in places if place in updates]
    return found


def _next(bundle, before, manifest, state, own):
    """The state after a version's updates."""
    sizes = np.array([t.size for t in bundle.tensors])
    fold, statistics = Fold(bundle.sizes, "uniform"), len(bundle.statistics)
    buffer = Buffer(fold, before.bounds, sizes)
    for uid, frame in own:
        update = sparse.decode(frame, bundle.sizes, statistics)
        buffer.add(Uid.parse(uid).device, update, frame, wire_bytes=0, at=0.0)
    assert {base: bucket.count for base, bucket in fold.buckets.items()} == manifest.bases
    steps = [tensor.step_exp for tensor in bundle.table]
    step = np.zeros(sum(bundle.sizes))
    if own:
        step = mean_update(fold, manifest.weights, statistics=int(sum(bundle.sizes) - sizes.sum()))
        step[: sizes.sum()] *= manifest.server_lr
    exact = advance(state.exact(), steps, step)
    return follow(exact, state.model, steps, manifest.downlink_density, statistics=statistics)
