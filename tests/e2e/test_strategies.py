"""The presets in the real loop: daemons, broker, bridge and aggregator, to the end of a job."""

import subprocess

import numpy as np
import pytest

from firmware_tools.compiler import compile_training
from firmware_tools.zoo import cnn1d
from tests.e2e.conftest import until
from tests.e2e.server import FEDFLEET, WAIT_S, Up

CONFIG = """
[device]
id = "{name}"
state_dir = "state"
[broker]
host = "127.0.0.1"
port = {port}
[data.waves]
path = "waves.npz"
shape = [2, 16]
classes = 3
"""
DEVICES = 3


@pytest.fixture
def fleet(tmp_path):
    """A server and three daemons on waves of three frequencies."""
    up = Up(tmp_path / "server")
    port = up.facts["mqtt"].rpartition(":")[2]
    daemons = []
    try:
        for number in range(DEVICES):
            folder = tmp_path / f"dev-{number}"
            folder.mkdir()
            rng = np.random.default_rng(number)
            y = np.arange(60) % 3
            wave = np.sin(np.arange(16) * (y[:, None] + 1) * 0.7 + rng.uniform(0, 6, (60, 1)))
            x = np.stack([wave, np.roll(wave, 4, axis=1)], axis=1) + 0.1 * rng.standard_normal((60, 2, 16))
            np.savez(folder / "waves.npz", x=x.astype(np.float32), y=y)
            (folder / "device.toml").write_text(CONFIG.format(name=folder.name, port=port))
            with (folder / "log").open("wb") as log:
                daemons.append(
                    subprocess.Popen(
                        [FEDFLEET, "device", "run", "--config", folder / "device.toml"], stderr=log
                    )
                )
        yield up
    finally:
        for daemon in daemons:
            daemon.terminate()
        for daemon in daemons:
            daemon.wait(WAIT_S)
        up.close()


@pytest.mark.parametrize("strategy", ["fedavg", "fedasync", "calibrated", "fadas"])
def test_a_preset_runs_to_its_end_on_real_devices(fleet, tmp_path, strategy):
    """Each preset makes its versions of real devices' updates, and nothing is refused but what came too late."""
    model = cnn1d(channels=2, length=16, classes=3, widths=(4, 8))
    compile_training(model, learning_rate=0.02).save(tmp_path / "waves.bundle")
    fleet.run("job", "start", "--bundle", tmp_path / "waves.bundle", "--name", "waves", "--dataset", "waves", "--strategy",
              strategy, "--buffer-size", 2, "--steps", 5, "--max-wait", 5, "--versions", 6)  # fmt: skip
    until(lambda: fleet.json("job", "show", "waves")["state"] == "ended", "six versions", 90)

    job = fleet.json("job", "show", "waves")
    assert job["reason"] == "reached 6 versions"
    assert job["spec"]["strategy"] == strategy
    assert set(job["rejected"]) <= {"job_ended", *(("stale",) if strategy == "fedavg" else ())}
    assert sum(version["updates"] for version in job["versions"]) == job["updates"] >= 12
