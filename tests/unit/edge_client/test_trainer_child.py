"""The trainer child: tasks in, answers out, in process and as a process."""

import errno
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge_client import trainer_child
from edge_client.bundle import PARAMS, BundleError, open_bundle
from edge_client.trainer_child import GRID_FILE, Child
from edge_client.trainer_protocol import (
    DataSource,
    Described,
    DescribeTask,
    Failed,
    Progress,
    Trained,
    TrainTask,
    receive_answer,
    send,
)
from edge_client.wire import grid, messages, sparse
from edge_client.wire.messages import TrainingPlan
from edge_client.wire.topics import Uid
from firmware_tools import compile_training
from firmware_tools.layers import Net
from firmware_tools.zoo import cnn1d

UID = "pi:j:0123456789abcdef:4"


@pytest.fixture(scope="module")
def compiled():
    return compile_training(cnn1d(2, 16, 3, widths=(4, 4, 4)), axes=("channel", "time"))


@pytest.fixture
def task(compiled, tmp_path):
    """A task from version 0, its data learnable."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 120)
    x = (rng.standard_normal((120, 2, 16)) * 0.3 + (y - 1)[:, None, None]).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x, y=y)
    (tmp_path / "v0").write_bytes(compiled.members[PARAMS])
    (tmp_path / "ws").mkdir()
    frame = grid.decode(compiled.members[PARAMS], compiled.manifest.sizes)
    return TrainTask(
        job="j",
        workspace=str(tmp_path / "ws"),
        bundle_path=str(compiled.save(tmp_path / "n.bundle")),
        model_paths=(str(tmp_path / "v0"),),
        version=0,
        version_hash=frame.model_hash.hex(),
        source=DataSource(str(tmp_path / "d.npz")),
        data=compiled.manifest.data,
        plan=TrainingPlan(steps=30, batch_size=16, learning_rate=0.05, density=0.1, norm_max=10.0),
        uid=UID,
    )


@pytest.fixture
def child():
    said = []
    worker = Child(said.append)
    worker.said = said
    return worker


def changed(task, **fields):
    return msgspec.structs.replace(task, **fields)


def test_training_gives_a_decodable_update_of_a_better_model(child, task, compiled):
    """The update names its base, has the planned density, and the hold-out improves."""
    answer = child.perform(task)
    update = sparse.decode(answer.frame, compiled.manifest.sizes)

    assert isinstance(answer, Trained)
    assert (update.base_version, update.base_hash.hex(), update.tag) == (
        0,
        task.version_hash,
        Uid.parse(UID).tag,
    )
    assert update.n_samples == 95
    assert sum(len(t.indices) for t in update.weights.tensors) <= round(0.1 * compiled.manifest.parameters)
    assert 0 < update.norm() <= task.plan.norm_max
    assert answer.evaluation.after.loss < answer.evaluation.before.loss
    assert answer.evaluation.before.n == 24
    assert answer.evaluation.memory_bytes > 0
    assert len(answer.residual_kept) == len(answer.residual_accepted) == 2 * compiled.manifest.parameters


def test_progress_ends_with_the_last_step(child, task):
    """Whatever the pace, the last report is of the last step."""
    child.perform(task)

    assert isinstance(child.said[-1], Progress)
    assert (child.said[-1].step, child.said[-1].steps) == (30, 30)


def test_the_same_task_gives_the_same_update(child, task):
    """Training is a function of model, data, plan and sequence number; another number deals other batches."""
    first, again = child.perform(task), child.perform(task)
    other = child.perform(changed(task, uid="pi:j:0123456789abcdef:5"))

    assert first.frame == again.frame
    assert first.residual_kept == again.residual_kept
    assert other.residual_kept != first.residual_kept


def test_the_residual_joins_the_update(child, task, compiled):
    """A residual handed in is part of u."""
    extra = np.zeros(compiled.manifest.parameters, "<f2")
    extra[3] = 5.0
    plain, fed = child.perform(task), child.perform(changed(task, residual=extra.tobytes()))
    gain = np.frombuffer(fed.residual_kept, "<f2")[3] - np.frombuffer(plain.residual_kept, "<f2")[3]

    assert float(gain) == pytest.approx(5.0, rel=0.01)


def test_deltas_build_on_the_workspace(child, task, compiled, tmp_path):
    """The workspace keeps the model, so the next version needs only a delta; without blobs it is current."""
    child.perform(task)
    old = grid.decode(compiled.members[PARAMS], compiled.manifest.sizes).values
    new = tuple(v + 1 for v in old)
    (tmp_path / "v1").write_bytes(grid.encode_delta(1, 0, new, old))
    wanted = {"version": 1, "version_hash": grid.model_hash(new).hex()}
    by_delta = child.perform(changed(task, model_paths=(str(tmp_path / "v1"),), **wanted))
    current = child.perform(changed(task, model_paths=(), **wanted))

    assert isinstance(by_delta, Trained)
    assert by_delta.frame == current.frame
    assert grid.decode((tmp_path / "ws" / GRID_FILE).read_bytes(), compiled.manifest.sizes).version == 1


def test_a_merged_delta_starts_from_the_model_of_the_bundle(child, task, compiled, tmp_path):
    """A device that has nothing but the bundle holds version 0: one delta over two versions leads to the newest."""
    sizes = compiled.manifest.sizes
    models = [grid.decode(compiled.members[PARAMS], sizes).values]
    models += [tuple(v + n for v in models[0]) for n in (4, 12)]
    steps = [grid.decode(grid.encode_delta(v + 1, v, models[v + 1], models[v]), sizes) for v in (0, 1)]
    (tmp_path / "merged").write_bytes(grid.merge(steps))
    (tmp_path / "key").write_bytes(grid.encode_keyframe(2, models[2]))
    wanted = {"version": 2, "version_hash": grid.model_hash(models[2]).hex()}

    merged = child.perform(changed(task, model_paths=(str(tmp_path / "merged"),), **wanted))
    whole = child.perform(changed(task, model_paths=(str(tmp_path / "key"),), **wanted))

    assert isinstance(merged, Trained)
    assert merged.frame == whole.frame


def test_a_damaged_workspace_needs_a_keyframe(child, task, tmp_path):
    """A torn model file counts as absent: a key-frame heals it."""
    (tmp_path / "ws" / GRID_FILE).write_bytes(b"torn")

    assert isinstance(child.perform(task), Trained)


@pytest.mark.parametrize(
    "fields",
    [{"version_hash": "00" * 8}, {"version": 7}, {"model_paths": ("absent",)}, {"model_paths": (__file__,)}],
)
def test_a_model_that_is_not_the_published_one_is_resync(child, task, tmp_path, fields):
    """Wrong hash, wrong version, missing or foreign blobs are `resync`, and nothing is stored."""
    answer = child.perform(changed(task, **fields))

    assert isinstance(answer, Failed)
    assert answer.code == "resync"
    assert not (tmp_path / "ws" / GRID_FILE).exists()


def test_a_full_disk_fails_the_training_as_storage(child, task, tmp_path, monkeypatch):
    """What cannot be kept is said with the reason, leaves nothing half written, and works once there is room."""

    def full(_handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "ws").mkdir(exist_ok=True)
    with monkeypatch.context() as patch:
        patch.setattr("edge_client.storage.os.fsync", full)
        answer = child.perform(task)
    assert (answer.code, answer.message) == ("storage", "the model cannot be kept: No space left on device")
    assert list((tmp_path / "ws").iterdir()) == []
    assert isinstance(child.perform(task), Trained)


def test_failures_have_their_codes(child, task, tmp_path):
    """Each kind of failure has its code and no path of this device, and the child goes on to train."""
    np.savez(tmp_path / "short.npz", x=np.ones((9, 2, 8), np.float32), y=np.zeros(9, np.int64))
    short = DataSource(str(tmp_path / "short.npz"))
    diverging = msgspec.structs.replace(task.plan, learning_rate=1e30)
    cases = {
        "bad_bundle": changed(task, bundle_path=str(tmp_path / "d.npz")),
        "bad_data": changed(task, source=DataSource(str(tmp_path / "absent.npz"))),
        "schema_mismatch": changed(task, source=short),
        "diverged": changed(task, plan=diverging),
    }
    failed = {code: child.perform(failing) for code, failing in cases.items()}

    assert {code: answer.code for code, answer in failed.items()} == {code: code for code in cases}
    assert [answer.message for answer in failed.values() if str(tmp_path) in answer.message] == []
    assert "axis 1 (time) is 8 in the data, 16 in the job" in child.perform(cases["schema_mismatch"]).message
    assert isinstance(child.perform(task), Trained)


@pytest.mark.parametrize(
    "failure",
    [
        (MemoryError(), "out_of_memory"),
        (RuntimeError("std::bad_alloc"), "out_of_memory"),
        (BundleError("train.onnx does not load: std::bad_alloc"), "out_of_memory"),
        (RuntimeError("sample 0.123"), "internal"),
    ],
)
def test_foreign_errors_never_quote_data(child, task, monkeypatch, capsys, failure):
    """I8: running out of memory has its code; any other exception is named by type only, also on stderr."""
    error, code = failure

    def fail(_source):
        raise error

    monkeypatch.setattr(trainer_child.samples, "load", fail)
    answer = child.perform(task)

    assert answer.code == code
    assert "0.123" not in answer.message + capsys.readouterr().err


def test_bundle_and_data_are_opened_once(child, task, monkeypatch):
    """Unchanged files are not read again; a changed one is."""
    child.perform(task)
    monkeypatch.setattr(trainer_child.TrainingSession, "__init__", None)
    reads = []
    real = trainer_child.samples.load
    monkeypatch.setattr(trainer_child.samples, "load", lambda source: reads.append(source) or real(source))
    child.perform(task)
    os.utime(task.source.path, ns=(1, 1))
    answer = child.perform(task)

    assert isinstance(answer, Trained)
    assert len(reads) == 1


def test_the_process_speaks_only_the_protocol(task, compiled):
    """As a process it answers in order and ends with code 0 when its stdin closes."""
    command = [sys.executable, "-m", "edge_client.trainer_child"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        send(process.stdin, DescribeTask(task.source))
        send(process.stdin, task)
        described = receive_answer(process.stdout)
        answer = receive_answer(process.stdout)
        while isinstance(answer, Progress):
            answer = receive_answer(process.stdout)
        process.stdin.close()
        rest = process.stdout.read()

    assert described == Described(msgspec.structs.replace(compiled.manifest.data, axes=()), 120)
    assert isinstance(answer, Trained)
    assert rest == b""
    assert process.returncode == 0


def test_what_prints_goes_to_stderr():
    """Anything written to stdout inside the child lands on stderr, so it cannot break a message."""
    script = (
        "import edge_client.trainer_child as c\n"
        "c.serve = lambda stdin, stdout: print('stray')\n"
        "c.main()\n"
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, stdin=subprocess.DEVNULL, check=True
    )

    assert done.stdout == b""
    assert b"stray" in done.stderr


def test_a_child_that_really_runs_out_of_memory_says_so_or_dies(task):
    """A limit that lets the child start but not train gives `out_of_memory` or a death, never a blamed bundle."""
    hungry = changed(task, plan=msgspec.structs.replace(task.plan, batch_size=96))
    with subprocess.Popen(
        [sys.executable, "-m", "edge_client.trainer_child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as child:
        send(child.stdin, DescribeTask(task.source))
        assert isinstance(receive_answer(child.stdout), Described)
        status = Path(f"/proc/{child.pid}/status").read_text()
        used = int(status.split("VmData:")[1].split()[0]) * 1024
        resource.prlimit(child.pid, resource.RLIMIT_DATA, (used + 65536, used + 65536))
        send(child.stdin, hungry)
        answer = receive_answer(child.stdout)
        child.kill()

    assert answer is None or (isinstance(answer, Failed) and answer.code == "out_of_memory")


def test_statistics_travel_with_the_update_and_without_a_residual(child, task, tmp_path):
    """I8: what training observed of activations goes with the update as aggregates, beside the sparse weights."""
    model = cnn1d(channels=2, length=16, classes=3, widths=(4, 6))
    observing = compile_training(model, quantize="int8", learning_rate=0.05)
    observing.save(tmp_path / "observing.bundle")
    base = grid.decode(observing.members[PARAMS], observing.manifest.sizes)
    observed = changed(
        task,
        bundle_path=str(tmp_path / "observing.bundle"),
        workspace=str(tmp_path / "other"),
        version_hash=base.model_hash.hex(),
        model_paths=(),
    )
    (tmp_path / "other").mkdir()
    answer = child.perform(observed)
    count = len(observing.manifest.statistics)
    update = sparse.decode(answer.frame, observing.manifest.sizes, count)

    assert count == 3
    lows, highs = update.statistics[::2], update.statistics[1::2]
    assert (lows <= 0).all()
    assert (highs > 0.1).all()
    assert len(answer.residual_accepted) == 2 * observing.manifest.parameters


KINDS = {
    "bce_with_logits": ("labels", lambda x: (x[:, :3] > 0).astype(np.uint8)),
    "mse": ("values", lambda x: x[:, :3] * 2),
    "reconstruction": ("class", lambda x: (x[:, 0] > 0).astype(np.int64)),
}


@pytest.fixture(params=KINDS)
def other(request, task, tmp_path):
    """A task of another loss over samples [6]; the reconstruction's samples have labels that nobody needs."""
    target, label = KINDS[request.param]
    outputs = 6 if request.param == "reconstruction" else 3
    net = Net("dense", (6,), seed=0)
    net.dense("x", "dense", (outputs, 6), output="logits")
    made = compile_training(net.model((outputs,)), loss=request.param)
    x = np.random.default_rng(0).standard_normal((120, 6)).astype(np.float32)
    np.savez(tmp_path / "other.npz", x=x, y=label(x))
    (tmp_path / "other").mkdir()
    frame = grid.decode(made.members[PARAMS], made.manifest.sizes)
    return changed(
        task,
        workspace=str(tmp_path / "other"),
        bundle_path=str(made.save(tmp_path / "other.bundle")),
        model_paths=(),
        version_hash=frame.model_hash.hex(),
        source=DataSource(str(tmp_path / "other.npz"), target=target),
        data=made.manifest.data,
    )


