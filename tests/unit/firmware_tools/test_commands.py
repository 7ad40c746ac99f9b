"""`fedfleet bundle` as a person uses it."""

import json

import onnx
import pytest
from click.testing import CliRunner

from edge_client.bundle import open_bundle
from examples.models.autoencoder import autoencoder
from firmware_tools.commands import bundle


def run(*args):
    return CliRunner().invoke(bundle, [str(a) for a in args])


@pytest.fixture
def model(models, tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(models.mlp(), path)
    return path


def test_build_then_inspect(model, tmp_path):
    """A built bundle is described for people and, with --json, for programs."""
    out = tmp_path / "m.bundle"
    built = run("build", model, "--out", out, "--name", "tiny", "--axes", "feature", "--trainable", "w*")
    facts = json.loads(run("build", model, "--out", tmp_path / "n", "--name", "tiny", "--json").stdout)
    shown, asked = run("inspect", out), run("inspect", out, "--json")

    assert (built.exit_code, shown.exit_code, asked.exit_code) == (0, 0, 0)
    assert "256 parameters" in shown.output
    assert (facts["name"], facts["parameters"], facts["bytes"]) == (
        "tiny",
        276,
        (tmp_path / "n").stat().st_size,
    )
    report = json.loads(asked.output)
    assert report["manifest"]["name"] == "tiny"
    assert report["parameters"] == 256
    assert report["graphs"][0]["operators"]["MatMul"] >= 2
    assert report["memory"]["activations_bytes"] > 0


def test_normalisation_comes_from_text_or_file(model, tmp_path):
    """--normalize takes means and deviations inline or from JSON, with the same result."""
    stats = tmp_path / "stats.json"
    stats.write_text(json.dumps({"mean": [0.5] * 12, "std": [2.0] * 12}))
    inline = ",".join(["0.5"] * 12) + ";" + ",".join(["2"] * 12)
    first = run("build", model, "--out", tmp_path / "a", "--normalize", inline)
    second = run("build", model, "--out", tmp_path / "b", "--normalize", stats)

    assert (first.exit_code, second.exit_code) == (0, 0)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert open_bundle(tmp_path / "a").manifest.data.shape == (12,)


def test_the_loss_and_its_options_are_shown(model, tmp_path):
    """--loss, --class-weights and --threshold-share reach the manifest, and inspect says what samples need."""
    weighted, detector = tmp_path / "w", tmp_path / "d"
    run("build", model, "--out", weighted, "--loss", "bce_with_logits", "--class-weights", "1,2.5,1,1")
    onnx.save(autoencoder(), tmp_path / "a.onnx")
    run("build", tmp_path / "a.onnx", "--out", detector, "--loss", "reconstruction", "--threshold-share", 0.9)
    wrong = run("build", model, "--out", tmp_path / "x", "--class-weights", "1,2")
    typo = run("build", model, "--out", tmp_path / "x", "--class-weights", "1;2")

    assert open_bundle(weighted).manifest.class_weights == (1.0, 2.5, 1.0, 1.0)
    assert "with 4 labels" in run("inspect", weighted).output
    assert "bce_with_logits weighted 1, 2.5, 1, 1" in run("inspect", weighted).output
    assert "with no labels" in run("inspect", detector).output
    assert "threshold over 0.9 of the samples" in run("inspect", detector).output
    assert (wrong.exit_code, "2 class weights for the model's 4 logits" in wrong.output) == (1, True)
    assert (typo.exit_code, "not a list of numbers" in typo.output) == (2, True)
    assert not (tmp_path / "x").exists()


def test_refusal_is_one_line_and_exit_code_1(model, tmp_path):
    """A model or bundle that is refused gives its reason and no traceback."""
    built = run("build", model, "--out", tmp_path / "a", "--trainable", "none*")
    looked = run("inspect", model)

    assert (built.exit_code, looked.exit_code) == (1, 1)
    assert built.output.startswith("Error: trainable 'none*' matches none")
    assert "not a bundle" in looked.output


@pytest.mark.parametrize("args", [["build"], ["build", "absent.onnx", "--out", "x"], ["inspect", "--nope"]])
def test_wrong_usage_is_exit_code_2(args):
    """Missing or unknown arguments are usage errors."""
    assert run(*args).exit_code == 2


def test_bad_normalisation_is_wrong_usage(model, tmp_path):
    """--normalize that does not parse is a usage error that quotes it."""
    result = run("build", model, "--out", tmp_path / "a", "--normalize", "1,2;x")

    assert result.exit_code == 2
    assert "1,2;x" in result.output


def test_help_shows_an_example():
    """Each command's help ends in something to copy."""
    for command in ("build", "inspect"):
        assert "Example:" in run(command, "--help").output


def test_missing_extra_is_named(model, tmp_path, monkeypatch):
    """Without onnx the command says what to install."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnx" else name)
    result = run("build", model, "--out", tmp_path / "a")

    assert result.exit_code == 1
    assert "pip install 'fedfleet[tools]'" in result.output
