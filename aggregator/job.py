"""One job's state and decisions: fold, lease, commit, end. Pure; time comes in as `now` (Unix seconds).

`engine.py` feeds it the log in order and performs what it decides.
"""

import zlib
from collections import Counter
from dataclasses import dataclass, field

import msgspec
import numpy as np

from aggregator import ending, staleness
from aggregator.commit import commit
from aggregator.delta import least
from aggregator.fold import Fold
from aggregator.hidden import FINE_BITS, State
from aggregator.history import History
from aggregator.holdout import Holdout
from aggregator.leases import Lease, Leases, Waiting
from aggregator.path import Paths
from aggregator.reported import Reported
from aggregator.spec import JobSpec
from aggregator.versions import VersionManifest, blobs_of, reference
from edge_client.bundle import Manifest
from edge_client.wire import grid, sparse
from edge_client.wire.limits import FRACTION_BITS, PACKET_OVERHEAD_BYTES
from edge_client.wire.messages import (
    CODECS,
    Ask,
    Assignment,
    BlobRef,
    Offer,
    TrainingPlan,
    UplinkPlan,
    VersionNotice,
    common_codec,
)

CODEC_BYTE = 3  # of a frame (docs/wire.md §4)
VERSIONS_KEPT = 8  # beyond staleness_max: so many versions more can a device catch up from by deltas


class JobMemo(msgspec.Struct):
    """What a restart cannot learn from manifests; written with the log offsets it includes.

    `folded` is given when the buffer was empty: no update of this job up to there is left to fold.
    """

    folded: dict[int, int] = {}
    waiting: dict[str, Waiting] = {}
    held: dict[str, Lease] = {}
    holdouts: dict[int, Holdout] = {}
    reported: dict[int, Reported] = {}
    participants: list[str] = []
    merged: dict[int, list[str]] = {}


@dataclass(frozen=True, slots=True)
class Sealed:
    """A version ready to be stored: blobs first, then the manifest, then the head."""

    manifest: VersionManifest
    state: State
    keyframe: bytes
    delta: bytes
    lag: bytes


@dataclass(slots=True)
class Buffer:
    """What was folded since the last commit."""

    fold: Fold
    first_at: float = 0.0
    devices: list[str] = field(default_factory=list)
    bytes_up: int = 0
    bytes_frames: int = 0
    bytes_bound: float = 0.0


