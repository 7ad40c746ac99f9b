"""Hold-out figures: smoothed as they come in, whatever the order."""

import random

import pytest

from aggregator.gini import gini
from aggregator.history import SMOOTHING_SAMPLES_MIN, SMOOTHING_VERSIONS, History, VersionRecord
from edge_client.wire.messages import Evaluation, Metrics


def history(versions):
    made = History()
    for version in range(versions):
        made.add(VersionRecord(version, 0.0, ""))
    return made


def evaluate(made, version, n, accuracy):
    made.evaluated(Evaluation(version, Metrics(n, 1.0, accuracy)))


def accuracies(made):
    return [None if figures is None else figures.accuracy for figures in made.smoothed]


def test_a_version_is_smoothed_with_those_before_it():
    """The figure of a version weighs it and the few before it by their samples; too few samples say nothing."""
    made = history(SMOOTHING_VERSIONS + 1)
    evaluate(made, 0, SMOOTHING_SAMPLES_MIN - 1, 1.0)
    assert set(made.smoothed) == {None}
    evaluate(made, 1, SMOOTHING_SAMPLES_MIN, 0.0)
    n = 2 * SMOOTHING_SAMPLES_MIN - 1
    assert made.smoothed[0] is None
    assert made.smoothed[1].accuracy == pytest.approx((SMOOTHING_SAMPLES_MIN - 1) / n)
    assert made.smoothed[SMOOTHING_VERSIONS].accuracy == 0.0


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
    restarted.recall(whole.holdouts, whole.reported)

    assert accuracies(whole) == pytest.approx(accuracies(grown))
    assert restarted.smoothed == whole.smoothed
    assert restarted.best(range(30)) == whole.best(range(30))


def test_a_version_that_no_device_measured_is_not_the_best():
    """Its smoothed figure is of the versions before it, and may be higher only because a bad one is out of reach."""
    made = history(SMOOTHING_VERSIONS + 1)
    for version in range(SMOOTHING_VERSIONS):
        evaluate(made, version, SMOOTHING_SAMPLES_MIN, 0.9 if version else 0.1)

    assert accuracies(made)[-1] == max(accuracies(made))
    assert made.best(range(len(made.records))) == SMOOTHING_VERSIONS - 1


def test_without_an_accuracy_the_lowest_loss_is_best():
    """Versions of a model that has no accuracy are compared by their loss, smoothed likewise."""
    made = history(3)
    for version, loss in enumerate([3.0, 0.5, 2.0]):
        made.evaluated(Evaluation(version, Metrics(SMOOTHING_SAMPLES_MIN, loss, error=loss / 2)))

    assert made.best(range(3)) == 1
    assert made.newest.loss == pytest.approx(5.5 / 3)
    assert made.newest.error == pytest.approx(5.5 / 6)
    assert made.newest.accuracy is None


def test_the_threshold_is_of_the_version_or_the_last_one_evaluated():
    """Devices' thresholds weigh by their samples; a version nobody has evaluated yet takes an earlier one's."""
    made = history(4)
    made.evaluated(Evaluation(1, Metrics(10, 1.0, threshold=2.0)))
    made.evaluated(Evaluation(1, Metrics(30, 1.0, threshold=4.0)))
    made.evaluated(Evaluation(3, Metrics(0, 0.0)))

    assert made.threshold(0) is None
    assert made.threshold(1) == (3.5, 1)
    assert made.threshold(3) == (3.5, 1)


def test_what_devices_report_of_their_updates_is_averaged_over_those_that_trained():
    """Residual and density are means over reports, the uplink over those that know theirs; a memo keeps them."""
    made = history(3)
    figures = Metrics(10, 1.0, 0.5)
    for norm, density, rate in ((2.0, 0.05, 0.0), (4.0, 0.01, 300.0)):
        made.evaluated(
            Evaluation(1, figures, figures, residual_norm=norm, density=density, uplink_bytes_s=rate)
        )
    made.evaluated(Evaluation(1, figures, residual_norm=99.0))
    restarted = history(3)
    restarted.recall(made.holdouts, made.reported)

    for told in (made, restarted):
        assert told.records[1].reported.mean() == {
            "residual_norm": 3.0,
            "density": pytest.approx(0.03),
            "uplink_bytes_s": 300.0,
        }
        assert set(told.records[0].reported.mean().values()) == {None}


def test_the_spread_over_devices_is_a_standard_deviation():
    """Each device counts once, whatever its samples; of one device there is no spread."""
    made = history(1)
    evaluate(made, 0, 10, 0.5)
    assert made.records[0].holdout.spread() is None
    evaluate(made, 0, 1000, 0.7)
    evaluate(made, 0, 10, 0.9)

    assert made.records[0].holdout.spread() == pytest.approx((2 * 0.2**2 / 3) ** 0.5)


def test_gini_is_zero_for_equals_and_near_one_for_a_monopoly():
    """Over ten devices: all alike 0, one that did everything 0.9, nothing done 0."""
    assert gini([3] * 10) == 0
    assert gini([0] * 9 + [7]) == pytest.approx(0.9)
    assert gini([0, 0]) == 0
