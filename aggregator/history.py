"""What is known of each version: who contributed, how stale, and how it does on the devices' hold-outs. Pure.

Hold-out figures come from devices that evaluated the version before they trained from it, so they arrive
after it was committed; the rules that end a job look at them alone.
"""

import sys
from collections import Counter
from collections.abc import Collection, Sequence

import msgspec

from aggregator.holdout import Holdout, score
from aggregator.reported import Reported
from edge_client.wire.messages import Evaluation, Metrics

SMOOTHING_VERSIONS = 8  # a version is seen by only a few devices, so rules look at this many together
SMOOTHING_SAMPLES_MIN = 50  # fewer hold-out samples than this say nothing


class VersionRecord(msgspec.Struct):
    """Facts of one version, and what devices' hold-outs say of it.

    Of its updates `bytes_up` went over the wire, in frames of `bytes_frames`, where `bytes_bound` is what no code of
    their values could be below. `lag_norm` is the L2 norm of what its deltas have left out of the server's model so
    far; `lossless` that its own left nothing out.
    """

    version: int
    at: float
    manifest: str
    updates: int = 0
    devices: list[str] = []
    staleness: dict[int, int] = {}
    bytes_up: int = 0
    bytes_frames: int = 0
    bytes_bound: int = 0
    bytes_keyframe: int = 0
    bytes_delta: int = 0
    lag_norm: float = 0.0
    lossless: bool = True
    holdout: Holdout = msgspec.field(default_factory=Holdout)
    reported: Reported = msgspec.field(default_factory=Reported)

    def __post_init__(self) -> None:
        # A fleet has far fewer devices than its versions name: each name is in memory once.
        self.devices = [sys.intern(name) for name in self.devices]


class Totals:
    """What the updates of all versions add up to."""

    def __init__(self) -> None:
        self.updates = 0
        self.bytes_up = 0
        self.bytes_frames = 0
        self.bytes_bound = 0
        self.bytes_delta = 0
        self.staleness: Counter[int] = Counter()  # updates by how many versions they were behind

    def add(self, record: VersionRecord) -> None:
        """Count a version in."""
        self.updates += record.updates
        self.bytes_up += record.bytes_up
        self.bytes_frames += record.bytes_frames
        self.bytes_bound += record.bytes_bound
        self.bytes_delta += record.bytes_delta
        self.staleness.update(record.staleness)


class History:
    """Records of a job's versions, by version."""

    def __init__(self) -> None:
        self.totals = Totals()
        self.records: list[VersionRecord] = []
        self.on_testset: dict[int, Metrics] = {}  # by version, where the job has a test set of the server's
        self._smoothed: list[Metrics | None] = []

    def add(self, record: VersionRecord) -> None:
        """A version was committed."""
        self.records.append(record)
        self.totals.add(record)
        self._smoothed.append(None)
        self._smooth(record.version)

    def evaluated(self, evaluation: Evaluation) -> None:
        """A device evaluated a version on its hold-out before training from it.

        Admission knows the version, but it may have been lost since (resume.py).
        """
        if evaluation.version >= len(self.records):
            return
        self._take(evaluation.version, Holdout.of(evaluation.before))
        self.records[evaluation.version].reported.add(evaluation)

    @property
    def holdouts(self) -> dict[int, Holdout]:
        """What the evaluations so far add up to, by version; for a memo."""
        return {record.version: record.holdout for record in self.records if record.holdout.n}

    @property
    def reported(self) -> dict[int, Reported]:
        """What devices told of their updates, by the version they trained from; for a memo."""
        return {record.version: record.reported for record in self.records if record.reported.devices}

    def recall(self, holdouts: dict[int, Holdout], reported: dict[int, Reported]) -> None:
        """Take up a memo; every version of it is here already, but for one that was lost (resume.py)."""
        for version, holdout in holdouts.items():
            if version < len(self.records):
                self._take(version, holdout)
        for version, sums in reported.items():
            if version < len(self.records):
                self.records[version].reported = sums

    def best(self, among: Collection[int]) -> int | None:
        """Of these versions that devices measured, the one with the best smoothed score, the earliest of equals."""
        scores = [
            (score(m), -v)
            for v, m in enumerate(self._smoothed)
            if m is not None and v in among and self.records[v].holdout.n
        ]
        return -max(scores)[1] if scores else None

    @property
    def smoothed(self) -> Sequence[Metrics | None]:
        """Per version: hold-out figures of it and the SMOOTHING_VERSIONS - 1 before it, weighted by samples."""
        return self._smoothed

    @property
    def newest(self) -> Metrics | None:
        """The newest smoothed figures."""
        return next((figures for figures in reversed(self._smoothed) if figures is not None), None)

    def threshold(self, version: int) -> tuple[float, int] | None:
        """The threshold to use with a version, and the version on which devices measured it.

        That is the version itself, or before any device has evaluated it the last one that some had.
        """
        for record in reversed(self.records[: version + 1]):
            figures = record.holdout.mean()
            if figures is not None and figures.threshold is not None:
                return figures.threshold, record.version
        return None

    def _take(self, version: int, holdout: Holdout) -> None:
        self.records[version].holdout.add(holdout)
        self._smooth(version)

    def _smooth(self, changed: int) -> None:
        """Keep `smoothed` current: rules read it at each step, and a job may have thousands of versions."""
        for version in range(changed, min(changed + SMOOTHING_VERSIONS, len(self.records))):
            part = Holdout()
            for record in self.records[max(0, version + 1 - SMOOTHING_VERSIONS) : version + 1]:
                part.add(record.holdout)
            self._smoothed[version] = part.mean() if part.n >= SMOOTHING_SAMPLES_MIN else None
