"""The file of a simulation says what is wrong with it."""

import pytest

from aggregator.simulate import config
from aggregator.simulate.config import Dirichlet, SpeedClasses
from aggregator.simulate.errors import SimulationError


def changed(table, path, value):
    *parents, key = path.split(".")
    inner = table
    for name in parents:
        inner = inner.setdefault(name, {})
    inner[key] = value
    return table


def test_a_configuration_is_read(table, parsed):
    """Tables become structs by their kind, and paths are relative to the file."""
    table["data"]["source"] = "mine.npz"
    table["fleet"]["speed"] = {"kind": "classes", "factors": [1, 2, 4]}
    read = parsed(table)

    assert read.data.partition == Dirichlet(1.0)
    assert read.fleet.speed == SpeedClasses((1.0, 2.0, 4.0))
    assert read.data.source.endswith("/mine.npz")
    assert read.data.source.startswith("/")


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("flet", {}, "unknown key flet; did you mean fleet?"),
        ("fleet.jiter", 1, "unknown key fleet.jiter; did you mean fleet.jitter?"),
        ("fleet.faults.los", 0.1, "fleet.faults.los; did you mean fleet.faults.loss?"),
        ("data.partition.alpa", 1, "did you mean data.partition.alpha?"),
        (
            "data.partition.kind",
            "dirichlett",
            "data.partition.kind: Invalid value 'dirichlett'; known: dirichlet, classes",
        ),
        ("fleet.jitter", -1, "fleet.jitter is -1"),
        ("fleet.devices", "many", "fleet.devices: Expected `int | null`, got `str`"),
        ("fleet.speed", {"kind": "classes", "factors": [1.0], "shares": [1.0, 2.0]}, "as many shares"),
        ("fleet.availability", {"kind": "churn", "on_s": 1.0}, "off_s"),
        ("stop", {"target_accuracy": 0.9}, "say when runs end"),
        ("seeds", [1, 1], "each once"),
        ("model", {"builtin": "mlp", "onnx": "m.onnx"}, "given: builtin, onnx"),
        ("model", {}, "given: none"),
        ("strategy", [{"buffer_size": 3}], "a name of its own"),
        ("strategy", [{"name": "Not Good"}], "'Not Good' is not valid"),
        ("strategy", [{"name": "a"}, {"name": "a"}], "two have the same name"),
        ("strategy", [{"name": "a", "bundle": "x"}], "strategy 'a': leave bundle out"),
        ("job.testset", "0" * 64, "job: leave testset out; it is what [data] says"),
        ("evaluate.targets", [0.5, 80], "evaluate.targets[1] is 80"),
    ],
)
def test_an_error_names_the_key_and_the_remedy(table, parsed, path, value, words):
    """Unknown keys come with the nearest known one, values with their range."""
    with pytest.raises(SimulationError) as error:
        parsed(changed(table, path, value))

    assert words in str(error.value)


def test_a_strategy_overrides_single_fields_of_the_job(table, parsed):
    """What a strategy does not say is as the job says it, inside its tables, too."""
    table["strategy"] = [{"name": "dense", "training": {"codec": "dense-fp32"}, "buffer_size": 3}]
    spec = parsed(table).spec("dense", 7, "0" * 64)

    assert (spec.buffer_size, spec.concurrency, spec.seed) == (3, 4, 7)
    assert (spec.training.codec, spec.training.steps) == ("dense-fp32", 4)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"bufer_size": 3}, "strategy 'odd': unknown field bufer_size; did you mean buffer_size?"),
        ({"concurrency": 0}, "strategy 'odd': concurrency is 0"),
        ({"training": {"codec": "zip"}}, "training.codec is 'zip'"),
        ({"privacy": {}}, "differential privacy is not built yet"),
    ],
)
def test_a_job_that_the_server_would_refuse_is_refused_with_its_words(table, parsed, fields, words):
    """The job spec's own checks speak."""
    table["strategy"] = [{"name": "odd", **fields}]

    with pytest.raises(SimulationError) as error:
        parsed(table).spec("odd", 0, "0" * 64)

    assert words in str(error.value)


def test_a_file_that_is_no_toml_is_named(tmp_path):
    """Path and place are in the message."""
    path = tmp_path / "bad.toml"
    path.write_text("[fleet\n")

    with pytest.raises(SimulationError, match=r"bad\.toml: not valid TOML.*line 1"):
        config.load(path)
