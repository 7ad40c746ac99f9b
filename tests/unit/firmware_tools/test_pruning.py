"""Frozen layers cost nothing on the way back, and the bundle says so."""

import json
from collections import Counter

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import helper, numpy_helper

from edge_client.bundle import EVAL, INFER, TRAIN
from edge_client.training import TrainingSession
from edge_client.wire import grid
from firmware_tools import compile_training
from firmware_tools.commands import bundle
from firmware_tools.export import export_model
from firmware_tools.pruning import METADATA_KEY, read
from firmware_tools.zoo import cnn1d

BATCH = 8


@pytest.fixture(scope="module")
def source():
    return cnn1d(2, 16, 3, widths=(4, 4, 4))


def products(compiled, member):
    """How many convolutions, and how many matrix products."""
    counts = Counter(n.op_type for n in onnx.load_from_string(compiled.members[member]).graph.node)
    return counts["Conv"] + counts["ConvTranspose"], counts["Gemm"] + counts["MatMul"]


def test_a_frozen_convolution_has_no_gradient_nodes(source):
    """With `dense.*` alone the training graph has the forward pass's products and one more, of the head's gradient."""
    full = compile_training(source)
    head = compile_training(source, trainable=("dense.*",))

    assert products(head, EVAL) == (3, 1)
    assert products(head, TRAIN) == (3, 2)
    assert (
        sum(products(full, TRAIN)) >= 3 + 1 + 4 + 3
    )  # and of all four layers, three of which pass theirs on


@pytest.mark.parametrize("quantize", ["int8-weights", "none"])
def test_frozen_tensors_keep_every_bit(source, models, tmp_path, quantize):
    """After training the head, what is exported holds the other layers exactly as they came."""
    compiled = compile_training(source, trainable=("dense.*",), optimizer="adam", quantize=quantize)
    session = TrainingSession(compiled.save(tmp_path / "h.bundle"))
    before = session.params
    x, y = models.blobs((2, 16), 3, 32)
    for _ in range(5):
        session.step(x, y, 0.05)
    values = [grid.to_grid(session.params[t.name], t.step_exp) for t in compiled.manifest.table]
    exported = onnx.load_from_string(export_model(compiled.members[INFER], compiled.manifest, values))
    after = {t.name: numpy_helper.to_array(t) for t in exported.graph.initializer}
    frozen = {t.name: numpy_helper.to_array(t) for t in source.graph.initializer if t.name not in before}

    assert sorted(frozen) == sorted(f"conv{i}.{kind}" for i in (1, 2, 3) for kind in ("weight", "bias"))
    assert all(after[name].tobytes() == value.tobytes() for name, value in frozen.items())
    assert not np.array_equal(session.params["dense.weight"], before["dense.weight"])


@pytest.mark.parametrize(
    ("trainable", "activations"), [(("b2",), 0), (("w2",), BATCH * 16 * 4), (("*",), BATCH * 16 * 4)]
)
def test_the_report_counts_what_the_backward_graph_reads(models, trainable, activations):
    """A bias needs no activation; the weights of an MLP need the one between its two layers, once."""
    compiled = compile_training(models.mlp(), trainable=trainable, batch_size=BATCH, quantize="none")

    assert compiled.pruning.chosen.activations_bytes == activations
    assert compiled.pruning.full.activations_bytes == BATCH * 16 * 4
    # Weight gradients of 12x16 and 16x4, and one step back through the second layer.
    assert compiled.pruning.full.multiply_adds == BATCH * (12 * 16 + 16 * 4 + 4 * 16)


def test_the_report_compares_with_training_everything(source):
    """The figure for everything is the one that a bundle of everything has; the head's is below it."""
    full = compile_training(source).pruning
    head = compile_training(source, trainable=("dense.*",)).pruning

    assert head.full == full.full == full.chosen
    assert head.chosen.nodes < full.chosen.nodes / 4
    assert head.chosen.activations_bytes < full.chosen.activations_bytes / 4
    assert head.chosen.multiply_adds < full.chosen.multiply_adds / 4


def test_a_frozen_layer_without_a_gradient_leaves_nothing_to_compare(models):
    """Where training everything is impossible the report has only what was chosen."""
    nodes = [
        helper.make_node("MatMul", ["in", "w1"], ["a"]),
        helper.make_node("Round", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w2"], ["out"]),
    ]
    rng = np.random.default_rng(0)
    model = models.model_of(nodes, {"w1": models.he(rng, 12, 8), "w2": models.he(rng, 8, 4)}, (12,), 4)
    pruning = compile_training(model, trainable=("w2",)).pruning

    assert pruning.full is None
    assert " of 0" not in str(pruning)
    assert pruning.chosen.nodes > 0


def test_build_and_inspect_show_the_report(source, tmp_path):
    """Both commands print the same line, and the same figures with --json."""
    onnx.save(source, tmp_path / "m.onnx")
    build = ["build", str(tmp_path / "m.onnx"), "--out", str(tmp_path / "m.bundle"), "--trainable", "dense.*"]
    look = ["inspect", str(tmp_path / "m.bundle")]
    built, shown = (CliRunner().invoke(bundle, words).stdout for words in (build, look))
    facts, report = (
        json.loads(CliRunner().invoke(bundle, [*words, "--json"]).stdout) for words in (build, look)
    )
    line = built.splitlines()[-1]

    assert line.startswith("backward graph: ")
    assert line in " ".join(shown.split())
    assert facts["pruning"] == report["pruning"]
    assert facts["pruning"]["chosen"]["nodes"] < facts["pruning"]["full"]["nodes"]


def test_a_graph_of_another_tool_has_no_report(source):
    """Metadata that is absent or garbled is no error: the report is left out."""
    train = onnx.load_from_string(compile_training(source).members[TRAIN])
    helper.set_model_props(train, {METADATA_KEY: "{"})
    garbled = read(train)
    helper.set_model_props(train, {})

    assert garbled is None
    assert read(train) is None
