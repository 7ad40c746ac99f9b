"""When a job ends."""

import pytest

from aggregator.ending import plateaued, reason
from aggregator.spec import EndSpec
from edge_client.wire.messages import Metrics


def accurate(*scores):
    """Hold-out figures with these accuracies; None is a version nobody evaluated."""
    return [None if s is None else Metrics(100, 1.0, accuracy=s) for s in scores]


def lossy(*losses):
    """Figures of a job that has no accuracy."""
    return [Metrics(100, loss, error=0.1) for loss in losses]


@pytest.mark.parametrize(
    ("end", "smoothed", "word"),
    [
        (EndSpec(versions_max=5), [], "5 versions"),
        (EndSpec(deadline_s=100), [], "deadline"),
        (EndSpec(target_accuracy=0.8), accurate(0.7, 0.8, None), "target accuracy of 0.8 with 0.8000"),
        (EndSpec(target_loss=0.2), lossy(0.3, 0.2), "target loss of 0.2 with 0.2"),
        (EndSpec(target_loss=1.0), accurate(0.7), "target loss of 1"),
        (EndSpec(patience=2), accurate(0.5, 0.7, 0.6, 0.65), "no better hold-out accuracy"),
        (EndSpec(patience=2), lossy(3.0, 2.0, 2.5, 2.0), "no lower hold-out loss for 2 versions"),
    ],
)
def test_each_condition_ends_a_job_and_says_so(end, smoothed, word):
    """The reason names the condition that held; without an accuracy the loss decides."""
    assert word in reason(end, smoothed, version=5, age_s=100)


def test_a_job_goes_on_without_a_reason():
    """No condition, no end."""
    end = EndSpec(versions_max=6, deadline_s=101, target_accuracy=0.9, target_loss=0.5, patience=3)

    assert reason(end, accurate(0.5, 0.7, 0.6), version=5, age_s=100) is None
    assert reason(end, lossy(3.0, 2.0, 2.5), version=5, age_s=100) is None


def test_an_equal_score_is_not_an_improvement():
    """The first of equal scores is the best, so a flat curve ends."""
    assert plateaued([0.7, 0.7, 0.7], 2)
    assert not plateaued([0.7, 0.7], 2)
    assert not plateaued([None, None], 1)
