"""TrainingSession: state handling around the compiled graphs, which firmware_tools' tests check."""

import subprocess
import sys
import zipfile

import numpy as np
import pytest

from edge_client.bundle import INFER, TRAIN, BundleError
from edge_client.training import EVAL_BATCH, DivergedError, TrainingSession
from firmware_tools import compile_training
from firmware_tools.bundle import describe, pack
from firmware_tools.layers import Net
from firmware_tools.zoo import cnn1d


@pytest.fixture(scope="module")
def compiled():
    return compile_training(cnn1d(2, 16, 3, widths=(4, 4, 4)))


@pytest.fixture
def session(compiled, tmp_path):
    return TrainingSession(compiled.save(tmp_path / "n.bundle"))


def data(n):
    rng = np.random.default_rng(0)
    return rng.standard_normal((n, 2, 16)).astype(np.float32), rng.integers(0, 3, n)


def repacked(compiled, tmp_path, train):
    """The bundle with another train.onnx and the right digests."""
    members = {**compiled.members, TRAIN: train}
    manifest = type(compiled.manifest)(
        **{f: getattr(compiled.manifest, f) for f in compiled.manifest.__struct_fields__ if f != "files"},
        files=describe(members),
    )
    path = tmp_path / "n.bundle"
    path.write_bytes(pack(manifest, members))
    return path


def test_load_restores_parameters_exactly(session):
    """Parameters taken out and put back give the same losses again."""
    x, y = data(8)
    saved = session.params
    first = [session.step(x, y, 0.1) for _ in range(3)]
    session.load(saved)
    session.reset_optimizer()

    assert [session.step(x, y, 0.1) for _ in range(3)] == first


def test_params_are_copies(session):
    """Writing to what `params` returns changes nothing inside."""
    session.params["conv1.weight"][:] = 9

    assert not (session.params["conv1.weight"] == 9).any()


def test_loaded_arrays_are_not_changed_by_training(session):
    """The caller's arrays stay as they were: the update is measured against them."""
    mine = session.params
    before = {k: v.copy() for k, v in mine.items()}
    session.load(mine)
    session.step(*data(8), 0.5)

    assert all((mine[k] == before[k]).all() for k in mine)


def test_batches_may_differ_in_size(session):
    """A smaller batch trains like any other: the next full one finds what it left."""
    x, y = data(8)
    losses = [session.step(x[:n], y[:n], 0.01) for n in (8, 3, 8, 1, 8)]

    assert losses[4] < losses[2] < losses[0]


def test_a_refused_step_changes_nothing(compiled, tmp_path):
    """A batch that does not fit raises, and training goes on as if it had never been given."""
    x, y = data(8)
    path = compiled.save(tmp_path / "n.bundle")
    plain, disturbed = TrainingSession(path), TrainingSession(path)
    plain.step(x, y, 0.1)
    disturbed.step(x, y, 0.1)
    with pytest.raises(ValueError, match="reshape x"):
        disturbed.step(x[:, :1], y, 0.1)

    assert [plain.step(x, y, 0.1) for _ in range(3)] == [disturbed.step(x, y, 0.1) for _ in range(3)]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_step_without_a_finite_loss_is_refused(compiled, tmp_path, value):
    """Parameters and optimiser stay those before it, and training goes on as if it had never been taken."""
    x, y = data(8)
    path = compiled.save(tmp_path / "n.bundle")
    plain, disturbed = TrainingSession(path), TrainingSession(path)
    plain.step(x, y, 0.1)
    disturbed.step(x, y, 0.1)
    bad = x.copy()
    bad[3, 1, 2] = value
    with pytest.raises(DivergedError, match="not finite"):
        disturbed.step(bad, y, 0.1)

    assert all(np.array_equal(v, disturbed.params[n]) for n, v in plain.params.items())
    assert [plain.step(x, y, 0.1) for _ in range(3)] == [disturbed.step(x, y, 0.1) for _ in range(3)]


LABELLED = {
    "cross_entropy": lambda n: np.zeros(n, np.int64),
    "bce_with_logits": lambda n: np.zeros((n, 3), np.uint8),
    "mse": lambda n: np.zeros((n, 3), np.float32),
    "reconstruction": lambda _: None,
}


