"""The model a job learns: updates are folded, a full buffer becomes the next version. Pure.

All strategies are settings of this one aggregator (spec.JobSpec, presets.py). What it needs after a restart is in
manifests and in the blobs they name, so replaying the log from any stored version gives the same bytes (I2, I3).
"""

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from aggregator import bounds, strategy
from aggregator.bounds import Bounds
from aggregator.buffer import Buffer
from aggregator.cache import Cache, CacheEntry, Pending
from aggregator.commit import Calibration, Doubles, advance, mean_update
from aggregator.delta import least
from aggregator.errors import StrategyError
from aggregator.fold import Cached, Fold
from aggregator.hidden import FINE_BITS, State
from aggregator.optimizer import Slots
from aggregator.spec import JobSpec
from aggregator.sums import Ints
from aggregator.versions import VersionManifest, pack_slots, pack_sums, reference
from edge_client.bundle import Manifest
from edge_client.wire import grid, sparse
from edge_client.wire.grid import Grid
from edge_client.wire.limits import FRACTION_BITS


@dataclass(frozen=True, slots=True)
class Sealed:
    """A version ready to be stored: blobs first, then the manifest, then the head."""

    manifest: VersionManifest
    state: State
    delta: bytes
    slots: Slots
    cached: dict[str, Pending]
    cache_sums: Ints
    blobs: tuple[bytes, ...]


class Past(msgspec.Struct):
    """What all versions so far say of the next, besides the newest one's blobs.

    `spare` are digests of blobs that only the version before the newest needs, and `references` of those that only
    the newest does.
    """

    contributions: dict[str, int]
    norms: list[dict[int, int]]
    cached: dict[str, CacheEntry]
    spare: list[str]
    references: list[str]


