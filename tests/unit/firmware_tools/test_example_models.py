"""The reference networks of examples/models/ compile, learn, and become inference models again."""

import re
from math import prod
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner

from edge_client.bundle import INFER
from edge_client.training import TrainingSession
from edge_client.wire import grid
from examples.models import MODELS
from examples.models.__main__ import main
from firmware_tools import compile_training
from firmware_tools.export import export_model

PAGE = Path(__file__).parents[3] / "examples" / "models" / "README.md"
SAMPLES, BATCH, RATE = 320, 16, 0.005
# Steps to take, and a task that an untrained network of this form can learn in them: pooling over the whole image
# leaves no positions, and the deepest net sees only strong patterns.
TASKS = {
    "ds-cnn": ("waves", 40),
    "mobilenet": ("blobs", 32),
    "resnet-8": ("waves", 40),
    "gru": ("blobs", 40),
    "transformer": ("blobs", 20),
}


def multiply_adds(model):
    """Of convolutions, products and recurrences for one sample."""
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    infos = (*inferred.input, *inferred.value_info, *inferred.output)
    shapes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in infos}
    shapes |= {t.name: list(t.dims) for t in inferred.initializer}
    total = 0
    for node in inferred.node:
        first, second = ([*map(shapes.get, node.input), None])[:2]
        match node.op_type:
            case "Conv":
                total += prod(shapes[node.output[0]]) * prod(second[1:])
            case "Gemm" | "MatMul":
                total += prod(shapes[node.output[0]]) * first[-1]
            case "GRU":
                total += first[0] * (prod(second) + prod(shapes[node.input[2]]))
    return total


def exported(session, compiled, form):
    tensors = compiled.manifest.table
    values = [grid.to_grid(session.params[t.name], t.step_exp) for t in tensors]
    model = export_model(compiled.members[INFER], compiled.manifest, values, format=form)
    return ort.InferenceSession(model, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("quantize", ["none", "int8-weights", "int8"])
@pytest.mark.parametrize("name", TASKS)
def test_a_classifier_learns_and_is_exported(models, tmp_path, name, quantize):
    """Its loss falls to a third, unseen samples are told apart, and the exported model answers as the trained one."""
    task, steps = getattr(models, TASKS[name][0]), TASKS[name][1]
    compiled = compile_training(MODELS[name](), quantize=quantize, optimizer="adam", batch_size=BATCH)
    session = TrainingSession(compiled.save(tmp_path / "m.bundle"))
    shape, classes = compiled.manifest.data.shape, compiled.manifest.data.n_classes
    x, y = task(shape, classes, SAMPLES)
    held_x, held_y = task(shape, classes, 128, seed=5)
    before = session.evaluate(held_x, held_y)
    for step in range(steps):
        rows = np.arange(step * BATCH, (step + 1) * BATCH) % SAMPLES
        session.step(x[rows], y[rows], RATE)
    after = session.evaluate(held_x, held_y)
    forms = ["fp32"] if quantize == "none" else ["fp32", "int8"]
    answers = [exported(session, compiled, form).run(None, {"x": held_x})[0].argmax(axis=1) for form in forms]

    assert after.loss < before.loss / 3
    assert after.accuracy > 0.5 + 0.5 / classes
    for answer in answers:
        assert float((answer == held_y).mean()) == pytest.approx(after.accuracy, abs=0.02)


@pytest.mark.parametrize("quantize", ["none", "int8-weights", "int8"])
def test_the_autoencoder_learns_what_is_usual_and_is_exported(tmp_path, quantize):
    """Usual samples come to a third of their error; most unusual ones stay above the threshold, exported too."""
    compiled = compile_training(
        MODELS["autoencoder"](), loss="reconstruction", quantize=quantize, optimizer="adam", batch_size=BATCH
    )
    session = TrainingSession(compiled.save(tmp_path / "m.bundle"))
    rng = np.random.default_rng(0)
    usual, unusual = rng.standard_normal((2, 4, 640)).astype(np.float32)
    codes = rng.standard_normal((SAMPLES + 128, 4)).astype(np.float32)
    x, held = codes[:SAMPLES] @ usual / 2, codes[SAMPLES:] @ usual / 2
    before = session.evaluate(held, None).loss
    for step in range(200):
        session.step(x[np.arange(step * BATCH, (step + 1) * BATCH) % SAMPLES], None, RATE)
    after = session.evaluate(held, None)
    for form in ["fp32"] if quantize == "none" else ["fp32", "int8"]:
        model = exported(session, compiled, form)
        errors = [model.run(["errors"], {"x": codes[SAMPLES:] @ basis / 2})[0] for basis in (usual, unusual)]

        assert errors[0].mean() == pytest.approx(after.loss, rel=0.1)
        assert np.median(errors[1]) > after.threshold
    assert after.loss < before / 3


@pytest.mark.parametrize("name", ["ds-cnn", "gru", "transformer"])
def test_training_is_deterministic(models, tmp_path, name):
    """The same steps give the same bits, in another session too."""
    path = compile_training(MODELS[name](), optimizer="adam").save(tmp_path / "m.bundle")
    results = []
    for _ in range(2):
        session = TrainingSession(path)
        x, y = models.waves(session.bundle.manifest.data.shape, session.bundle.manifest.data.n_classes, 64)
        losses = [session.step(x[i : i + 16], y[i : i + 16], RATE) for i in range(0, 64, 16)]
        results.append((losses, {k: v.tobytes() for k, v in session.params.items()}))

    assert results[0] == results[1]


@pytest.mark.parametrize("name", MODELS)
def test_the_page_states_size_and_work(name):
    """The table of examples/models/README.md has each network's values and multiply-adds, counted from its graph."""
    model = MODELS[name]()
    initializers = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and t.dims]
    (row,) = re.findall(rf"^\| `{name}` \|.*\|$", PAGE.read_text(), re.MULTILINE)
    cells = [cell.strip() for cell in row.strip("|").split("|")]

    assert cells[-2] == f"{sum(prod(t.dims) for t in initializers):,}"
    assert cells[-1] == f"{multiply_adds(model):,}"


def test_a_network_is_written_as_the_page_says(tmp_path):
    """`python -m examples.models` writes a valid model; the same seed gives the same bytes."""
    paths = [tmp_path / name for name in ("a.onnx", "b.onnx", "c.onnx")]
    results = [
        CliRunner().invoke(main, ["gru", "--out", str(p), "--seed", s])
        for p, s in zip(paths, "001", strict=True)
    ]

    assert [r.exit_code for r in results] == [0, 0, 0]
    onnx.checker.check_model(onnx.load(paths[0]), full_check=True)
    assert paths[0].read_bytes() == paths[1].read_bytes() != paths[2].read_bytes()
