"""Job specs: what is refused, and what the refusal says."""

import json

import msgspec
import pytest

from aggregator.errors import RefusedError
from aggregator.presets import PRESETS
from aggregator.spec import check_bundle, parse
from edge_client.bundle import TensorSpec, open_bundle

GOOD = {"name": "exercise", "bundle": "a" * 64, "dataset": "wrist-imu"}


def refusal(**fields):
    with pytest.raises(RefusedError) as caught:
        parse(json.dumps({**GOOD, **fields}).encode())
    return caught.value


def test_a_plain_spec_gets_the_defaults():
    """Three fields suffice."""
    spec = parse(json.dumps(GOOD).encode())

    assert (spec.strategy, spec.buffer_size, spec.training.density) == ("fedbuff", 4, 0.05)


@pytest.mark.parametrize("field", ["privacy", "secure_aggregation", "signing", "rollout", "personalization"])
def test_what_is_not_built_is_refused_as_unsupported(field):
    """I13: a job that asks for something designed but not built never runs without it."""
    error = refusal(**{field: {}})

    assert error.code == "unsupported"
    assert field in str(error)


def test_a_strategy_sets_what_the_spec_leaves_open():
    """A preset is a setting of the same fields, and what the spec says wins, part by part."""
    spec = parse(json.dumps({**GOOD, "strategy": "fadas", "optimizer": {"beta1": 0.5}}).encode())

    assert (spec.optimizer.name, spec.optimizer.beta1, spec.staleness) == ("amsgrad", 0.5, "constant")
    assert parse(json.dumps({**GOOD, "strategy": "calibrated"}).encode()).cache_weight == 1
    assert parse(json.dumps({**GOOD, "strategy": "fedavg"}).encode()).barrier


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_sound_spec(name):
    """Three fields and the strategy's name suffice."""
    assert parse(json.dumps({**GOOD, "strategy": name}).encode()).strategy == name


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"strategy": "calibrated", "privacy": {}},
            ("cache_weight 1.0 breaks differential privacy", "fedbuff"),
        ),
        ({"cache_weight": 0.5, "secure_aggregation": {}}, ("breaks secure aggregation",)),
        ({"staleness_max": 0, "buffer_size": 20}, ("staleness_max 0", "barrier")),
        ({"over_selection": 1.3}, ("over_selection", "barrier")),
        ({"mixing": True, "cache_weight": 1}, ("mixing", "cache_weight 0")),
        ({"robust": {"rule": "median"}}, ("sparse", "nearly always 0")),
        ({"quorum": 9}, ("quorum is 9; it must be from 1 to 4",)),
        ({"staleness": "exponential"}, ("constant, polynomial, hinge, threshold",)),
        ({"strategy": "calibrated", "weighting": "samples"}, ("cached devices", "norm_max")),
    ],
)
def test_what_breaks_a_promise_is_refused_with_an_alternative(fields, words):
    """The refusal says which promise, and what to set instead."""
    error = refusal(**fields)

    assert error.code == "bad_spec"
    assert all(word in str(error) for word in words), str(error)


def test_a_typo_gets_the_nearest_field():
    """An unknown field is an error that names the one that was probably meant."""
    assert "did you mean buffer_size?" in str(refusal(bufer_size=3))
    assert "did you mean training.density?" in str(refusal(training={"densty": 0.1}))


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"name": "Exercise 1"}, "job name"),
        ({"buffer_size": 0}, "buffer_size"),
        ({"training": {"density": 0}}, "training.density"),
        ({"training": {"steps": "many"}}, "training.steps"),
        ({"end": {"target_accuracy": 2}}, "end.target_accuracy"),
        ({"end": {"target_loss": -1}}, "end.target_loss"),
        ({"strategy": "best"}, "unknown strategy 'best'; known: fedavg, fedasync"),
        ({"optimizer": {"beta1": 1}}, "optimizer.beta1"),
        ({"robust": {"clip_facto": 1}}, "unknown field robust.clip_facto; did you mean robust.clip_factor?"),
        ({"training": {"density": 0.1, "density_first": 0.05}}, "training.density_first"),
        (
            {"selection": {"policy": "fairest"}},
            "selection.policy: Invalid enum value 'fairest'; known: round-robin, random",
        ),
        ({"weighting": "sample"}, "weighting: Invalid enum value 'sample'; known: uniform, samples"),
        ({"training": {"codec": "zip"}}, "training.codec is 'zip'; known: ternary, q4"),
    ],
)
def test_a_bad_value_is_named(fields, word):
    """The refusal names the field."""
    error = refusal(**fields)

    assert error.code == "bad_spec"
    assert word in str(error)


def test_a_buffer_that_could_overflow_is_refused():
    """I2: K * norm_max * n_max * scale < 2**63 is proved before the job starts."""
    assert "overflow" in str(refusal(buffer_size=100_000, norm_max=1e5, weighting="samples"))


def test_a_buffer_of_statistics_that_could_overflow_is_refused(bundle, tmp_path):
    """I2: changes of statistics are bounded by float16 alone, which limits the buffer of a job that has any."""
    (tmp_path / "b").write_bytes(bundle)
    plain = open_bundle(tmp_path / "b").manifest
    observing = msgspec.structs.replace(plain, statistics=(TensorSpec("mean", (2,), -16),))
    spec = parse(json.dumps({**GOOD, "buffer_size": 130, "weighting": "samples", "norm_max": 1}).encode())

    check_bundle(spec, plain)
    check_bundle(msgspec.structs.replace(spec, buffer_size=128), observing)
    with pytest.raises(RefusedError, match=r"statistic.*overflow"):
        check_bundle(spec, observing)


def test_not_json_is_refused():
    """Garbage gets a refusal, not a traceback."""
    with pytest.raises(RefusedError, match="not JSON"):
        parse(b"\xff{")
