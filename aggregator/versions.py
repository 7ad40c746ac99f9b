"""Immutable versions: a manifest with the digests of its blobs and of its parent, written before the head (I3)."""

import hashlib
from collections.abc import Sequence

import msgspec
import numpy as np

from aggregator.bounds import Bounds
from aggregator.cache import CacheEntry
from aggregator.errors import CorruptStateError
from aggregator.hidden import State
from aggregator.history import VersionRecord
from aggregator.optimizer import Slots
from aggregator.sums import Ints
from broker_bridge.ports import Blobs, CorruptBlob, Digest, MissingBlob
from edge_client.wire import grid
from edge_client.wire.errors import RemoteWireError
from edge_client.wire.grid import Grid
from edge_client.wire.messages import BlobRef


class VersionManifest(msgspec.Struct, frozen=True):
    """Everything that made a version, so that replaying the log gives the same bytes (I2).

    `included` maps a partition to the log offsets (after, upto] whose updates of this job were folded;
    `bases` maps a base version to its number of updates and `weights` to its s(τ); `total_weight` is Z.
    `parent` is the digest of the parent's manifest, "" for version 0. `keyframe` is the model that devices train
    from, x̂; `lag` is what the server's exact model is ahead of it, x - x̂, in 2**-fine_bits of a grid step, as a
    KEYFRAME frame (None: nothing), and `lag_norm` its L2 norm. `downlink_density` is the share of weights whose
    change the delta was to carry; `lossless` says that it carried all. `norms` counts the updates' L2 norms by bin
    (bounds.norm_bin), and `bounds` are what the updates of the next version are weighed by. Only the newest version has
    these blobs: `slots`, the server optimiser's state, and of the cache the frames of `cached`, this version's devices,
    and `cache_sums`, the sum over all devices, of weight `cache_weight`.
    """

    job: str
    version: int
    parent: str
    at: float
    model_hash: str
    keyframe: BlobRef
    delta: BlobRef | None = None
    lag: BlobRef | None = None
    lag_norm: float = 0.0
    lossless: bool = True
    downlink_density: float = 1.0
    fine_bits: int = 0
    included: dict[int, tuple[int, int]] = {}
    bases: dict[int, int] = {}
    weights: dict[int, float] = {}
    total_weight: int = 0
    server_lr: float = 1.0
    norm_max: float = 0.0
    fraction_bits: int = 0
    devices: tuple[str, ...] = ()
    bytes_up: int = 0
    bytes_frames: int = 0
    bytes_bound: int = 0
    norms: dict[int, int] = {}
    bounds: Bounds = Bounds()
    slots: BlobRef | None = None
    cached: dict[str, CacheEntry] = {}
    cache_sums: BlobRef | None = None
    cache_weight: int = 0


def first(job: str, keyframe: bytes, sizes: Sequence[int], at: float) -> tuple[VersionManifest, State]:
    """Version 0 of a job, from the key-frame in its bundle; raise RemoteWireError when that does not decode."""
    model = grid.apply(None, grid.decode(keyframe, sizes), None)
    digest = grid.model_hash(model).hex()
    return VersionManifest(job, 0, "", at, digest, reference(keyframe)), State.start(model)


def record(digest: str, manifest: VersionManifest) -> VersionRecord:
    """The history record of a version, before anybody evaluated it."""
    staleness: dict[int, int] = {}
    for base, count in manifest.bases.items():
        tau = manifest.version - 1 - base
        staleness[tau] = staleness.get(tau, 0) + count
    return VersionRecord(
        version=manifest.version,
        at=manifest.at,
        manifest=digest,
        updates=sum(manifest.bases.values()),
        devices=list(manifest.devices),
        staleness=staleness,
        bytes_up=manifest.bytes_up,
        bytes_frames=manifest.bytes_frames,
        bytes_bound=manifest.bytes_bound,
        bytes_keyframe=manifest.keyframe.size,
        bytes_delta=manifest.delta.size if manifest.delta else 0,
        lag_norm=manifest.lag_norm,
        lossless=manifest.lossless,
    )


def reference(data: bytes) -> BlobRef:
    """The BlobRef of these bytes."""
    return BlobRef(hashlib.sha256(data).hexdigest(), len(data))


def encode(manifest: VersionManifest) -> bytes:
    """A manifest as it is stored; its SHA-256 is the version's digest."""
    return msgspec.json.encode(manifest)


async def put_manifest(blobs: Blobs, manifest: VersionManifest) -> str:
    """Store a manifest and return its digest."""
    return await blobs.put(encode(manifest))


