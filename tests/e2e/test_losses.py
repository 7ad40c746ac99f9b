"""Jobs of other losses than classification's, with real daemons, brokers and trainers, to the exported model."""

import subprocess

import numpy as np
import onnxruntime
import pytest

from edge_client.wire import grid, topics
from edge_client.wire.messages import Assignment, Offer, TrainingPlan
from firmware_tools.compiler import compile_training
from firmware_tools.layers import Net
from tests.e2e.conftest import until
from tests.e2e.fleet import Bridge, Node
from tests.e2e.server import FEDFLEET, WAIT_S, Up, fedfleet

CONFIG = """
[device]
id = "{name}"
state_dir = "state"
[broker]
host = "127.0.0.1"
port = {port}
[data.sound]
path = "sound.npz"
shape = [8]
classes = 2
"""


def detector():
    """An autoencoder of 8 values through 2."""
    net = Net("detector", (8,), seed=0)
    code = net.dense("x", "encoder", (2, 8))
    net.dense(code, "decoder", (8, 2), output="logits")
    return compile_training(
        net.model((8,)), loss="reconstruction", learning_rate=0.05, quantize="int8-weights"
    )


def normal(rng, n):
    """Samples near a plane, which two values describe."""
    plane = np.random.default_rng(7).standard_normal((2, 8))
    return (rng.standard_normal((n, 2)) @ plane + 0.05 * rng.standard_normal((n, 8))).astype(np.float32)


class Device:
    """A daemon on normal samples; they have labels, which a reconstruction does not read."""

    def __init__(self, folder, port, seed):
        folder.mkdir()
        x = normal(np.random.default_rng(seed), 200)
        np.savez(folder / "sound.npz", x=x, y=np.zeros(200, np.int64))
        (folder / "device.toml").write_text(CONFIG.format(name=folder.name, port=port))
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [FEDFLEET, "device", "run", "--config", folder / "device.toml"], stderr=log
            )

    def stop(self):
        """End it, whatever it does."""
        self.process.terminate()
        self.process.wait(WAIT_S)


@pytest.fixture
def up(tmp_path):
    """A whole server."""
    made = Up(tmp_path / "server")
    yield made
    made.close()


def test_a_fleet_trains_an_anomaly_detector_and_sets_its_threshold(up, tmp_path):
    """A reconstruction job runs to its target loss; the exported model tells anomalies with the fleet's threshold."""
    detector().save(tmp_path / "detector.bundle")
    port = up.facts["mqtt"].rpartition(":")[2]
    devices = [Device(tmp_path / f"dev-{n}", port, n) for n in range(2)]
    try:
        up.run("job", "start", "--bundle", tmp_path / "detector.bundle", "--name", "sound", "--dataset", "sound",
               "--buffer-size", 2, "--steps", 40, "--density", 1, "--target-loss", 0.2, "--max-wait", 1)  # fmt: skip
        until(lambda: up.json("job", "show", "sound")["state"] == "ended", "the target loss is reached", 90)
        job = up.json("job", "show", "sound")
        checked = fedfleet("device", "check", "--config", tmp_path / "dev-0" / "device.toml").stdout
        shown = up.run("job", "watch", "sound").stdout
        refused = up.run("job", "start", "--bundle", tmp_path / "detector.bundle", "--name", "wrong",
                         "--dataset", "sound", "--target-accuracy", 0.9, code=1)  # fmt: skip
        up.run("model", "export", "sound", "--out", tmp_path / "detector.onnx")
    finally:
        for device in devices:
            device.stop()
    model = onnxruntime.InferenceSession(tmp_path / "detector.onnx")
    metadata = model.get_modelmeta().custom_metadata_map
    threshold = float(metadata["threshold"])
    rng = np.random.default_rng(99)
    (usual,) = model.run(["errors"], {"x": normal(rng, 400)})
    (strange,) = model.run(["errors"], {"x": rng.standard_normal((400, 8)).astype(np.float32) * 3})

    assert "200 samples of [8] with one of 2 classes" in checked
    assert "target loss of 0.2" in job["reason"]
    assert job["accuracy"] is None
    assert job["loss"] <= 0.2
    assert job["threshold"] > 0
    assert metadata["threshold_version"] == metadata["version"]
    assert f"threshold {job['threshold']:.4g}, loss" in shown
    assert "reconstruction has no accuracy; use end.target_loss" in refused.stderr
    assert (usual > threshold).mean() < 0.25
    assert (strange > threshold).mean() > 0.9


def test_divergence_fails_the_task_and_nothing_leaves(broker, tmp_path):
    """A training without a finite loss is `failed` with `diverged`; no update is sent, the daemon asks again later."""
    bridge = Bridge(broker.port)
    np.savez(tmp_path / "demo.npz", x=normal(np.random.default_rng(0), 60))
    compiled = detector()
    model = compiled.members["params.keyframe"]
    start = grid.decode(model, compiled.manifest.sizes)
    bundle = bridge.blob(compiled.to_bytes())
    bridge.say(
        topics.offer("all", "job"), Offer("job", "demo", compiled.manifest.data, bundle, 5.0), retain=True
    )
    node = Node(tmp_path, broker.port, child="", data='[data.demo]\npath = "demo.npz"\nshape = [8]\n').start()
    try:
        ask = bridge.ask()
        plan = TrainingPlan(40, 8, 1e20, 1.0, 100.0)
        blobs = (bridge.blob(model),)
        given = Assignment("job", ask["ask"], 0, start.model_hash.hex(), bundle, blobs, plan, 60.0)
        bridge.say(topics.assign("dev", "job"), given)
        status = bridge.task("failed", "diverged")
    finally:
        node.stop()
        bridge.close()

    assert status["reason"].startswith("the training diverged: step ")
    assert {topic.split("/")[4] for topic, _ in bridge.heard} == {"state", "info", "task", "ask", "get"}
