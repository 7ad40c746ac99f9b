"""When a job ends."""

import pytest

from aggregator.ending import plateaued, reason
from aggregator.spec import EndSpec


@pytest.mark.parametrize(
    ("end", "scores", "word"),
    [
        (EndSpec(versions_max=5), [], "5 versions"),
        (EndSpec(deadline_s=100), [], "deadline"),
        (EndSpec(target_accuracy=0.8), [0.7, 0.8, None], "target accuracy"),
        (EndSpec(patience=2), [0.5, 0.7, 0.6, 0.65], "no better"),
    ],
)
def test_each_condition_ends_a_job_and_says_so(end, scores, word):
    """The reason names the condition that held."""
    assert word in reason(end, scores, version=5, age_s=100)


def test_a_job_goes_on_without_a_reason():
    """No condition, no end."""
    end = EndSpec(versions_max=6, deadline_s=101, target_accuracy=0.9, patience=3)

    assert reason(end, [0.5, 0.7, 0.6], version=5, age_s=100) is None


def test_an_equal_score_is_not_an_improvement():
    """The first of equal scores is the best, so a flat curve ends."""
    assert plateaued([0.7, 0.7, 0.7], 2)
    assert not plateaued([0.7, 0.7], 2)
    assert not plateaued([None, None], 1)
