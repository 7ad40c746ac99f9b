"""When training is over, decided on validation figures alone. Pure; the demo's baselines use the same rule."""

from collections.abc import Sequence

from aggregator.holdout import score
from aggregator.spec import EndSpec
from edge_client.wire.messages import Metrics


def plateaued(scores: Sequence[float | None], patience: int) -> bool:
    """True when the best of `scores` was reached at least `patience` points before the newest."""
    known = [(score, index) for index, score in enumerate(scores) if score is not None]
    if not known:
        return False
    best = max(known, key=lambda item: (item[0], -item[1]))[1]
    return known[-1][1] - best >= patience


def reason(end: EndSpec, smoothed: Sequence[Metrics | None], *, version: int, age_s: float) -> str | None:
    """Why a job at this version and age is over, or None while it is not.

    `smoothed` are the hold-out figures of its versions; without an accuracy the loss decides.
    """
    if end.versions_max is not None and version >= end.versions_max:
        return f"reached {end.versions_max} versions"
    if end.deadline_s is not None and age_s >= end.deadline_s:
        return f"reached its deadline of {end.deadline_s:g} s"
    newest = next((figures for figures in reversed(smoothed) if figures is not None), None)
    if newest is None:
        return None
    accuracy = newest.accuracy
    if end.target_accuracy is not None and accuracy is not None and accuracy >= end.target_accuracy:
        return f"reached its target accuracy of {end.target_accuracy:g} with {accuracy:.4f}"
    if end.target_loss is not None and newest.loss <= end.target_loss:
        return f"reached its target loss of {end.target_loss:g} with {newest.loss:.6g}"
    scores = [None if figures is None else score(figures) for figures in smoothed]
    if end.patience is not None and plateaued(scores, end.patience):
        what = "lower hold-out loss" if accuracy is None else "better hold-out accuracy"
        return f"no {what} for {end.patience} versions"
    return None