async def load_manifest(blobs: Blobs, digest: str) -> VersionManifest:
    """Load a manifest; raise CorruptStateError when it is missing or damaged."""
    try:
        return msgspec.json.decode(await _get(blobs, digest, "manifest"), type=VersionManifest)
    except msgspec.DecodeError as error:  # its digest is right: another program wrote it
        raise CorruptStateError(f"manifest {digest[:12]}: {error}") from error


def blobs_of(manifest: VersionManifest) -> list[BlobRef]:
    """The blobs of a version's model."""
    return [ref for ref in (manifest.keyframe, manifest.delta, manifest.lag) if ref is not None]


def all_blobs_of(manifest: VersionManifest) -> list[BlobRef]:
    """The blobs of a version's model, and what only the newest version has."""
    more = [ref for ref in (manifest.slots, manifest.cache_sums) if ref is not None]
    return blobs_of(manifest) + more + [entry.frame for entry in manifest.cached.values()]


async def load_model(blobs: Blobs, manifest: VersionManifest, sizes: Sequence[int]) -> tuple[Grid, ...]:
    """The model of a version as devices have it (x̂), its hash verified; raise CorruptStateError."""
    return await _load_frame(blobs, manifest, manifest.keyframe, sizes)


async def load_state(blobs: Blobs, manifest: VersionManifest, sizes: Sequence[int]) -> State:
    """The model of a version and what the server's exact one is ahead of it; raise CorruptStateError."""
    model = await load_model(blobs, manifest, sizes)
    if manifest.lag is None:
        return State.start(model)
    return State(model, await _load_frame(blobs, manifest, manifest.lag, sizes))


async def mend_keyframe(blobs: Blobs, manifest: VersionManifest, sizes: Sequence[int]) -> bool:
    """Store a version's key-frame again, made from the version before and the delta; False when that cannot be."""
    if manifest.delta is None:
        return False
    try:
        before = await load_manifest(blobs, manifest.parent)
        model = await load_model(blobs, before, sizes)
        delta = grid.decode(await load_delta(blobs, manifest), sizes)
        keyframe = grid.encode_keyframe(manifest.version, grid.apply(model, delta, before.version))
    except (CorruptStateError, RemoteWireError):
        return False
    if reference(keyframe) != manifest.keyframe:
        return False
    await blobs.put(keyframe)
    return True


async def load_delta(blobs: Blobs, manifest: VersionManifest) -> bytes:
    """The delta that leads to a version, which is not the first; raise CorruptStateError."""
    if manifest.delta is None:
        raise CorruptStateError(f"{manifest.job} version {manifest.version} names no delta")
    return await _get(blobs, manifest.delta.digest, f"delta of version {manifest.version}")


def pack_slots(slots: Slots) -> bytes:
    """An optimiser's state as a blob: MessagePack of float32 arrays, little-endian, by name."""
    return msgspec.msgpack.encode(
        {name: values.astype("<f4").tobytes() for name, values in sorted(slots.items())}
    )


async def load_slots(blobs: Blobs, manifest: VersionManifest) -> Slots:
    """The optimiser's state after a version; raise CorruptStateError."""
    if manifest.slots is None:
        return {}
    data = await _get(blobs, manifest.slots.digest, f"optimiser state of version {manifest.version}")
    packed = msgspec.msgpack.decode(data, type=dict[str, bytes])
    return {name: np.frombuffer(values, dtype="<f4").astype(np.float64) for name, values in packed.items()}


def pack_sums(sums: Ints) -> bytes:
    """The cache's sums as a blob: int64, little-endian."""
    return sums.astype("<i8").tobytes()


async def load_sums(blobs: Blobs, manifest: VersionManifest) -> Ints | None:
    """The cache's sums after a version, None when it has none; raise CorruptStateError."""
    if manifest.cache_sums is None:
        return None
    data = await _get(blobs, manifest.cache_sums.digest, f"cache of version {manifest.version}")
    return np.frombuffer(data, dtype="<i8").astype(np.int64)


async def load_cached(blobs: Blobs, digest: str) -> bytes:
    """A frame of the cache; raise CorruptStateError."""
    return await _get(blobs, digest, "a cached update")


async def _load_frame(
    blobs: Blobs, manifest: VersionManifest, ref: BlobRef, sizes: Sequence[int]
) -> tuple[Grid, ...]:
    data = await _get(blobs, ref.digest, f"model of version {manifest.version}")
    try:
        return grid.apply(None, grid.decode(data, sizes), None)
    except RemoteWireError as error:
        raise CorruptStateError(f"{manifest.job} version {manifest.version}: {error}") from error


async def _get(blobs: Blobs, digest: str, what: str) -> bytes:
    try:
        return await blobs.get(Digest(digest))
    except (MissingBlob, CorruptBlob) as error:
        raise CorruptStateError(f"{what} {digest[:12]}: {error}") from error
