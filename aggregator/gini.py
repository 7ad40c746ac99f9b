"""How unevenly something is shared out. Pure."""

from collections.abc import Iterable


def gini(counts: Iterable[int]) -> float:
    """The Gini coefficient of these counts: 0 when all are alike, near 1 when one has everything.

    With x in ascending order: Σ (2 i - n - 1) x_i / (n Σ x). 0 for nothing at all.
    """
    ordered = sorted(counts)
    n, total = len(ordered), sum(ordered)
    if not total:
        return 0.0
    return sum((2 * i - n - 1) * x for i, x in enumerate(ordered, 1)) / (n * total)
