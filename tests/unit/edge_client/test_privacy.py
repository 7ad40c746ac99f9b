"""Nothing a device writes or sends carries a sample."""

import os
import subprocess
import sys

import numpy as np
import pytest

from edge_client.bundle import PARAMS
from edge_client.trainer_protocol import DataSource, DescribeTask, TrainTask, send
from edge_client.wire import grid
from edge_client.wire.messages import TrainingPlan
from firmware_tools import compile_training
from firmware_tools.zoo import cnn1d

SECRET = 7654.3213


def test_no_answer_and_no_log_line_holds_a_sample(tmp_path):
    """I8: with one telling value in every sample, neither its bytes nor its digits leave the trainer child."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 2, 16)).astype(np.float32)
    x[:, 0, 3] = SECRET
    np.savez(tmp_path / "d.npz", x=x, y=np.arange(60) % 3)
    compiled = compile_training(cnn1d(2, 16, 3, widths=(4, 4, 4)), normalize=((SECRET, 0.0), (1.0, 1.0)))
    frame = grid.decode(compiled.members[PARAMS], compiled.manifest.sizes)
    (tmp_path / "ws").mkdir()
    train = TrainTask(
        job="j",
        workspace=str(tmp_path / "ws"),
        bundle_path=str(compiled.save(tmp_path / "n.bundle")),
        model_paths=(),
        version=0,
        version_hash=frame.model_hash.hex(),
        source=DataSource(str(tmp_path / "d.npz")),
        data=compiled.manifest.data,
        plan=TrainingPlan(steps=20, batch_size=8, learning_rate=0.01, density=1.0, norm_max=10.0),
        uid="pi:j:0123456789abcdef:1",
    )
    broken = TrainTask(**{f: getattr(train, f) for f in train.__struct_fields__} | {"bundle_path": "nowhere"})

    with subprocess.Popen(
        [sys.executable, "-m", "edge_client.trainer_child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:
        for task in (DescribeTask(train.source), train, broken):
            send(child.stdin, task)
        said, logged = child.communicate(timeout=60)

    assert b"trained" in said
    for text in (np.float32(SECRET).tobytes(), np.float64(np.float32(SECRET)).tobytes(), b"7654"):
        assert text not in said
        assert text not in logged
    assert not any(np.float32(SECRET).tobytes() in path.read_bytes() for path in (tmp_path / "ws").iterdir())


@pytest.mark.parametrize(
    "module", ["edge_client.training", "firmware_tools.compiler", "aggregator.demo.live"]
)
def test_the_runtime_reports_to_nobody(tmp_path, module):
    """I8: ONNX Runtime keeps no identifier and no events to send to its maker, whichever package loads it."""
    code = f"import {module}, onnxruntime\nonnxruntime.SessionOptions()"
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}  # in CI the runtime is silent by itself
    subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)

    assert list(tmp_path.rglob("*")) == []
