"""The examples of docs/exporters.md do what they say."""

import re
from pathlib import Path

import onnx
import pytest

from edge_client.training import TrainingSession
from firmware_tools import compile_training

ROOT = Path(__file__).parents[3]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "exporters.md").read_text(), re.DOTALL)
ELSEWHERE = ("import keras", "import jax")  # not installed for the tests; models they made are in exported/


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "index", [i for i, b in enumerate(BLOCKS) if not any(word in b for word in ELSEWHERE)]
)
def test_an_example_writes_a_model_that_trains(tmp_path, monkeypatch, models, index):
    """Run as it stands, an example leaves a model.onnx that compiles and takes a step."""
    block = BLOCKS[index]
    if "import torch" in block:
        pytest.importorskip("torch")
    if "dynamo=True" in block:
        pytest.importorskip("onnxscript")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, f"docs/exporters.md, example {index}", "exec"), {})
    onnx.checker.check_model(tmp_path / "model.onnx")
    compiled = compile_training(tmp_path / "model.onnx")
    session = TrainingSession(compiled.save(tmp_path / "model.bundle"))
    data = models.blobs(compiled.manifest.data.shape, compiled.manifest.data.n_classes, 16)

    assert session.step(*data, 0.01) > 0


def test_each_framework_has_an_example():
    """Both exporters of PyTorch, Keras, JAX, and one by hand."""
    marks = ("dynamo=True", "dynamo=False", "import keras", "import jax", "firmware_tools.layers")

    assert [sum(mark in block for block in BLOCKS) for mark in marks] == [1] * 5
