"""Whole runs: the same bytes again, exactly once whatever happens, hostile devices, resumption."""

import json
from collections import Counter, defaultdict

import numpy as np
import pytest

from aggregator.hidden import FINE_BITS
from aggregator.simulate import behaviour, models, results, sources, workers
from aggregator.simulate.errors import SimulationError
from aggregator.simulate.residuals import Residuals
from aggregator.simulate.server import Server
from aggregator.simulate.simulation import Simulation, state_directory
from aggregator.simulate.work import Bench, Training
from edge_client.bundle import PARAMS
from edge_client.participation import Participation
from edge_client.trainer_child import Child
from edge_client.trainer_protocol import DataSource, Trained, TrainTask
from edge_client.wire import grid, sparse
from edge_client.wire.messages import TrainingPlan
from edge_client.wire.topics import Uid

FAULTS = {"loss": 0.15, "duplicate": 0.3, "reorder": 0.3, "crash": 0.2, "retry_s": 2.0, "crash_s": 5.0}


@pytest.fixture
def run(parsed, tmp_path):
    """Run a table into a directory and return the results."""

    def perform(table, out="out", workers=1, fresh=False):
        said = []
        with state_directory(tmp_path / "state") as state:
            simulation = Simulation(parsed(table), state)
            perform.said = said
            done = simulation.run(tmp_path / out, workers, lambda *words: said.append(words), fresh=fresh)
        assert list((tmp_path / "state").iterdir()) == []
        return done

    return perform


