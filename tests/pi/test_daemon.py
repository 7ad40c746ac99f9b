"""The device daemon under emulation, against a real broker and server on x86_64."""

import json
import subprocess
from pathlib import Path

import httpx
import numpy as np
import pytest

from edge_client.config import TrainerSection
from tests.e2e.conftest import until
from tests.e2e.server import Up, processes, small_bundle

WAIT_S = 90.0  # until an emulated daemon, and then its trainer, has started and answered
CONFIG = """
[device]
id = "pi-4"
state_dir = "state"
[broker]
host = "127.0.0.1"
port = {port}
[data.waves]
path = "waves.npz"
shape = [2, 8]
classes = 3
axes = ["channel", "time"]
"""
SPEC = {"buffer_size": 1, "retry_s": 1, "training": {"steps": 5, "density": 0.2}, "end": {"versions_max": 3}}


@pytest.fixture
def up(tmp_path):
    """The server, on free ports of loopback."""
    up = Up(tmp_path / "server")
    try:
        yield up
        assert up.terminate() == 0, up.errors.read_text()
    finally:
        up.close()


class Daemon:
    """`fedfleet device run` under emulation, in a directory with its configuration and data."""

    def __init__(self, pi, home, port):
        home.mkdir()
        self.home = home
        rng = np.random.default_rng(0)
        y = np.arange(60) % 3
        waves = np.sin((1 + y)[:, None, None] * np.arange(8) / 2 + rng.uniform(0, 6, (60, 2, 1)))
        np.savez(home / "waves.npz", x=waves.astype(np.float32), y=y)
        (home / "device.toml").write_text(CONFIG.format(port=port))
        self.log = home / "daemon.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [pi.python, "-m", "edge_client", "device", "run", "--config", home / "device.toml"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=pi.environment,
            )

    @property
    def trainer(self):
        """Process id of its trainer child, None when it has none."""
        for path in Path(f"/proc/{self.process.pid}/task").glob("*/children"):
            for pid in path.read_text().split():
                if b"edge_client.trainer_child" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return int(pid)
        return None

    def until(self, condition, what):
        """Wait for a condition for as long as the daemon runs; failing, show its log."""

        def met():
            assert self.process.poll() is None, "the daemon ended"
            return condition()

        try:
            return until(met, what, WAIT_S)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log.read_text()}") from None

    def stop(self):
        """SIGTERM; the exit code."""
        self.process.terminate()
        return self.process.wait(WAIT_S)

    def close(self):
        """End it in any way."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def daemon(pi, up, tmp_path):
    """A running daemon that lends the data set `waves`."""
    daemon = Daemon(pi, tmp_path / "device", int(up.facts["mqtt"].rpartition(":")[2]))
    try:
        yield daemon
    finally:
        daemon.close()


def peak_bytes(pid):
    """The largest resident size of a process so far, the emulator's own included."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def gone(pid):
    return not Path(f"/proc/{pid}").exists()


@pytest.mark.timeout(300)  # four deadlines of WAIT_S would be more than a hang should cost
def test_an_emulated_daemon_serves_a_job(pi, up, daemon, tmp_path):
    """It enrols as aarch64, trains in a child, has its updates accepted and made versions of, and ends whole."""
    bundle = small_bundle().save(tmp_path / "waves.bundle")
    (tmp_path / "spec.json").write_text(json.dumps(SPEC))
    options = ("--bundle", bundle, "--name", "waves", "--dataset", "waves", "--spec", tmp_path / "spec.json")
    up.run("job", "start", *options)
    with httpx.Client(base_url=up.facts["api"]) as api:
        job = daemon.until(
            lambda: (j := api.get("jobs/waves").json())["state"] == "ended" and j, "the job has its versions"
        )
        versions = api.get("jobs/waves/versions").json()
        device = daemon.until(
            lambda: (d := api.get("devices/pi-4").json())["tasks"]["waves"]["accepted"] == 3 and d,
            "the device heard that three updates were accepted",
        )
    trainer = daemon.trainer
    memory_bytes = {
        "daemon": peak_bytes(daemon.process.pid),
        "the daemon's trainer child": peak_bytes(trainer),
    }
    for name, size in memory_bytes.items():
        pi.figures[f"peak RSS, {name}"] = f"{size / 1e6:.0f} MB"

    assert (job["version"], job["rejected"], job["participants"]) == (3, {}, 1), job
    assert [v["devices"] for v in versions["versions"]] == [[], ["pi-4"], ["pi-4"], ["pi-4"]]
    assert device["info"]["arch"] == "aarch64"
    assert device["info"]["datasets"][0]["n_samples"] == 60
    assert device["tasks"]["waves"]["rejected"] == {}
    assert memory_bytes["the daemon's trainer child"] < TrainerSection().memory_max_mb * 1024 * 1024
    assert daemon.stop() == 0, daemon.log.read_text()
    until(lambda: gone(trainer) and not processes(daemon.home), "no process of the device is left")


def test_an_emulated_trainer_dies_with_its_daemon(daemon):
    """Kill -9 of the daemon takes the trainer child along, though a script and an emulator lie between them."""
    trainer = daemon.until(lambda: daemon.trainer, "a trainer child describes the data")
    daemon.process.kill()
    daemon.process.wait()

    until(lambda: gone(trainer), "the trainer child is gone")
