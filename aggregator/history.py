"""What is known of each version: who contributed, how stale, and how it does on the devices' hold-outs. Pure.

Hold-out figures come from devices that evaluated the version before they trained from it, so they arrive
after it was committed; the rules that end a job look at them alone.
"""

from collections.abc import Collection

import msgspec

from edge_client.wire.messages import Evaluation

SMOOTHING_VERSIONS = 8  # a version is seen by only a few devices, so rules look at this many together
SMOOTHING_SAMPLES_MIN = 50  # fewer hold-out samples than this say nothing


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

    def __init__(self, records: list[VersionRecord] | None = None) -> None:
        self.records: list[VersionRecord] = records or []

    def add(self, record: VersionRecord) -> None:
        """A version was committed."""
        self.records.append(record)

    def evaluated(self, evaluation: Evaluation) -> None:
        """A device evaluated a version on its hold-out before training from it; admission knows the version."""
        record = self.records[evaluation.version]
        before = evaluation.before
        record.holdout_n += before.n
        record.holdout_correct += before.accuracy * before.n
        record.holdout_loss += before.loss * before.n
        record.holdout_devices += 1

    def best(self, among: Collection[int]) -> int | None:
        """Of these versions the one with the best smoothed hold-out accuracy, the earliest of equals."""
        scores = [(s, -v) for v, s in enumerate(self.smoothed()) if s is not None and v in among]
        return -max(scores)[1] if scores else None

    def smoothed(self) -> list[float | None]:
        """Per version: hold-out accuracy of it and the SMOOTHING_VERSIONS - 1 before it, weighted by samples."""
        out: list[float | None] = []
        for end in range(1, len(self.records) + 1):
            part = self.records[max(0, end - SMOOTHING_VERSIONS) : end]
            n = sum(record.holdout_n for record in part)
            enough = n >= SMOOTHING_SAMPLES_MIN
            out.append(sum(record.holdout_correct for record in part) / n if enough else None)
        return out
