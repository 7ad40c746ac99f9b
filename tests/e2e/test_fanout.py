"""Deltas handed out by real brokers: once a version, whole, and trained from by real daemons."""

import signal
import subprocess
import time

import msgspec
import numpy as np

from broker_bridge import cells
from broker_bridge.cells import FanCell
from edge_client.chain import Gather
from edge_client.wire import topics
from edge_client.wire.limits import CHUNK_BYTES
from tests.e2e.conftest import until
from tests.e2e.server import FEDFLEET, WAIT_S, Up, small_bundle

OVERTAKEN_S = 90.0  # deadline; some five seconds on a quiet machine
CONFIG = """
[device]
id = "{name}"
state_dir = "state"
[broker]
host = "127.0.0.1"
port = {port}
[data.demo]
path = "demo.npz"
shape = [2, 8]
classes = 3
"""


def test_a_delta_is_published_once_and_whole(rig):
    """I9: small deltas travel as they are, large ones in chunks; neither retained nor repeated by a restart."""
    device = rig.device("pi-20", topics.delta_filter("all", "har"))

    def hand_out(version, data):
        digest = rig.call(lambda ports: ports.blobs.put(data))
        rig.swing(cells.fan_key("har"), msgspec.json.encode(FanCell("all", version, digest)))

    def received():
        gather, data = Gather(), None
        while data is None:
            topic, payload, retained = device.inbox.get(timeout=WAIT_S)
            assert not retained
            assert len(payload) <= CHUNK_BYTES + 64
            parsed = topics.parse_down(topic)
            data = gather.add(parsed.job, parsed.version, parsed.index, payload)
        return parsed.version, data

    small, large = b"small delta", np.random.default_rng(0).bytes(3 * CHUNK_BYTES + 5)
    hand_out(1, small)
    assert received() == (1, small)
    hand_out(2, large)
    assert received() == (2, large)
    rig.kill_bridge()
    rig.start_bridge()
    rig.swing(cells.fan_key("har"), msgspec.json.encode(FanCell("all", 3, "0" * 64)))
    hand_out(4, b"next")
    assert received() == (4, b"next")
    assert device.inbox.empty()


def test_devices_train_from_versions_that_came_by_themselves(tmp_path):
    """With fan-out, what one device's update makes reaches the other at once; its next base is that, unpulled."""
    small_bundle().save(tmp_path / "demo.bundle")
    up = Up(tmp_path / "server")
    devices, logs = [], []
    try:
        for n in range(2):
            folder = tmp_path / f"dev-{n}"
            folder.mkdir()
            x = np.random.default_rng(n).standard_normal((60, 2, 8)).astype(np.float32)
            np.savez(folder / "demo.npz", x=x, y=np.arange(60) % 3)
            port = up.facts["mqtt"].rpartition(":")[2]
            (folder / "device.toml").write_text(CONFIG.format(name=folder.name, port=port))
            logs.append(folder / "log")
            with logs[-1].open("wb") as log:
                command = [FEDFLEET, "device", "run", "--log-json", "--config", folder / "device.toml"]
                devices.append(subprocess.Popen(command, stderr=log))

        def events(n, name):
            lines = [msgspec.json.decode(line) for line in logs[n].read_bytes().splitlines()[:-1]]
            return [line for line in lines if line["event"] == name]

        def versions(n, name):
            return {line["version"] for line in events(n, name)}

        up.run("job", "start", "--bundle", tmp_path / "demo.bundle", "--name", "demo", "--dataset", "demo",
               "--buffer-size", 1, "--steps", 50, "--fanout", "always")  # fmt: skip
        deadline = time.monotonic() + OVERTAKEN_S
        while len(versions(1, "delta_kept") & versions(1, "training")) < 3:
            assert time.monotonic() < deadline, "no version that came by itself was trained from"
            overtake(devices[1], lambda: len(events(1, "training")), lambda: len(events(0, "training")))
        up.run("job", "stop", "demo")
        job = up.json("job", "show", "demo")
    finally:
        for device in devices:
            device.send_signal(signal.SIGCONT)
            device.terminate()
        for device in devices:
            device.wait(WAIT_S)
        up.close()
    assert [line for n in range(2) for line in events(n, "task") if line["state"] == "failed"] == []
    assert set(job["rejected"]) <= {"job_ended"}
    assert job["fans_out"]


def overtake(device, trained, other_trained):
    """Hold a device in its next training until the other has made two versions.

    Two that keep step need not hear of a version before they are assigned it.
    """
    before = trained()
    until(lambda: trained() > before, "the device trains", 60)
    device.send_signal(signal.SIGSTOP)
    before = other_trained()
    until(lambda: other_trained() >= before + 3, "the other device goes on", 60)
    device.send_signal(signal.SIGCONT)