@pytest.mark.parametrize(
    ("loss", "y", "reason"),
    [
        ("cross_entropy", np.array([0, 1, 2, 3]), "not from 0 to 2: number labels from 0 on"),
        ("cross_entropy", np.array([0, 1, -1, 0]), "not from 0 to 2"),
        ("cross_entropy", np.zeros(4, np.int32), r"y is int32 \[4\], not int64 \[n\] of 0 to 2: .*astype\(np.int64\)"),
        ("cross_entropy", np.zeros((4, 1), np.int64), r"y is int64 \[4, 1\], not int64 \[n\]"),
        ("cross_entropy", np.zeros(3, np.int64), "x has 4 samples, but y has 3"),
        ("cross_entropy", None, r"y is missing: pass int64 \[n\] of 0 to 2"),
        ("bce_with_logits", np.full((4, 3), 2, np.uint8), "not from 0 to 1"),
        ("bce_with_logits", np.zeros((4, 2), np.uint8), r"not uint8 \[n, 3\] of 0 to 1: reshape y"),
        ("bce_with_logits", np.zeros(4, np.int64), "y is int64"),
        ("mse", np.zeros((4, 3)), r"y is float64 \[4, 3\], not float32 \[n, 3\]: convert"),
        ("mse", np.zeros(4, np.float32), r"y is float32 \[4\], not float32 \[n, 3\]"),
        ("reconstruction", np.zeros(4, np.int64), "trained on x alone: pass None"),
    ],
)  # fmt: skip
def test_targets_that_do_not_fit_are_refused_with_what_to_do(tmp_path, loss, y, reason):
    """I8: wrong dtype, shape, number or range of y is a ValueError for steps and evaluation, without a value of it."""
    net = Net("dense", (3,), seed=0)
    net.dense("x", "dense", (3, 3), output="logits")
    session = TrainingSession(compile_training(net.model((3,)), loss=loss).save(tmp_path / "n.bundle"))
    x = np.zeros((4, 3), np.float32)
    with pytest.raises(ValueError, match=reason):
        session.step(x, y, 0.1)
    with pytest.raises(ValueError, match=reason):
        session.evaluate(x, y)
    with pytest.raises(
        ValueError, match=r"x is float64 \[4, 3\], not float32 \[n, 3\]: convert it with x.astype"
    ):
        session.step(x.astype(float), LABELLED[loss](4), 0.1)

    assert session.step(x, LABELLED[loss](4), 0.1) >= 0


def test_evaluation_is_the_mean_over_uneven_batches(session):
    """Loss and accuracy do not depend on how the data falls into batches."""
    x, y = data(EVAL_BATCH + 5)
    whole = session.evaluate(x, y)
    one_by_one = [session.evaluate(x[i : i + 1], y[i : i + 1]) for i in range(len(x))]

    assert whole.n == len(x)
    assert whole.loss == pytest.approx(np.mean([m.loss for m in one_by_one]), rel=1e-5)
    assert whole.accuracy == pytest.approx(np.mean([m.accuracy for m in one_by_one]))


def test_empty_evaluation_is_zero(session):
    """No hold-out gives n = 0 instead of a division by zero."""
    assert session.evaluate(*data(0)).n == 0


def test_wrong_shape_is_refused(session):
    """Loading a tensor of another shape names it."""
    with pytest.raises(ValueError, match=r"dense\.bias"):
        session.load(session.params | {"dense.bias": np.zeros(4, np.float32)})


def test_other_arithmetic_keeps_its_denormals(session):
    """A session in a shared process leaves the floating-point mode of its thread alone."""
    session.step(*data(4), 0.1)

    assert np.float64(1e-310) * np.float64(1.0) > 0


def test_memory_is_that_of_this_process_alone(compiled, tmp_path):
    """The peak counts what the session's process held, in bytes, and nothing of the larger one that started it."""
    bundle = compiled.save(tmp_path / "n.bundle")
    held_bytes = 300_000_000
    child = f"from edge_client.training import TrainingSession as S; print(S({str(bundle)!r}).memory_bytes)"
    parent = (
        f"import subprocess, sys; _ = b'x' * {held_bytes}; subprocess.run([sys.executable, '-c', {child!r}])"
    )
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, check=True)

    assert 10_000_000 < int(done.stdout) < held_bytes


def test_a_damaged_member_is_refused(compiled, tmp_path):
    """A graph whose bytes changed does not have its digest and is not run."""
    path = compiled.save(tmp_path / "n.bundle")
    raw = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        raw[archive.getinfo(TRAIN).header_offset + 200] ^= 1
    path.write_bytes(raw)

    with pytest.raises(BundleError, match=r"train\.onnx"):
        TrainingSession(path)


def test_a_graph_that_is_no_graph_is_refused(compiled, tmp_path):
    """A bundle whose graph ONNX Runtime cannot load is a BundleError, not a runtime's own."""
    path = repacked(compiled, tmp_path, b"\x00garbage")

    with pytest.raises(BundleError, match="does not load"):
        TrainingSession(path)


def test_a_graph_of_another_bundle_is_refused(compiled, tmp_path):
    """A graph that lacks what the manifest promises is named as such before any step."""
    path = repacked(compiled, tmp_path, compiled.members[INFER])

    with pytest.raises(BundleError, match=r"train\.onnx is not of this manifest"):
        TrainingSession(path)
