"""The trainer child under emulation and on x86_64: the same task over the same protocol, nearly the same update."""

import os
import subprocess
import sys

import numpy as np
import pytest

from edge_client.bundle import PARAMS
from edge_client.trainer_protocol import (
    DataSource,
    Described,
    DescribeTask,
    Progress,
    Trained,
    TrainTask,
    receive_answer,
    send,
)
from edge_client.wire import grid, sparse
from edge_client.wire.messages import TrainingPlan
from firmware_tools import compile_training
from firmware_tools.zoo import cnn1d

STEPS = 10
U_TOLERANCE = 1e-3  # of a parameter's change, which is about 0.1 and travels as float16
SHARED_MIN = (
    0.95  # of the transmitted indices: where two values are nearly equal, either may be among the largest
)


def learnable(schema, n):
    """Samples of each class around its own mean."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, schema.n_classes, n)
    x = rng.standard_normal((n, *schema.shape)) * 0.3 + (y - 1)[:, None, None]
    return {"x": x.astype(np.float32), "y": y}


@pytest.fixture(scope="module")
def compiled():
    return compile_training(cnn1d(2, 16, 3, widths=(8, 8, 8)), axes=("channel", "time"), quantize="none")


@pytest.fixture(scope="module")
def answers(pi, compiled, tmp_path_factory):
    """What the child on x86_64 and the emulated one answer: their description, progress and result."""
    directory = tmp_path_factory.mktemp("trainer")
    np.savez(directory / "data.npz", **learnable(compiled.manifest.data, 120))
    (directory / "v0").write_bytes(compiled.members[PARAMS])
    bundle = compiled.save(directory / "net.bundle")
    frame = grid.decode(compiled.members[PARAMS], compiled.manifest.sizes)
    said = []
    for python, environment in ((sys.executable, None), (pi.python, pi.environment)):
        workspace = directory / f"workspace-{len(said)}"
        workspace.mkdir()
        task = TrainTask(
            job="j",
            workspace=str(workspace),
            bundle_path=str(bundle),
            model_paths=(str(directory / "v0"),),
            version=0,
            version_hash=frame.model_hash.hex(),
            source=DataSource(str(directory / "data.npz")),
            data=compiled.manifest.data,
            plan=TrainingPlan(STEPS, batch_size=16, learning_rate=0.05, density=0.1, norm_max=10.0),
            uid="pi:j:0123456789abcdef:1",
        )
        said.append(converse(python, environment, DescribeTask(task.source), task))
    for name, answers in zip(("a trainer child on x86_64", "a trainer child"), said, strict=True):
        pi.figures[f"peak RSS, {name}"] = f"{answers[-1].evaluation.memory_bytes / 1e6:.0f} MB"
    return said


def converse(python, environment, *tasks):
    """All answers of a trainer child, which then ends well."""
    command = [python, "-m", "edge_client.trainer_child"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment or os.environ
    ) as child:
        said = []
        for task in tasks:
            send(child.stdin, task)
            said.append(receive_answer(child.stdout))
            while isinstance(said[-1], Progress):
                said.append(receive_answer(child.stdout))
        child.stdin.close()
        assert child.stdout.read() == b""
    assert child.returncode == 0
    return said


def test_the_emulated_child_speaks_the_protocol(answers, compiled):
    """It describes the data, reports progress to the last step, trains, and ends when its stdin closes."""
    described, *progress, trained = answers[1]

    assert isinstance(described, Described)
    assert (described.data.shape, described.n_samples) == (compiled.manifest.data.shape, 120)
    assert (progress[-1].step, progress[-1].steps) == (STEPS, STEPS)
    assert isinstance(trained, Trained)
    assert trained.evaluation.after.loss < trained.evaluation.before.loss


def test_its_evaluation_is_that_of_x86_64(answers):
    """Loss and accuracy on the hold-out, before and after training, agree to 1e-4."""
    here, there = (said[-1].evaluation for said in answers)

    for mine, theirs in ((here.before, there.before), (here.after, there.after)):
        assert theirs.n == mine.n > 0
        assert theirs.loss == pytest.approx(mine.loss, abs=1e-4)
        assert theirs.accuracy == mine.accuracy


def test_its_change_of_the_model_is_that_of_x86_64(answers, compiled):
    """What it learned, before compression, is what x86_64 learned, parameter by parameter."""
    here, there = (np.frombuffer(said[-1].residual_kept, "<f2").astype(np.float32) for said in answers)

    assert there.size == compiled.manifest.parameters
    assert np.abs(there).max() > 100 * U_TOLERANCE
    assert np.abs(there - here).max() <= U_TOLERANCE


def test_its_frame_decodes_to_nearly_the_same_update(answers, compiled):
    """Its frame names the same base and sample count, and holds the same values at the same places but for ties."""
    here, there = (sparse.decode(said[-1].frame, compiled.manifest.sizes) for said in answers)

    assert (there.base_version, there.base_hash, there.tag) == (here.base_version, here.base_hash, here.tag)
    assert there.n_samples == here.n_samples
    assert [t.scale for t in there.weights.tensors] == pytest.approx(
        [t.scale for t in here.weights.tensors], abs=U_TOLERANCE
    )
    places = [
        {
            (i, int(j), bool(s))
            for i, t in enumerate(u.weights.tensors)
            for j, s in zip(t.indices, t.negative, strict=True)
        }
        for u in (here, there)
    ]
    assert len(places[0] & places[1]) >= SHARED_MIN * len(places[0]) > 0