def files(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_the_same_seed_gives_the_same_bytes_on_any_number_of_workers(run, table, tmp_path):
    """Result files of a fleet with every kind of trouble are equal to the byte, with one worker and with three."""
    table["fleet"]["faults"] = FAULTS
    table["fleet"]["availability"] = {"kind": "churn", "on_s": 20.0, "off_s": 10.0}
    table["fleet"]["link"] = {"kind": "fixed", "up_bytes_s": 500, "down_bytes_s": 2000, "latency_s": 0.1}
    table["strategy"] = [{"name": "ternary"}, {"name": "dense", "training": {"codec": "dense-fp32"}}]
    table["seeds"] = [0, 3]
    run(table, "one", workers=1)
    run(table, "three", workers=3)
    one = files(tmp_path / "one")

    assert len(one) == 4
    assert one == files(tmp_path / "three")
    assert len(set(one.values())) == 4


def test_training_learns_and_every_figure_is_there(run, table):
    """Accuracy rises from the first to the last point, and points come every so many uploads."""
    (done,) = run(table)
    first, last = done.points[0], done.points[-1]

    assert [p["uploads"] for p in done.points] == [0, 6, 12, 18, 24]
    assert last["accuracy"] > max(0.8, first["accuracy"])
    assert last["version"] == 12
    assert sum(last["staleness"].values()) == 24
    assert 0 < last["bytes_up_payload"] < last["bytes_up"]
    assert last["bytes_down_per_version"] > 0
    assert done.summary["end"] == "24 uploads"
    assert done.reached(2.0) is None
    assert done.reached(0.0) == first


class Ledger:
    """What the test itself saw: updates that training produced, and what was folded of them."""

    def __init__(self, monkeypatch):
        self.produced, self.folded, self.verdicts = {}, Counter(), defaultdict(set)
        self.first = None  # version 0 of the model
        collect, update = behaviour.result, Server.update

        def collected(future):
            answer = collect(future)
            if isinstance(answer, Trained):
                self.produced[answer.frame] = answer
            return answer

        def judged(server, uid, frame, wire_bytes, now):
            if self.first is None:
                self.first = server.job.state.model
            before = server.job.learner.contributions.total()
            receipt = update(server, uid, frame, wire_bytes, now)
            self.folded[frame] += server.job.learner.contributions.total() - before
            self.server = server
            self.verdicts[str(uid)].add((receipt.verdict, receipt.code))
            return receipt

        monkeypatch.setattr(behaviour, "result", collected)
        monkeypatch.setattr(Server, "update", judged)


def test_every_update_counts_once_whatever_happens_to_messages(run, table, monkeypatch):
    """I1: lost, doubled, late messages and crashes: each update that was trained is folded once, rejected, or open."""
    table["fleet"] |= {"faults": FAULTS, "jitter": 2.0}
    table["job"] |= {"staleness_max": 1}
    table["stop"] = {"uploads": 150}
    ledger = Ledger(monkeypatch)
    (done,) = run(table)
    summary, server = done.summary, ledger.server

    assert min(summary[name] for name in ("lost", "doubled", "late", "crashes", "duplicates")) > 5
    assert set(ledger.folded.values()) <= {0, 1}
    assert ledger.folded.total() == summary["accepted"] == 150
    assert summary["rejected"].keys() == {"stale"}
    unseen = len(ledger.produced) - len(ledger.folded)
    assert 0 <= unseen <= summary["open"]
    assert len(ledger.produced) == summary["produced"]
    assert 150 + summary["rejected"]["stale"] + unseen == summary["produced"]
    assert all(len(verdicts) == 1 for verdicts in ledger.verdicts.values()), "a duplicate got another verdict"
    committed = Counter(name for record in server.job.history.records for name in record.devices)
    assert committed == server.job.learner.contributions
    assert server.job.buffered == 0


def test_the_model_is_the_sum_of_what_counted(run, table, monkeypatch):
    """I1: with every weight 1, the final model is version 0 plus each accepted update once, by the test's own sum."""
    table["fleet"] |= {"faults": FAULTS, "jitter": 2.0}
    table["job"] |= {"staleness_exponent": 0.0, "robust": {"clip_factor": None, "device_share_max": None}}
    table["job"]["max_wait_s"] = 600_000.0
    table["stop"] = {"uploads": 60}
    ledger = Ledger(monkeypatch)
    run(table)
    job = ledger.server.job
    steps = [tensor.step_exp for tensor in job.bundle.table]
    final = [np.ldexp(x.astype(float), s - FINE_BITS) for x, s in zip(job.state.exact(), steps, strict=True)]
    expected = [np.ldexp(x.astype(float), s) for x, s in zip(ledger.first, steps, strict=True)]
    for frame, count in ledger.folded.items():
        sent = sparse.decode(frame, job.bundle.sizes).weights.tensors
        for tensor, values in zip(expected, sent, strict=True):
            np.add(tensor, count * values.dense(len(tensor)) / job.spec.buffer_size, out=tensor)

    assert ledger.folded.total() == 60
    for ours, theirs in zip(final, expected, strict=True):
        assert np.abs(ours).max() > 0.01
        assert ours == pytest.approx(theirs, abs=1e-5)


def test_a_worker_trains_as_the_trainer_child_does(table, parsed, tmp_path):
    """The same device, model, plan and name give the same frame and residuals, byte for byte."""
    config = parsed(table)
    data = sources.load(config.data)
    bundle = models.build(config.model, data, 0, tmp_path / "b.bundle")
    workers.share(data, tmp_path)
    np.savez(tmp_path / "device.npz", x=data.x[:50], y=data.y[:50])
    keyframe = bundle.member(PARAMS)
    base = grid.decode(keyframe, bundle.manifest.sizes).values
    (tmp_path / "key").write_bytes(keyframe)
    plan = TrainingPlan(steps=6, batch_size=8, learning_rate=0.1, density=0.3, norm_max=10.0, seed=3)
    residual = np.linspace(-1, 1, bundle.manifest.parameters).astype("<f2").tobytes()
    uid, digest = Uid("pi", "job", "0" * 16, 5), grid.model_hash(base)
    source = DataSource(str(tmp_path / "device.npz"), 0.2, 0)
    child = Child(lambda _: None).perform(
        TrainTask("job", str(tmp_path), str(bundle.path), (str(tmp_path / "key"),), 0, digest.hex(), source,
                  bundle.manifest.data, plan, str(uid), residual)
    )  # fmt: skip
    rows = np.arange(50)
    task = Participation(uid, 0, digest, base, plan, residual)
    worker = Bench(tmp_path).train(Training(str(bundle.path), task, rows[:40], rows[40:], 1.5))

    assert child.frame == worker.frame
    assert (child.residual_accepted, child.residual_kept) == (worker.residual_accepted, worker.residual_kept)
    assert child.evaluation.after == worker.evaluation.after
    assert worker.evaluation.train_s == 1.5


def test_a_device_keeps_what_its_verdict_says(run, table, monkeypatch):
    """I4: what a device trains on next is the residual that its last verdict picked."""
    table["fleet"] |= {"faults": FAULTS, "jitter": 2.0}
    table["job"] |= {"staleness_max": 1}
    table["stop"] = {"uploads": 60}
    ledger = Ledger(monkeypatch)
    kept, checked = {}, Counter()
    put, train = Residuals.put, behaviour.Behaviour._train
    tags = {}

    def putting(residuals, device, residual):
        put(residuals, device, residual)
        kept[device] = residual

    def training(self, device, assignment, base):
        assert self._site.residuals.get(device) == kept.get(device)
        checked[device in kept] += 1
        train(self, device, assignment, base)

    monkeypatch.setattr(Residuals, "put", putting)
    monkeypatch.setattr(behaviour.Behaviour, "_train", training)
    run(table)
    for answer in ledger.produced.values():
        tags[answer.residual_accepted] = ledger.folded[answer.frame] == 1
        tags[answer.residual_kept] = ledger.folded[answer.frame] == 0

    assert checked[True] > 40
    assert all(tags[residual] for residual in kept.values())


@pytest.mark.parametrize(
    ("kind", "accepted"), [("nan", False), ("sign-flip", True), ("scale", True), ("label-flip", True)]
)
def test_hostile_devices_do_harm_or_are_refused(run, table, kind, accepted):
    """I11: what is not a number never reaches the model; other attacks do, and the model is worse for it."""
    table["evaluate"] = {"every": 12}
    (honest,) = run(table)
    table["fleet"]["malicious"] = {"share": 0.5, "kind": kind, "factor": 20.0 if kind == "scale" else 3.0}
    (attacked,) = run(table)

    if accepted:
        assert attacked.summary["rejected"] == {}
        assert attacked.summary["loss"] > 2 * honest.summary["loss"]
    else:
        assert attacked.summary["rejected"].keys() == {"not_finite"}
        assert attacked.summary["accuracy"] > 0.7


def test_a_finished_run_is_not_run_again(run, table, tmp_path):
    """The same file serves the next call; a file that was cut short is made anew, to the same bytes."""
    run(table)
    before = files(tmp_path / "out")
    run(table)
    assert run.said == [("job", 0, None)]
    (name,) = before
    (tmp_path / "out" / name).write_bytes(before[name][: len(before[name]) // 2])
    run(table)
    assert len(run.said) > 5
    assert files(tmp_path / "out") == before
    run(table, fresh=True)
    assert len(run.said) > 5


def test_a_changed_configuration_is_another_file(run, table, tmp_path):
    """Results of other settings stay; targets are looked for in results and change no run."""
    run(table)
    table["evaluate"]["targets"] = [0.5]
    run(table)
    assert len(files(tmp_path / "out")) == 1
    table["job"]["server_lr"] = 0.5
    run(table)
    assert len(files(tmp_path / "out")) == 2


def test_a_file_of_other_origin_is_refused(table, parsed, tmp_path):
    """A result file that cannot be read is named, with what to do."""
    with state_directory(None) as state:
        simulation = Simulation(parsed(table), state)
        head = simulation._plan[0][2]
        file = results.path(tmp_path, head)
        file.write_text("what\n")
        with pytest.raises(SimulationError, match=r"not a result file.*--fresh"):
            simulation.run(tmp_path, 1, lambda *_: None)


def test_a_run_ends_at_whichever_stop_comes_first(run, table):
    """Versions, virtual time, accuracy, and the job's own end."""
    ends = {}
    for stop in ({"versions": 2}, {"seconds": 1.5}, {"uploads": 90, "target_accuracy": 0.5}):
        table["stop"] = stop
        ends[next(iter(stop))] = run(table)[0].summary
    table["stop"] = {"uploads": 90}
    table["job"]["end"] = {"versions_max": 3}
    ends["job"] = run(table)[0].summary

    assert ends["versions"]["version"] == 2
    assert 1.5 <= ends["seconds"]["time"] < 2
    assert ends["uploads"]["accuracy"] >= 0.5
    assert ends["uploads"]["uploads"] < 90
    assert ends["job"]["end"] == "reached 3 versions"


def test_slow_links_take_their_time(run, table):
    """A dense update of 67 values takes its bytes' time up, a pull its time down."""
    table["job"]["training"]["codec"] = "dense-fp32"
    (fast,) = run(table)
    table["fleet"]["link"] = {"kind": "fixed", "up_bytes_s": 100, "down_bytes_s": 1000, "latency_s": 1.0}
    (slow,) = run(table)

    assert slow.summary["time"] > fast.summary["time"] + 24 / 4 * (4 * 67 / 100)


def test_devices_behind_a_thin_link_send_less(run, table, monkeypatch):
    """Once it has measured its uplink, a device carries what it can publish within the job's budget."""
    table["job"]["training"] |= {"density": 0.9, "uplink_budget_s": 2.0, "density_min": 0.01}
    table["fleet"]["link"] = {"kind": "fixed", "up_bytes_s": 36}
    ledger = Ledger(monkeypatch)
    run(table)
    sizes = [len(answer.frame) for answer in ledger.produced.values()]
    densities = [answer.evaluation.density for answer in ledger.produced.values()]

    assert min(densities) < 0.5 < max(densities)
    assert min(sizes) < max(sizes) - 5


def test_devices_that_follow_train_from_what_was_handed_out(run, table, monkeypatch):
    """With fan-out devices begin from versions newer than they were assigned, exactly once all the same."""
    table["fleet"] |= {
        "link": {"kind": "fixed", "down_bytes_s": 150},
        "faults": {"loss": 0.05, "retry_s": 2.0},
    }
    table["job"] |= {"lease_s": 600.0, "fanout": "always"}
    table["stop"] = {"uploads": 60}
    ledger = Ledger(monkeypatch)
    begun, train = [], behaviour.Behaviour._train

    def training(self, device, assignment, base):
        heard = self._followers.get(device)
        begun.append((assignment.version, assignment.version if heard is None else heard.version))
        train(self, device, assignment, base)

    monkeypatch.setattr(behaviour.Behaviour, "_train", training)
    (followed,) = run(table)
    newer = sum(later > assigned for assigned, later in begun)
    assert set(ledger.folded.values()) == {1}
    table["job"]["fanout"] = "never"
    begun.clear()
    run(table)

    assert newer > 5
    assert all(later == assigned for assigned, later in begun)
    assert followed.summary["rejected"] == {}
    assert followed.summary["accuracy"] > 0.8


def test_the_header_says_all_that_a_run_depends_on(run, table, tmp_path):
    """The first line has the job's whole spec and the data's digest, and no path of this machine."""
    run(table)
    (text,) = files(tmp_path / "out").values()
    head = json.loads(text.splitlines()[0])

    assert head["spec"]["job"]["buffer_size"] == 2
    assert head["spec"]["job"]["staleness_max"] == 20
    assert len(head["hash"]) == len(head["spec"]["data"]["source"]) == 64
    assert str(tmp_path.parent).encode() not in text
    assert sparse.CODECS.keys() >= {head["spec"]["job"]["training"]["codec"]}
