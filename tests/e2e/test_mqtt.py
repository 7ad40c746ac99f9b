"""What integrators read on MQTT, with mosquitto's own client and from a whole `fedfleet up`."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from edge_client.wire import topics
from tests.e2e.conftest import until
from tests.e2e.server import WAIT_S, Up, small_bundle

ROOT = Path(__file__).parents[2]
SUB = shutil.which("mosquitto_sub")


@pytest.mark.skipif(SUB is None, reason="needs mosquitto_sub: apt-get install mosquitto-clients")
def test_fleet_and_jobs_are_retained_json(tmp_path):
    """mosquitto_sub has the fleet and a job at once, hears of a pause, and of a deleted job nothing is left."""
    bundle = tmp_path / "small.bundle"
    bundle.write_bytes(small_bundle().to_bytes())
    up = Up(tmp_path / "state")

    def told(topic):
        """What is retained on a topic, None for nothing."""
        port = up.facts["mqtt_v311"].rpartition(":")[2]
        command = [SUB, "-p", port, "-V", "311", "-C", "1", "-W", "2", "-t", topic]
        text = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False).stdout
        return json.loads(text) if text.strip() else None

    try:
        up.run("job", "start", "--bundle", bundle, "--name", "mine", "--dataset", "d")
        job = until(lambda: told(topics.job_state("mine")), "the job is told", WAIT_S)
        assert set(job) == {
            "job", "state", "reason", "version", "promoted", "accuracy", "loss", "updates", "training", "waiting",
        }  # fmt: skip
        assert (job["job"], job["state"], job["version"]) == ("mine", "running", 0)
        until(
            lambda: told(topics.fleet_state()) == {"devices": {}, "jobs": {"running": 1}}, "the fleet", WAIT_S
        )
        up.run("job", "pause", "mine")
        until(lambda: told(topics.job_state("mine"))["state"] == "paused", "the pause is told", WAIT_S)
        up.run("job", "stop", "mine")
        up.run("job", "delete", "mine")
        until(lambda: told(topics.job_state("mine")) is None, "the topic is cleared", WAIT_S)
        assert up.terminate() == 0
    finally:
        up.close()


def test_the_node_red_flow_reads_documented_topics():
    """Its nodes are wired to nodes that exist, and what it subscribes to is in docs/mqtt.md."""
    flow = json.loads((ROOT / "examples/node-red/flow.json").read_text())
    text = re.sub(r"<\w+>", "+", (ROOT / "docs/mqtt.md").read_text())
    ids = {node["id"] for node in flow}
    wires = {target for node in flow for output in node.get("wires", []) for target in output}
    read = [node["topic"].removeprefix(f"{topics.ROOT}/") for node in flow if node["type"] == "mqtt in"]

    assert wires <= ids
    assert len(read) == 3
    assert [topic for topic in read if f"`{topic}`" not in text] == []
