"""`fedfleet simulate` from the command line."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from edge_client.cli import main

WAIT_S = 30.0

CONFIG = """
seeds = [0, 1]
[data]
source = "{source}"
partition = {{ kind = "natural" }}
[model]
builtin = "mlp"
hidden = [8]
[fleet]
[job]
concurrency = 4
buffer_size = 2
training = {{ steps = 3, learning_rate = 0.1 }}
[[strategy]]
name = "plain"
[[strategy]]
name = "dense"
training = {{ codec = "dense-fp32" }}
[stop]
uploads = 12
[evaluate]
every = 4
targets = [0.5, 1.0]
"""


@pytest.fixture
def config(data_file, tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(CONFIG.format(source=data_file))
    return path


@pytest.fixture
def call(config, tmp_path):
    def run(*options):
        words = ["simulate", str(config), "--out", str(tmp_path / "out"), "--workers", "1", *options]
        return CliRunner().invoke(main, words)

    return run


def test_strategies_are_compared(call, tmp_path):
    """Lines while it runs, then a table a target; the second call finds everything done."""
    first, second = call(), call("--json")

    assert first.exit_code == 0, first.output
    assert "plain seed 1: " in first.output
    assert "to 50 % accuracy" in first.output
    assert "0.0" in first.output
    assert len(list((tmp_path / "out").glob("*.jsonl"))) == 4
    assert second.exit_code == 0
    rows = json.loads(second.stdout)["comparison"]
    assert "dense seed 0: done before" in second.stderr
    assert [(row["strategy"], row["target"]) for row in rows] == [
        (name, target) for target in (0.5, 1.0, None) for name in ("plain", "dense")
    ]
    dense = rows[-1]
    assert dense["seeds"] == 2
    assert dense["ratio"]["bytes_up"] > 1
    assert dense["uploads"] == {"mean": 12, "deviation": 0}


def test_what_cannot_run_is_said_in_a_sentence(call, config):
    """A mistake in the file is exit code 1 and a message without a traceback."""
    config.write_text(config.read_text().replace("concurrency", "concurency"))
    result = call()

    assert result.exit_code == 1
    assert "unknown field concurency; did you mean concurrency?" in result.output
    assert "Traceback" not in result.output


def test_plots_without_matplotlib_are_refused_before_anything_runs(call, tmp_path, monkeypatch):
    """The message names the extra, and no result file was begun."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = call("--plots")

    assert result.exit_code == 1
    assert "pip install 'fedfleet[simulate]'" in result.output
    assert not (tmp_path / "out").exists()


def test_plots_are_files(call, tmp_path):
    """Accuracy by time, versions and bytes, and staleness; the same results give the same bytes."""
    pytest.importorskip("matplotlib", reason="matplotlib comes with the extra [simulate]")
    assert call("--plots").exit_code == 0
    first = {f.name: f.read_bytes() for f in (tmp_path / "out").glob("*.svg")}
    assert call("--plots").exit_code == 0

    assert len(first) == 5
    assert {f.name: f.read_bytes() for f in (tmp_path / "out").glob("*.svg")} == first


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_whoever_ends_it_no_process_stays(config, tmp_path, number):
    """Killed in the middle of a run, its workers end; what it can still clean up, it does."""
    config.write_text(config.read_text().replace("uploads = 12", "uploads = 1000000"))
    state = tmp_path / "state"
    words = ["simulate", str(config), "--out", str(tmp_path / "out"), "--state", str(state), "--workers", "1"]
    with subprocess.Popen([sys.executable, "-m", "edge_client", *words], start_new_session=True) as process:
        try:
            wait(lambda: len(members(process.pid)) >= 2 and any((tmp_path / "out").glob("*.jsonl")))
            os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
            wait(lambda: not members(process.pid))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    assert process.returncode == {signal.SIGTERM: 1, signal.SIGINT: 1, signal.SIGKILL: -9}[number]
    assert number == signal.SIGKILL or list(state.iterdir()) == []


def wait(condition):
    """Until it holds, for at most a while."""
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def members(session):
    """Processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(stat.parent.name)
    return found
