"""The demo, cut short: the whole of it with three versions instead of hundreds."""

import json
import signal
from io import StringIO

import onnxruntime as ort
import pytest
from click.testing import CliRunner
from rich.console import Console

from aggregator.demo import command, data, plan, report
from aggregator.demo.command import demo
from aggregator.demo.plan import Budget

KEYS = {
    "local_only",
    "federated",
    "centralised",
    "int8",
    "versions",
    "updates",
    "bytes_up",
    "bytes_down",
    "bytes_up_dense",
    "seconds",
}


@pytest.mark.timeout(240)
def test_a_short_demo_runs_to_its_table_and_says_which_condition_failed(tmp_path, monkeypatch):
    """Too few versions to learn: the demo ends with 1, names what failed, and leaves figures and the INT8 model."""
    monkeypatch.setattr(plan, "VERSIONS_MAX", 3)
    monkeypatch.setattr(plan, "centralised", lambda: Budget(100, looks_max=2))
    monkeypatch.setattr(plan, "local", lambda _: Budget(10, looks_max=2))
    figures = tmp_path / "figures.json"

    done = CliRunner().invoke(demo, ["--directory", str(tmp_path)], env={"DEMO_JSON": str(figures)})

    assert done.exit_code == 1, done.output
    assert "failed: federated is" in done.output
    assert "points below centralised (at most 6)" in done.output
    found = json.loads(figures.read_text())
    assert found.keys() >= KEYS
    assert found["versions"] >= 3
    assert found["bytes_up_dense"] == found["updates"] * 4 * 24_599
    model = ort.InferenceSession(tmp_path / "exercise-int8.onnx", providers=["CPUExecutionProvider"])
    assert model.get_inputs()[0].shape[1:] == [6, 100]


def test_what_the_demo_compares_with_says_how_far_it_is_and_ends_at_a_signal(tmp_path, monkeypatch):
    """Training for the baselines takes minutes: without a terminal it prints a line now and then, and it can be stopped."""
    monkeypatch.setattr(command, "LINE_S", 0.0)
    monkeypatch.setattr(plan, "local", lambda _: Budget(1, looks_max=2))
    bundle, (shards, unseen) = plan.bundle().save(tmp_path / "exercise.bundle"), data.load()
    signals, said = [], StringIO()

    class Stopped(StringIO):
        def write(self, text):
            if "device 2 of 16" in text:
                signals.append(signal.SIGTERM)
            return said.write(text)

    with pytest.raises(command.DemoError, match="stopped by a signal"):
        command._baselines(Console(file=Stopped()), bundle, shards, unseen, signals)
    assert "device 1 of 16 alone" in said.getvalue()
    assert "device 3 of 16" not in said.getvalue()


def test_the_recordings_are_checked_before_they_are_opened(tmp_path):
    """I6: the one pickle of the project is opened only under its digest; anything else is refused by name."""
    (tmp_path / "watch.npy").write_bytes(b"\x80\x04 not the recordings")

    with pytest.raises(data.DataError, match="SHA-256 differs"):
        data.load(tmp_path / "watch.npy")


def test_no_device_holds_an_unseen_person():
    """Sixteen shards of eight people go to devices; the windows of the other two are nobody's."""
    shards, unseen = data.load()

    assert len(shards) == 16
    assert {shard.name.split("-")[1] for shard in shards} == {str(subject) for subject in range(1, 9)}
    on_devices = {window.tobytes() for shard in shards for window in shard.x}
    assert on_devices.isdisjoint(window.tobytes() for window in unseen.x)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"federated": 0.80}, "below centralised"),
        ({"local_only": 0.75}, "above local-only"),
        ({"int8": 0.80}, "INT8"),
        ({"bytes_per_update": 5000.0}, "updates are"),
        ({"bytes_down": 40_000_000}, "goes down"),
        ({"seconds": 301.0}, "took 301 s"),
    ],
)
def test_each_condition_of_the_gate_can_fail(fields, word):
    """A good result passes; each condition that does not hold is said alone."""
    good = {
        "local_only": 0.48,
        "federated": 0.86,
        "centralised": 0.88,
        "int8": 0.86,
        "bytes_per_update": 1000.0,
        "bytes_up_dense": 126_000_000,
        "bytes_down": 6_000_000,
        "parameters": 24_599,
        "seconds": 100.0,
    }
    rest = dict.fromkeys(set(report.Result.__dataclass_fields__) - set(good), 0)

    assert report.failures(report.Result(**rest, **good)) == []
    (failure,) = report.failures(report.Result(**rest, **(good | fields)))
    assert word in failure