def test_each_loss_trains_and_reports_its_figure(child, other):
    """Labels, values and samples alone train in the child; evaluation has the one figure that the loss calls for."""
    answer = child.perform(other)
    before, after = answer.evaluation.before, answer.evaluation.after
    given = [name for name in ("accuracy", "error", "threshold") if getattr(after, name) is not None]

    assert after.loss < before.loss
    assert given == [open_bundle(Path(other.bundle_path)).manifest.measure]


def test_divergence_is_reported_and_leaves_nothing_behind(child, task):
    """A step without a finite loss ends the task as `diverged`, saying which; the next task is as good as ever."""
    expected = child.perform(task)
    wild = msgspec.structs.replace(task.plan, learning_rate=1e20)
    failed = child.perform(changed(task, plan=wild))

    assert isinstance(failed, Failed)
    assert failed.code == "diverged"
    assert re.search(
        r"diverged: step \d+ of 30: the loss is not finite; a smaller learning rate", failed.message
    )
    assert child.perform(task).frame == expected.frame


@pytest.mark.parametrize("codec", messages.CODECS)
def test_updates_travel_in_the_codec_of_the_plan(child, task, compiled, codec):
    """Whatever the plan's codec, the frame decodes, has its codec byte, and the residual is what it left out."""
    answer = child.perform(changed(task, plan=changed(task.plan, codec=codec)))
    update = sparse.decode(answer.frame, compiled.manifest.sizes)

    assert sparse.split(answer.frame[3])[0] == sparse.CODECS[codec]
    assert 0 < update.norm() <= task.plan.norm_max
    accepted, kept = (np.frombuffer(r, "<f2") for r in (answer.residual_accepted, answer.residual_kept))
    assert np.abs(accepted.astype(float)).sum() < np.abs(kept.astype(float)).sum()


def test_a_codec_the_device_does_not_speak_fails_by_name(child, task):
    """A plan with an unknown codec is no reason to train for nothing."""
    answer = child.perform(changed(task, plan=changed(task.plan, codec="zip")))

    assert (answer.code, "zip" in answer.message) == ("unknown_codec", True)