class Learner:
    """The newest version and the buffer of the next one."""

    def __init__(self, spec: JobSpec, bundle: Manifest, head: tuple[str, VersionManifest, State]) -> None:
        self.spec = spec
        self.bundle = bundle
        self.digest, self.manifest, self.state = head
        self.slots: Slots = {}
        self.cache = Cache(sum(bundle.sizes))
        self.contributions: Counter[str] = Counter()  # updates folded so far, by device
        self.bases: dict[
            int, tuple[Grid, ...]
        ] = {}  # models of past versions, for a strategy that mixes them
        self.remember(self.manifest.version, self.state.model)
        self._norms: deque[Mapping[int, int]] = deque(maxlen=bounds.WINDOW_VERSIONS)
        self._spare: set[str] = set()  # blobs that only the version before the newest needs: to go back to it
        self._references: set[str] = set()  # of the newest version's own: its slots and sums
        self._strategy = strategy.of(spec)
        self._steps = [t.step_exp for t in bundle.table]
        self._offsets = np.cumsum([0, *bundle.sizes], dtype=np.int64)
        self.buffer = self._empty()

    def recall(self, past: VersionManifest) -> None:
        """Take up what a past version says of the next; called for each in turn, the newest last."""
        replaced = {self.cache.entries[d].frame.digest for d in past.cached if d in self.cache.entries}
        self._norms.append(past.norms)
        self.contributions.update(past.devices)
        self.cache.entries |= past.cached
        own = _own(past)
        self._spare = (self._references | replaced) - own
        self._references = own

    def past(self) -> Past:
        """What the versions so far say of the next."""
        return Past(
            dict(self._folded()),
            [dict(norms) for norms in self._norms],
            dict(self.cache.entries),
            sorted(self._spare),
            sorted(self._references),
        )

    def take_up(self, past: Past) -> None:
        """Start from what `past` said, instead of recalling every version."""
        self.contributions = Counter(past.contributions)
        self._norms.extend(past.norms)
        self.cache.entries = dict(past.cached)
        self._spare, self._references = set(past.spare), set(past.references)

    def _folded(self) -> Counter[str]:
        """Contributions without the buffer's, which the log will bring again."""
        return self.contributions - Counter(self.buffer.of_device)

    def rest(self) -> None:
        """Let go of the arrays that only another version would be made of."""
        self.state, self.slots, self.bases = State((), ()), {}, {}
        self.cache.sums = np.zeros(0, dtype=np.int64)

    def remember(self, version: int, model: tuple[Grid, ...]) -> None:
        """Keep the model that devices had at a version, if the strategy looks at it, and let go of older ones."""
        if self.spec.mixing:
            oldest = self.manifest.version - self.spec.staleness_max
            self.bases = {v: m for v, m in self.bases.items() if v >= oldest} | {version: model}

    @property
    def full(self) -> bool:
        """As many updates that count as a version is made of."""
        return self.buffer.counting >= self.spec.buffer_size

    def update(
        self,
        device: str,
        frame: bytes,
        wire_bytes: int,
        at: float,
        before: bytes | None,
        *,
        update: sparse.Update | None = None,
    ) -> int:
        """Fold one admitted update; return its staleness τ now.

        `before` is the frame that `cache.wanted` asked for, `update` the frame decoded if it is already.
        """
        update = update or self._decode(frame)
        if update.base_version > self.manifest.version:  # of a version that was lost (resume.py)
            update = replace(update, base_version=self.manifest.version)
        cached: Cached | None = None
        calibrated = self.spec.cache_weight > 0
        if calibrated:
            cached = self.cache.take(device, None if before is None else self._decode(before))
        gain = self.buffer.add(device, update, frame, wire_bytes=wire_bytes, at=at, cached=cached)
        if calibrated and gain:
            newest = Cached(update, gain, self.buffer.fold.weigh(update))
            self.cache.put(device, frame, newest, cached)
        self.contributions[device] += 1
        return self.manifest.version - update.base_version

    def seal(self, now: float, included: dict[int, tuple[int, int]], density: float) -> Sealed:
        """Make the next version of the buffer, which holds the log ranges `included`; raise StrategyError."""
        buffer, fold, spec, before = self.buffer, self.buffer.fold, self.spec, self.manifest
        number = before.version + 1
        weights = {base: self._weight(base) for base in sorted(fold.buckets)}
        step, slots = self._step(weights)
        exact = advance(self.state.exact(), self._steps, step)
        statistics = len(self.bundle.statistics)
        delta = least(number, exact, self.state.model, self._steps, density, statistics=statistics)
        state = delta.state
        keyframe = grid.encode_keyframe(number, state.model)
        lag = grid.encode_keyframe(number, state.lag)
        cached, sums, weight = self.cache.after(self._offsets)
        kept = [pack_slots(slots)] if slots else []
        summed = [pack_sums(sums)] if spec.cache_weight > 0 else []
        manifest = VersionManifest(
            job=spec.name,
            version=number,
            parent=self.digest,
            at=now,
            model_hash=grid.model_hash(state.model).hex(),
            keyframe=reference(keyframe),
            delta=reference(delta.data),
            lag=reference(lag),
            lag_norm=state.lag_norm(self._steps),
            lossless=state.lossless,
            downlink_density=delta.density,
            fine_bits=FINE_BITS,
            included=included,
            bases={base: bucket.count for base, bucket in sorted(fold.buckets.items())},
            weights=weights,
            total_weight=fold.weight,
            server_lr=spec.server_lr,
            norm_max=spec.norm_max,
            fraction_bits=FRACTION_BITS,
            devices=tuple(sorted(buffer.devices)),
            bytes_up=buffer.bytes_up,
            bytes_frames=buffer.bytes_frames,
            bytes_bound=round(buffer.bits_bound / 8),
            norms=dict(sorted(buffer.norms.items())),
            bounds=self._bounds(),
            slots=reference(kept[0]) if kept else None,
            cached={d: _entry(p) for d, p in cached.items()},
            cache_sums=reference(summed[0]) if summed else None,
            cache_weight=weight,
        )
        blobs = (keyframe, delta.data, lag, *kept, *summed, *(p.frame for p in cached.values()))
        return Sealed(manifest, state, delta.data, slots, cached, sums, blobs)

    def advance(self, sealed: Sealed, digest: str) -> list[str]:
        """The head swung to `sealed`: start a new buffer; return the digests of blobs that nobody needs any more.

        What the version before needs stays for one version more, so that a job can go back to it (resume.py).
        """
        after = sealed.manifest
        replaced = set(self.cache.advance(after.cached, sealed.cache_sums, after.cache_weight))
        own = _own(after)
        gone = self._spare - own
        self._spare = (self._references | replaced) - own
        self._references = own
        self.digest, self.manifest, self.state, self.slots = (
            digest,
            sealed.manifest,
            sealed.state,
            sealed.slots,
        )
        self._norms.append(self.manifest.norms)
        self.remember(self.manifest.version, self.state.model)
        self.buffer = self._empty()
        return sorted(gone)

    def _step(self, weights: Mapping[int, float]) -> tuple[Doubles, Slots]:
        """The step of the whole model and the optimiser's state after it; statistics go where the devices saw them."""
        spec, edge = self.spec, self.bundle.parameters
        if not weights:  # a version without updates, of what deltas have left out
            return np.zeros(int(self._offsets[-1])), self.slots
        calibration = None
        if spec.cache_weight > 0:
            calibration = Calibration(spec.cache_weight, self.cache.sums, self.cache.weight)
        mean = mean_update(
            self.buffer.fold,
            weights,
            normalizer=spec.normalizer,
            calibration=calibration,
            drifts=self._drifts(weights) if spec.mixing else None,
            statistics=int(self._offsets[-1]) - edge,
        )
        delay = max(self.manifest.version - base for base in weights)
        step, slots = self._strategy.step(mean[:edge], self.slots, delay)
        sound = step.shape == (edge,) and all(
            v.shape == (edge,) and np.isfinite(v).all() for v in slots.values()
        )
        if not sound or not np.isfinite(step).all():
            raise StrategyError(f"strategy {spec.strategy!r} made a step that is not {edge} finite values")
        return np.concatenate([step, mean[edge:]]), slots

    def _drifts(self, weights: Mapping[int, float]) -> dict[int, Doubles]:
        """x_base - x for each base version; one that is not kept any more drifts like the oldest that is."""
        exact = [
            np.ldexp(x.astype(np.float64), s - FINE_BITS)
            for x, s in zip(self.state.exact(), self._steps, strict=True)
        ]
        newest = np.concatenate(exact)
        models = {base: self.bases[min(v for v in self.bases if v >= base)] for base in weights}
        return {
            base: np.concatenate(
                [np.ldexp(m.astype(np.float64), s) for m, s in zip(model, self._steps, strict=True)]
            )
            - newest
            for base, model in models.items()
        }

    def _weight(self, base: int) -> float:
        """s(τ) of a base; beyond τ_max it stays at s(τ_max), because what is in the log is folded (I1)."""
        weight = float(self._strategy.weight(min(self.manifest.version - base, self.spec.staleness_max)))
        if not 0.0 <= weight <= 1.0:
            raise StrategyError(
                f"strategy {self.spec.strategy!r}: s({self.manifest.version - base}) is {weight}, not 0 to 1"
            )
        return weight

    def _bounds(self) -> Bounds:
        """What the updates of the buffer after this one are weighed by."""
        robust = self.spec.robust
        norm = devices = None
        if robust.clip_factor is not None:
            window = [*self._norms, self.buffer.norms][-bounds.WINDOW_VERSIONS :]
            norm = bounds.norm_bound(window, robust.clip_quantile, robust.clip_factor)
        if robust.device_share_max is not None:
            known = len(self.contributions)
            devices = bounds.device_updates(robust.device_share_max, self.spec.buffer_size, known)
        return Bounds(norm, devices)

    def _decode(self, frame: bytes) -> sparse.Update:
        return sparse.decode(frame, self.bundle.sizes, len(self.bundle.statistics))

    def _empty(self) -> Buffer:
        sizes = np.array([t.size for t in self.bundle.tensors], dtype=np.int64)
        return Buffer(Fold(self.bundle.sizes, self.spec.weighting), self.manifest.bounds, sizes)


def _own(manifest: VersionManifest) -> set[str]:
    """Digests of the blobs besides its model that only a newest version has, without the cache's frames."""
    return {ref.digest for ref in (manifest.slots, manifest.cache_sums) if ref is not None}


def _entry(pending: Pending) -> CacheEntry:
    return CacheEntry(reference(pending.frame), pending.newest.gain, pending.newest.weight)
