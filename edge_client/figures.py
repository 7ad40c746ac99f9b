"""From the figures of batches to those of a data set: what evaluation reports. Pure."""

import numpy as np
import numpy.typing as npt

from edge_client.bundle import Manifest
from edge_client.wire.messages import Metrics

Output = npt.NDArray[np.float32] | npt.NDArray[np.int64]


class Figures:
    """Sums over the batches of one evaluation; `wanted` names the outputs of eval.onnx, in the order of `add`."""

    def __init__(self, manifest: Manifest) -> None:
        self._measure = manifest.measure
        self._share = manifest.threshold_share or 1.0
        self._labels = manifest.data.n_classes if manifest.data.target == "labels" else 1
        self._n, self._loss, self._weight, self._sum = 0, 0.0, 0.0, 0.0
        self._errors: list[Output] = []
        own = {"accuracy": "correct", "error": "error", "threshold": "errors"}[self._measure]
        self.wanted = ("loss", "loss_weight", own)

    def add(self, n: int, loss: Output, weight: Output, own: Output) -> None:
        """Take the outputs of a batch of `n` samples."""
        self._n += n
        self._loss += float(loss) * float(weight)
        self._weight += float(weight)
        if self._measure == "threshold":
            self._errors.append(own)
        else:
            self._sum += float(own) * (n if self._measure == "error" else 1)

    def mean(self) -> Metrics:
        """The figures of all samples; zeros without any, and then no threshold."""
        n, loss = max(self._n, 1), self._loss / self._weight if self._weight else 0.0
        if self._measure == "accuracy":
            return Metrics(self._n, loss, accuracy=self._sum / (n * self._labels))
        if self._measure == "error":
            return Metrics(self._n, loss, error=self._sum / n)
        return Metrics(self._n, loss, threshold=self._threshold())

    def _threshold(self) -> float | None:
        """The smallest error that the bundle's share of the samples does not pass."""
        if not self._errors:
            return None
        return float(np.quantile(np.concatenate(self._errors), self._share, method="inverted_cdf"))
