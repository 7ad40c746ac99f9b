"""Figures of many devices' hold-outs put together. Pure."""

import math
from typing import Self

import msgspec

from edge_client.wire.messages import Metrics


class Holdout(msgspec.Struct):
    """Sums over the hold-out samples of devices; each figure counts as many times as there are samples.

    Admission sees to it that all evaluations of a job have the same figures; those it does not have are None. `scores`
    and `squares` are sums over devices, whatever their samples.
    """

    n: int = 0
    devices: int = 0
    loss: float = 0.0
    accuracy: float | None = None
    error: float | None = None
    threshold: float | None = None
    scores: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, metrics: Metrics) -> Self:
        """What one device reported."""
        n = metrics.n
        own = (metrics.accuracy, metrics.error, metrics.threshold)
        accuracy, error, threshold = (None if value is None else value * n for value in own)
        mark = score(metrics)
        return cls(n, 1, metrics.loss * n, accuracy, error, threshold, mark, mark * mark)

    def add(self, other: "Holdout") -> None:
        """Take further samples in."""
        self.n += other.n
        self.devices += other.devices
        self.loss += other.loss
        self.accuracy = _sum(self.accuracy, other.accuracy)
        self.error = _sum(self.error, other.error)
        self.threshold = _sum(self.threshold, other.threshold)
        self.scores += other.scores
        self.squares += other.squares

    def mean(self) -> Metrics | None:
        """The figures of all samples together, None without any.

        Of a threshold this is the mean of the devices' own, which need not be the quantile of all their samples.
        """
        if not self.n:
            return None
        own = (self.accuracy, self.error, self.threshold)
        return Metrics(
            self.n, self.loss / self.n, *(None if value is None else value / self.n for value in own)
        )

    def spread(self) -> float | None:
        """Standard deviation of the devices' accuracies, or losses where there is none; None below two devices."""
        if self.devices < 2:
            return None
        mean = self.scores / self.devices
        return math.sqrt(max(0.0, self.squares / self.devices - mean * mean))


def score(figures: Metrics) -> float:
    """What versions are compared by, the higher the better: the accuracy, or minus the loss where there is none."""
    return -figures.loss if figures.accuracy is None else figures.accuracy


def _sum(ours: float | None, theirs: float | None) -> float | None:
    if ours is None or theirs is None:
        return theirs if ours is None else ours
    return ours + theirs
