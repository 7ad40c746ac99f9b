"""What is known of each version: who contributed, how stale, and how it does on the devices' hold-outs. Pure.

Hold-out figures come from devices that evaluated the version before they trained from it, so they arrive
after it was committed; the rules that end a job look at them alone.
"""

from collections.abc import Collection, Sequence

import msgspec

from edge_client.wire.messages import Evaluation

SMOOTHING_VERSIONS = 8  # a version is seen by only a few devices, so rules look at this many together
SMOOTHING_SAMPLES_MIN = 50  # fewer hold-out samples than this say nothing


Holdout = tuple[int, float, float, int]  # samples, correct ones, sum of losses, devices


class VersionRecord(msgspec.Struct):
    """Facts of one version; hold-out sums are over `holdout_n` samples of `holdout_devices` devices."""

    version: int
    at: float
    manifest: str
    updates: int = 0
    devices: list[str] = []
    staleness: dict[int, int] = {}
    bytes_up: int = 0
    bytes_keyframe: int = 0
    bytes_delta: int = 0
    holdout_n: int = 0
    holdout_correct: float = 0.0
    holdout_loss: float = 0.0
    holdout_devices: int = 0

    @property
    def holdout_accuracy(self) -> float | None:
        """Weighted mean accuracy over the devices' hold-outs, None before the first."""
        return self.holdout_correct / self.holdout_n if self.holdout_n else None


class History:
    """Records of a job's versions, by version."""

    def __init__(self) -> None:
        self.records: list[VersionRecord] = []
        self._smoothed: list[float | None] = []

    def add(self, record: VersionRecord) -> None:
        """A version was committed."""
        self.records.append(record)
        self._smoothed.append(None)
        self._smooth(record.version)

    def evaluated(self, evaluation: Evaluation) -> None:
        """A device evaluated a version on its hold-out before training from it; admission knows the version."""
        before = evaluation.before
        self._holdout(evaluation.version, before.n, before.accuracy * before.n, before.loss * before.n, 1)

    @property
    def holdouts(self) -> dict[int, Holdout]:
        """What the evaluations so far add up to, by version; for a memo."""
        return {
            r.version: (r.holdout_n, r.holdout_correct, r.holdout_loss, r.holdout_devices)
            for r in self.records
            if r.holdout_n
        }

    def recall(self, holdouts: dict[int, Holdout]) -> None:
        """Take up a memo; every version of it is here already."""
        for version, holdout in holdouts.items():
            self._holdout(version, *holdout)

    def best(self, among: Collection[int]) -> int | None:
        """Of these versions the one with the best smoothed hold-out accuracy, the earliest of equals."""
        scores = [(s, -v) for v, s in enumerate(self._smoothed) if s is not None and v in among]
        return -max(scores)[1] if scores else None

    @property
    def smoothed(self) -> Sequence[float | None]:
        """Per version: hold-out accuracy of it and the SMOOTHING_VERSIONS - 1 before it, weighted by samples."""
        return self._smoothed

    def _holdout(self, version: int, n: int, correct: float, loss: float, devices: int) -> None:
        record = self.records[version]
        record.holdout_n += n
        record.holdout_correct += correct
        record.holdout_loss += loss
        record.holdout_devices += devices
        self._smooth(version)

    def _smooth(self, changed: int) -> None:
        """Keep `smoothed` current: rules read it at each step, and a job may have thousands of versions."""
        for version in range(changed, min(changed + SMOOTHING_VERSIONS, len(self.records))):
            part = self.records[max(0, version + 1 - SMOOTHING_VERSIONS) : version + 1]
            n = sum(record.holdout_n for record in part)
            enough = n >= SMOOTHING_SAMPLES_MIN
            self._smoothed[version] = sum(r.holdout_correct for r in part) / n if enough else None