class Job:
    """A running or draining job at its newest version."""

    def __init__(
        self,
        spec: JobSpec,
        bundle: Manifest,
        bundle_ref: BlobRef,
        created_at: float,
        head: tuple[str, VersionManifest, State],
    ) -> None:
        self.spec = spec
        self.bundle = bundle
        self.bundle_ref = bundle_ref
        self.created_at = created_at
        self.digest, self.manifest, self.state = head
        self.recent: dict[int, VersionManifest] = {self.manifest.version: self.manifest}
        self.history = History()
        self.leases = Leases()
        self.paths = Paths(bundle.sizes)
        self.participants: set[str] = set()
        self.folded = {partition: upto for partition, (_, upto) in self.manifest.included.items()}
        self.contributions: Counter[str] = Counter()  # updates folded so far, by device
        self._sizes = np.array([t.size for t in bundle.tensors], dtype=np.int64)
        self._buffer = Buffer(Fold(bundle.sizes, spec.weighting))

    @property
    def version(self) -> int:
        """The newest version."""
        return self.manifest.version

    @property
    def buffered(self) -> int:
        """Updates folded since the last commit."""
        return self._buffer.fold.count

    @property
    def fold(self) -> Fold:
        """The buffer's integer sums."""
        return self._buffer.fold

    # -- what the log says ---------------------------------------------------------------------------

    def update(self, device: str, frame: bytes, wire_bytes: int, at: float) -> int:
        """Fold one admitted update and free its device's place; return its staleness τ now."""
        update = sparse.decode(frame, self.bundle.sizes, len(self.bundle.statistics))
        buffer = self._buffer
        if not buffer.devices:
            buffer.first_at = at
        buffer.fold.add(update)
        buffer.devices.append(device)
        buffer.bytes_up += wire_bytes
        buffer.bytes_frames += len(frame)
        buffer.bytes_bound += sparse.bound_bytes(update.weights, self._sizes, frame[CODEC_BYTE])
        self.contributions[device] += 1
        self.leases.release(device)
        return self.version - update.base_version

    def ask(self, device: str, ask: Ask, at: float) -> None:
        """A device is willing to train."""
        self.participants.add(device)
        self.leases.ask(device, ask, at)

    # -- what follows --------------------------------------------------------------------------------

    def due(self, now: float, *, draining: bool) -> bool:
        """True when a version is to be made: the buffer is full, waits too long, or the job is over.

        A job that is over also makes one without updates when deltas left something out: devices, and whoever
        exports the newest version, then get all that was learned.
        """
        if not self.buffered:
            return draining and not self.state.lossless
        waited = now - self._buffer.first_at >= self.spec.max_wait_s
        return draining or waited or self.buffered >= self.spec.buffer_size

    def seal(self, now: float, cursor: dict[int, int], *, draining: bool = False) -> Sealed:
        """Make the next version of the buffer, which holds this job's updates up to `cursor`.

        A draining job leaves nothing out of its delta: what is exported is all that was learned.
        """
        spec, fold = self.spec, self._buffer.fold
        weights = {
            base: staleness.polynomial(self.version - base, spec.staleness_exponent, spec.staleness_max)
            for base in sorted(fold.buckets)
        }
        steps = [t.step_exp for t in self.bundle.table]
        statistics = len(self.bundle.statistics)
        exact = commit(self.state.exact(), steps, fold, weights, spec.server_lr, statistics=statistics)
        number, density = self.version + 1, 1.0 if draining else spec.downlink_density
        delta = least(number, exact, self.state.model, steps, density, statistics=statistics)
        state = delta.state
        keyframe = grid.encode_keyframe(number, state.model)
        lag = grid.encode_keyframe(number, state.lag)
        manifest = VersionManifest(
            job=spec.name,
            version=number,
            parent=self.digest,
            at=now,
            model_hash=grid.model_hash(state.model).hex(),
            keyframe=reference(keyframe),
            delta=reference(delta.data),
            lag=reference(lag),
            lag_norm=state.lag_norm(steps),
            lossless=state.lossless,
            downlink_density=delta.density,
            fine_bits=FINE_BITS,
            included={p: self._range(p, upto) for p, upto in sorted(cursor.items())},
            bases={base: bucket.count for base, bucket in sorted(fold.buckets.items())},
            weights=weights,
            total_weight=fold.weight,
            server_lr=spec.server_lr,
            norm_max=spec.norm_max,
            fraction_bits=FRACTION_BITS,
            devices=tuple(self._buffer.devices),
            bytes_up=self._buffer.bytes_up,
            bytes_frames=self._buffer.bytes_frames,
            bytes_bound=round(self._buffer.bytes_bound),
        )
        return Sealed(manifest, state, keyframe, delta.data, lag)

    def _range(self, partition: int, upto: int) -> tuple[int, int]:
        """What the buffer holds of a partition: nothing when a restart reads it again from before that."""
        after = self.folded.get(partition, 0)
        return after, max(after, upto)

    def advance(self, sealed: Sealed, digest: str) -> list[str]:
        """The head swung to `sealed`: start a new buffer; return the digests of the blobs that may go."""
        self.digest, self.manifest, self.state = digest, sealed.manifest, sealed.state
        self.folded = {partition: upto for partition, (_, upto) in self.manifest.included.items()}
        self._buffer = Buffer(Fold(self.bundle.sizes, self.spec.weighting))
        self.recent[self.version] = self.manifest
        self.paths.extend(self.version, sealed.delta)
        gone = [self.recent.pop(version) for version in sorted(self.recent) if not self.keeps(version)]
        blobs = [ref.digest for manifest in gone for ref in blobs_of(manifest)]
        return blobs + self.paths.forget(self.oldest)

    @property
    def oldest(self) -> int:
        """The oldest version within reach of deltas; later ones are stored."""
        return self.version - self.spec.staleness_max - VERSIONS_KEPT

    def keeps(self, version: int) -> bool:
        """True for versions whose model stays: the first, the best, and those within reach of deltas."""
        return version >= self.oldest or version in {0, self.best()}

    def best(self) -> int | None:
        """The best version whose model is stored; late evaluations may still change which that is."""
        return self.history.best(self.recent)

    @property
    def exported(self) -> int:
        """The version to export unless told which: the newest, of a detector the newest with its own threshold.

        A job often ends with a version that no device has evaluated, and a threshold of another one would be wrong.
        """
        measured = self.history.threshold(self.version)
        return measured[1] if measured is not None and measured[1] in self.recent else self.version

    def grant(self, now: float) -> list[tuple[str, Assignment]]:
        """Assignments for the free places."""
        self.leases.expire(now)
        grants = self.leases.grant(
            places=self.spec.concurrency, version=self.version, now=now, lease_s=self.spec.lease_s
        )
        return [(grant.device, self._assignment(grant.device, grant.ask)) for grant in grants]

    def over(self, now: float) -> str | None:
        """Why the job is over, or None."""
        return ending.reason(
            self.spec.end, self.history.smoothed, version=self.version, age_s=now - self.created_at
        )

    def offer(self) -> Offer:
        """The announcement of this job."""
        deadline = self.spec.end.deadline_s
        return Offer(
            job=self.spec.name,
            dataset=self.spec.dataset,
            data=self.bundle.data,
            bundle=self.bundle_ref,
            retry_s=self.spec.retry_s,
            deadline=None if deadline is None else self.created_at + deadline,
        )

    def notice(self) -> VersionNotice:
        """The announcement of the newest version."""
        newest = self.history.newest
        return VersionNotice(
            job=self.spec.name,
            version=self.version,
            version_hash=self.manifest.model_hash,
            at=self.manifest.at,
            updates=sum(self.manifest.bases.values()),
            accuracy=None if newest is None else newest.accuracy,
            loss=None if newest is None else newest.loss,
            keyframe=self.manifest.keyframe,
        )

    def frame_bytes_max(self) -> int:
        """An upper bound of this job's update frames: every value sent, in the largest form of its codec."""
        value_bytes = 4 if self.spec.training.codec == "dense-fp32" else 2
        return PACKET_OVERHEAD_BYTES + 16 * len(self.bundle.tensors) + value_bytes * sum(self.bundle.sizes)

    def memo(self, cursor: dict[int, int]) -> JobMemo:
        """What a restart at `cursor` needs besides the manifests."""
        return JobMemo(
            folded={} if self.buffered else dict(cursor),
            waiting=dict(self.leases.waiting),
            held=dict(self.leases.held),
            holdouts=self.history.holdouts,
            reported=self.history.reported,
            participants=sorted(self.participants),
            merged=self.paths.merged,
        )

    def recall(self, memo: JobMemo) -> None:
        """Take up a memo after a restart; `history` must hold every version already."""
        self.leases = Leases(dict(memo.waiting), dict(memo.held))
        self.participants = set(memo.participants)
        for partition, upto in memo.folded.items():
            self.folded[partition] = max(upto, self.folded.get(partition, 0))
        self.history.recall(memo.holdouts, memo.reported)
        self.contributions = Counter(name for record in self.history.records for name in record.devices)
        self.paths.merged = {version: list(digests) for version, digests in memo.merged.items()}

    def hashes(self) -> dict[int, str]:
        """Model hashes of the versions an update may be based on."""
        oldest = self.version - self.spec.staleness_max
        return {v: m.model_hash for v, m in sorted(self.recent.items()) if v >= oldest}

    def codec(self, ask: Ask) -> str | None:
        """The codec a device sends by: the job's, or another that it speaks; None when there is none."""
        return common_codec(self.spec.training.codec, ask.codecs)

    def density(self, device: str) -> float:
        """The share of values in this device's next update: large at first, then less (Lin et al. 2018, §3.3).

        It falls geometrically from `density_first` to `density` over the device's first `warmup` updates.
        """
        training = self.spec.training
        if training.density_first is None:
            return training.density
        left = max(0.0, 1.0 - self.contributions[device] / training.warmup)
        return float(training.density * (training.density_first / training.density) ** left)

    def _uplink(self) -> UplinkPlan | None:
        training = self.spec.training
        if training.uplink_budget_s is None:
            return None
        return UplinkPlan(
            parameters=sum(t.size for t in self.bundle.tensors),
            budget_s=training.uplink_budget_s,
            density_min=min(training.density_min, training.density),
            density_max=training.density_max or training.density,
        )

    def _assignment(self, device: str, ask: Ask) -> Assignment:
        training = self.spec.training
        return Assignment(
            job=self.spec.name,
            ask=ask.ask,
            version=self.version,
            version_hash=self.manifest.model_hash,
            bundle=self.bundle_ref,
            model=self.paths.find(ask.holds, self.manifest),
            plan=TrainingPlan(
                steps=training.steps,
                batch_size=training.batch_size or self.bundle.batch_size,
                learning_rate=training.learning_rate or self.bundle.learning_rate,
                density=self.density(device),
                norm_max=self.spec.norm_max,
                codec=self.codec(ask) or CODECS[0],
                seed=zlib.crc32(f"{self.spec.seed}:{device}:{ask.ask}".encode()),
                uplink=self._uplink(),
            ),
            lease_s=self.spec.lease_s,
        )
