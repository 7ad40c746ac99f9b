"""Models that Keras and JAX exported train as they do there; exported/ has the scripts that made them."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from edge_client.bundle import INFER
from edge_client.training import TrainingSession
from firmware_tools import compile_training
from firmware_tools.autodiff.graph import OPSET_MAX

FOLDER = Path(__file__).with_name("exported")
LOSSES = {k: v for path in FOLDER.glob("*-losses.json") for k, v in json.loads(path.read_text()).items()}
BATCH, RATE = 8, 0.05
# Parameters of these are others than Keras's: the exporter multiplies the normalisation's scale into the kernel,
# and ONNX's LSTM has two biases, whose sum moves twice as fast as the one.
REPARAMETRISED = {"keras-cnn", "keras-lstm"}


def data(shape):
    """The batch on which the scripts took their steps."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((BATCH, *shape)).astype(np.float32), rng.integers(0, 4, BATCH)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_losses_equal_those_of_the_framework(tmp_path, name):
    """Five steps of gradient descent have the framework's losses: its values and its gradients are ours."""
    compiled = compile_training(
        FOLDER / f"{name}.onnx", optimizer="sgd", quantize="none", batch_norm="frozen"
    )
    session = TrainingSession(compiled.save(tmp_path / "m.bundle"))
    x, y = data(compiled.manifest.data.shape)
    losses = [session.step(x, y, RATE) for _ in LOSSES[name]]

    assert losses[0] == pytest.approx(LOSSES[name][0], rel=1e-4)
    if name not in REPARAMETRISED:
        assert losses == pytest.approx(LOSSES[name], rel=1e-4)


@pytest.mark.parametrize("quantize", ["none", "int8-weights"])
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_an_exported_model_learns(models, tmp_path, name, quantize):
    """Each is fitted to a batch with weights in full precision and rounded to int8."""
    compiled = compile_training(FOLDER / f"{name}.onnx", optimizer="adam", quantize=quantize)
    session = TrainingSession(compiled.save(tmp_path / "m.bundle"))
    x, y = models.blobs(compiled.manifest.data.shape, 4, 32)
    before = session.evaluate(x, y).loss
    for _ in range(60):
        session.step(x, y, 0.02)

    assert session.evaluate(x, y).loss < before / 3


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_the_bundle_answers_as_the_exported_model(name):
    """Before any step the logits are those of the file that was compiled."""
    path = FOLDER / f"{name}.onnx"
    compiled = compile_training(path, quantize="none", batch_norm="frozen")
    source = onnx.load(path)
    del source.graph.value_info[
        :
    ]  # jax2onnx notes shapes in another order of axes, which ONNX Runtime warns of
    x, _ = data(compiled.manifest.data.shape)
    if any(o.version > OPSET_MAX for o in source.opset_import) and ort.__version__.startswith("1.22."):
        pytest.skip("ONNX Runtime 1.22 does not run what the exporter wrote, but what was compiled")
    session = ort.InferenceSession(source.SerializeToString(), providers=["CPUExecutionProvider"])
    (want,) = session.run(None, {session.get_inputs()[0].name: x})
    values = {t.name: onnx.numpy_helper.to_array(t) for t in source.graph.initializer}
    ours = ort.InferenceSession(compiled.members[INFER], providers=["CPUExecutionProvider"])
    (logits,) = ours.run(None, {"x": x, **{t.name: values[t.name] for t in compiled.manifest.tensors}})
    if compiled.notes:
        logits = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)

    np.testing.assert_allclose(logits, want, atol=1e-5)
