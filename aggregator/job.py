"""One job's state and decisions: fold, lease, commit, end. Pure; time comes in as `now` (Unix seconds).

`engine.py` feeds it the log in order and performs what it decides.
"""

import math
import zlib
from collections.abc import Mapping
from hashlib import sha256

import msgspec

from aggregator import ending
from aggregator.audience import Audience
from aggregator.clocks import waited
from aggregator.gini import gini
from aggregator.hidden import State
from aggregator.history import History
from aggregator.holdout import Holdout
from aggregator.learner import Learner, Sealed
from aggregator.leases import Lease, Leases, Waiting
from aggregator.path import Paths
from aggregator.reported import Reported
from aggregator.spec import JobSpec
from aggregator.versions import VersionManifest, blobs_of
from edge_client.bundle import Manifest
from edge_client.wire import grid
from edge_client.wire.limits import PACKET_OVERHEAD_BYTES
from edge_client.wire.messages import (
    CODECS,
    Ask,
    Assignment,
    BlobRef,
    Metrics,
    Offer,
    TrainingPlan,
    UplinkPlan,
    VersionNotice,
    common_codec,
)
from edge_client.wire.sparse import Update

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
    on_testset: dict[int, Metrics] = {}
    participants: list[str] = []
    merged: dict[int, list[str]] = {}


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
        self.learner = Learner(spec, bundle, head)
        self.recent: dict[int, VersionManifest] = {self.manifest.version: self.manifest}
        self.history = History()
        self.leases = self._places({}, {})
        self.paths = Paths(bundle.sizes)
        self.paths.hold(self.version, self.state.model)
        self.audience = Audience(spec.fanout)
        self.participants: set[str] = set()
        self._gini = ((-1, 0, 0), 0.0)
        self.folded = {partition: upto for partition, (_, upto) in self.manifest.included.items()}
        self.promoted: int | None = None  # the version that people are given unless they ask for another
        self.broken: str | None = None  # why no further version can be made
        self.resting = False  # ended, and its arrays are only in storage

    @property
    def manifest(self) -> VersionManifest:
        """The newest version's."""
        return self.learner.manifest

    @property
    def version(self) -> int:
        """The newest version."""
        return self.manifest.version

    @property
    def digest(self) -> str:
        """Of the newest version's manifest."""
        return self.learner.digest

    @property
    def state(self) -> State:
        """The newest version's model."""
        return self.learner.state

    @property
    def buffered(self) -> int:
        """Updates folded since the last commit."""
        return len(self.learner.buffer.devices)

    def contributions(self) -> dict[str, int]:
        """Updates folded so far by device, of those that took part in vain none."""
        return dict.fromkeys(self.participants, 0) | dict(self.learner.contributions)

    def gini(self) -> float:
        """How unevenly updates are shared out; counted anew when there is another update or participant."""
        seen = (self.version, self.buffered, len(self.participants))
        if self._gini[0] != seen:
            self._gini = (seen, gini(self.contributions().values()))
        return self._gini[1]

    # -- what the log says ---------------------------------------------------------------------------

    def wants(self, device: str) -> str | None:
        """The digest of a blob that `update` needs for this device, None when it needs none."""
        return self.learner.cache.wanted(device) if self.spec.cache_weight > 0 else None

    def update(
        self,
        device: str,
        frame: bytes,
        wire_bytes: int,
        at: float,
        before: bytes | None = None,
        *,
        update: Update | None = None,
    ) -> int:
        """Fold one admitted update and free its device's place; return its staleness τ now.

        `before` is the blob that `wants` named, `update` the frame decoded if it is already.
        """
        self.leases.release(device, at)
        return self.learner.update(device, frame, wire_bytes, at, before, update=update)

    def ask(self, device: str, ask: Ask, at: float) -> None:
        """A device is willing to train; one with too few samples has been told so by the offer."""
        self.participants.add(device)
        if ask.n_samples >= self.spec.selection.samples_min:
            self.leases.ask(device, ask, at, self.learner.contributions[device])

    def again(self, digest: str) -> bytes | None:
        """The bytes of a blob that an assignment names, from memory; None when they are not there."""
        if digest == self.manifest.keyframe.digest:
            return grid.encode_keyframe(self.version, self.state.model)
        return self.paths.again(digest)

    def rest(self) -> None:
        """Let go of what only a further version needs; a late update has the job loaded anew."""
        self.learner.rest()
        self.paths.rest()
        self.resting = True

    def refolds(self, partition: int) -> int | None:
        """The offset after which entries are folded again if the newest version is lost; None: from none."""
        included = self.manifest.included.get(partition)
        return None if included is None else included[0]

    # -- what follows --------------------------------------------------------------------------------

    def due(self, now: float, *, draining: bool, more: bool = False) -> bool:
        """True when a version is to be made: the buffer is full, waits too long, or the job is over.

        While `more` of its updates are at hand only a full buffer is: what waited in the log while the aggregator was
        away is late all at once, and each update would make a version. A job that is over also makes one without
        updates when deltas left something out: devices, and whoever exports the newest, then get all that was learned.
        """
        if self.broken is not None:
            return False
        if more:
            return self.learner.full
        if not self.buffered:
            return draining and not self.state.lossless
        late = waited(self.learner.buffer.first_at, self.spec.max_wait_s, now)
        return draining or self.learner.full or (late and self.buffered >= self.spec.quorum)

    def seal(self, now: float, cursor: dict[int, int], *, draining: bool = False) -> Sealed:
        """Make the next version of the buffer, which holds this job's updates up to `cursor`; raise StrategyError.

        A draining job leaves nothing out of its delta: what is exported is all that was learned.
        """
        included = {p: self._range(p, upto) for p, upto in sorted(cursor.items())}
        return self.learner.seal(now, included, 1.0 if draining else self.spec.downlink_density)

    def _range(self, partition: int, upto: int) -> tuple[int, int]:
        """What the buffer holds of a partition: nothing when a restart reads it again from before that."""
        after = self.folded.get(partition, 0)
        return after, max(after, upto)

    def advance(self, sealed: Sealed, digest: str) -> list[str]:
        """The head swung to `sealed`: start a new buffer; return the digests of the blobs that may go."""
        blobs = self.learner.advance(sealed, digest)
        self.folded = {partition: upto for partition, (_, upto) in self.manifest.included.items()}
        self.recent[self.version] = self.manifest
        self.paths.extend(self.version, sealed.delta)
        self.paths.hold(self.version, self.state.model)
        if (
            self.spec.barrier
        ):  # the round is over: who has not answered is refused as stale, and keeps no place
            self.leases.held.clear()
        gone = [self.recent.pop(version) for version in sorted(self.recent) if not self.keeps(version)]
        blobs += [ref.digest for manifest in gone for ref in blobs_of(manifest)]
        return blobs + self.paths.forget(self.oldest)

    @property
    def oldest(self) -> int:
        """The oldest version within reach of deltas; later ones are stored."""
        return self.version - self.spec.staleness_max - VERSIONS_KEPT

    def keeps(self, version: int) -> bool:
        """True for versions whose model stays: the first, the best, the promoted, and those within reach of deltas."""
        return version >= self.oldest or version in {0, self.best(), self.promoted}

    def best(self) -> int | None:
        """The best version whose model is stored; late evaluations may still change which that is."""
        return self.history.best(self.recent)

    @property
    def exported(self) -> int:
        """The version to export unless told which: the promoted, else the newest, of a detector one with a threshold.

        A job often ends with a version that no device has evaluated, and a threshold of another one would be wrong.
        """
        if self.promoted is not None:
            return self.promoted
        measured = self.history.threshold(self.version)
        return measured[1] if measured is not None and measured[1] in self.recent else self.version

    @property
    def places(self) -> int:
        """How many devices may hold a place now."""
        if not self.spec.barrier:
            return self.spec.concurrency
        # A round: its updates and the places still held are all that it began with.
        return math.ceil(self.spec.over_selection * self.spec.buffer_size) - self.buffered

    def barred(self) -> set[str]:
        """Devices that get no place before the next version, even when one is free."""
        buffer = self.learner.buffer
        if self.spec.barrier:
            return set(buffer.devices)
        most = buffer.bounds.device_updates
        if most is None:
            return set()
        # Another update of such a device would weigh nothing.
        return {device for device, count in buffer.of_device.items() if count >= most}

    def grant(self, now: float) -> list[tuple[str, Assignment]]:
        """Assignments for the free places."""
        self.leases.expire(now, self.spec.lease_s)
        grants = self.leases.grant(
            places=self.places,
            version=self.version,
            now=now,
            lease_s=self.spec.lease_s,
            barred=self.barred(),
        )
        assigned = []
        for grant in grants:
            follow = self.audience.grant(grant.device, self.version, now, self.spec.lease_s, self.paths)
            assigned.append((grant.device, self._assignment(grant.device, grant.ask, follow=follow)))
        return assigned

    def over(self, now: float) -> str | None:
        """Why the job is over, or None."""
        if self.broken is not None:
            return self.broken
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
            samples_min=self.spec.selection.samples_min,
            retry_s=self.spec.retry_s,
            deadline=None if deadline is None else self.created_at + deadline,
        )

    def notice(self) -> VersionNotice:
        """The announcement of the newest version."""
        newest, manifest = self.history.newest, self.manifest
        updates = sum(manifest.bases.values())
        return VersionNotice(
            job=self.spec.name,
            version=self.version,
            version_hash=manifest.model_hash,
            at=manifest.at,
            updates=updates,
            accuracy=None if newest is None else newest.accuracy,
            loss=None if newest is None else newest.loss,
            keyframe=manifest.keyframe,
            bits_per_parameter=8 * manifest.bytes_frames / (updates * self.bundle.parameters)
            if updates
            else None,
            bytes_to_bound=manifest.bytes_frames / manifest.bytes_bound if manifest.bytes_bound else None,
            bytes_delta=manifest.delta.size if manifest.delta else 0,
            lossless=manifest.lossless,
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
            on_testset=dict(self.history.on_testset),
            participants=sorted(self.participants),
            merged=self.paths.merged,
        )

    def recall(self, memo: JobMemo) -> None:
        """Take up a memo after a restart; `history` must hold every version already."""
        self.leases = self._places(memo.waiting, memo.held)
        self.participants = set(memo.participants)
        for partition, upto in memo.folded.items():
            self.folded[partition] = max(upto, self.folded.get(partition, 0))
        self.history.recall(memo.holdouts, memo.reported)
        self.history.on_testset = {v: m for v, m in memo.on_testset.items() if v <= self.version}
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
        left = max(0.0, 1.0 - self.learner.contributions[device] / training.warmup)
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

    def _places(self, waiting: Mapping[str, Waiting], held: Mapping[str, Lease]) -> Leases:
        return Leases(waiting, held, policy=self.spec.selection.policy, seed=self.spec.seed + self.version)

    def _assignment(self, device: str, ask: Ask, *, follow: bool) -> Assignment:
        training = self.spec.training
        seed = zlib.crc32(f"{self.spec.seed}:{device}:{ask.ask}".encode())
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
                seed=seed,
                uplink=self._uplink(),
            ),
            lease_s=self.spec.lease_s,
            not_before_s=round(self.spec.selection.pace_s * _share(f"{seed}:{device}"), 3),
            follow=follow,
        )


def _share(text: str) -> float:
    """A number from 0 to 1 that spreads texts evenly however alike they are, which a CRC does not."""
    return int.from_bytes(sha256(text.encode()).digest()[:4], "big") / 2**32
