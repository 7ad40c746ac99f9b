"""Hold-out figures: smoothed as they come in, whatever the order."""

import random

import pytest

from aggregator.history import SMOOTHING_SAMPLES_MIN, SMOOTHING_VERSIONS, History, VersionRecord
from edge_client.wire.messages import Evaluation, Metrics


def history(versions):
    made = History()
    for version in range(versions):
        made.add(VersionRecord(version, 0.0, ""))
    return made


def evaluate(made, version, n, accuracy):
    made.evaluated(Evaluation(version, Metrics(n, 1.0, accuracy)))


def test_a_version_is_smoothed_with_those_before_it():
    """The figure of a version weighs it and the few before it by their samples; too few samples say nothing."""
    made = history(SMOOTHING_VERSIONS + 1)
    evaluate(made, 0, SMOOTHING_SAMPLES_MIN - 1, 1.0)
    assert set(made.smoothed) == {None}
    evaluate(made, 1, SMOOTHING_SAMPLES_MIN, 0.0)
    n = 2 * SMOOTHING_SAMPLES_MIN - 1
    assert made.smoothed[0] is None
    assert made.smoothed[1] == pytest.approx((SMOOTHING_SAMPLES_MIN - 1) / n)
    assert made.smoothed[SMOOTHING_VERSIONS] == 0.0


def test_the_order_of_evaluations_and_a_restart_change_nothing():
    """Late evaluations move the figures of later versions too; a memo brings the same figures back."""
    rng = random.Random(5)
    evaluations = [(rng.randrange(30), rng.randrange(1, 60), rng.random()) for _ in range(200)]
    grown, whole = history(0), history(30)
    for version in range(30):
        grown.add(VersionRecord(version, 0.0, ""))
        for evaluation in evaluations:
            if evaluation[0] == version:
                evaluate(grown, *evaluation)
    for evaluation in evaluations:
        evaluate(whole, *evaluation)
    restarted = history(30)
    restarted.recall(whole.holdouts)

    assert list(whole.smoothed) == pytest.approx(list(grown.smoothed))
    assert restarted.smoothed == whole.smoothed
    assert restarted.best(range(30)) == whole.best(range(30))
