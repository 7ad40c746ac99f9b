"""When training is over, decided on validation figures alone. Pure; the demo's baselines use the same rule."""

from collections.abc import Sequence

from aggregator.spec import EndSpec


def plateaued(scores: Sequence[float | None], patience: int) -> bool:
    """True when the best of `scores` was reached at least `patience` points before the newest."""
    known = [(score, index) for index, score in enumerate(scores) if score is not None]
    if not known:
        return False
    best = max(known, key=lambda item: (item[0], -item[1]))[1]
    return known[-1][1] - best >= patience


def reason(end: EndSpec, scores: Sequence[float | None], *, version: int, age_s: float) -> str | None:
    """Why a job at this version and age is over, or None while it is not."""
    if end.versions_max is not None and version >= end.versions_max:
        return f"reached {end.versions_max} versions"
    if end.deadline_s is not None and age_s >= end.deadline_s:
        return f"reached its deadline of {end.deadline_s:g} s"
    newest = next((score for score in reversed(scores) if score is not None), None)
    if end.target_accuracy is not None and newest is not None and newest >= end.target_accuracy:
        return f"reached its target accuracy of {end.target_accuracy:g} with {newest:.4f}"
    if end.patience is not None and plateaued(scores, end.patience):
        return f"no better hold-out accuracy for {end.patience} versions"
    return None
