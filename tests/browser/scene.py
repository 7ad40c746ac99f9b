"""A fleet worth looking at: real daemons that learn from the demo's recordings, and devices with troubles of all kinds."""

import contextlib
import json
import time
from collections.abc import Iterator

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from aggregator.demo import plan
from aggregator.sdk import Fleet, Job
from edge_client.wire import messages, topics
from edge_client.wire.messages import DataSchema, DatasetInfo, DeviceInfo, DeviceState, TaskStatus
from edge_client.wire.topics import Uid

DEVICES = 8
LEASE_S = 20.0
WAIT_S = 180.0
SCHEMA = DataSchema((6, 100), 7, ("channel", "time"))
OTHER = "bench-rig"  # a data set of the wrong form
TROUBLES = {
    "ward-2-wrist": ("ready", "declined", "data set 'wrist-imu' has 12 samples, the job wants 40"),
    "ward-3-wrist": ("ready", "declined", "data set 'wrist-imu' has 31 samples, the job wants 40"),
    "bench-rig-1": (
        "ready",
        "declined",
        "data set 'wrist-imu': axis 0 (channel) has 3 values, the job wants 6",
    ),
    "gym-entrance": ("ready", "failed", "the trainer was killed: it used more than 160 MB"),
    "gym-rowing": ("ready", "training", ""),
    "lab-spare-1": ("disconnected", None, ""),
    "lab-spare-2": ("disconnected", None, ""),
    "van-17": ("lost", None, ""),
}


@contextlib.contextmanager
def scene(name: str = "exercise", versions: int = 400) -> Iterator[tuple[Fleet, Job]]:
    """A local fleet with a job of this name under way, which ends at so many versions."""
    with Fleet.local(devices=DEVICES, data="watch") as fleet:
        _tell_troubles(_mqtt_port(fleet), name, "before")
        job = fleet.federate(
            plan.bundle().to_bytes(),
            name=name,
            dataset="wrist-imu",
            buffer_size=plan.BUFFER_SIZE,
            concurrency=5,
            server_lr=plan.SERVER_LR,
            lease_s=LEASE_S,
            retry_s=plan.RETRY_S,
            selection={"samples_min": 40},
            training={"steps": plan.STEPS, "density": plan.DENSITY},
            target={"versions": versions},
        )
        _tell_troubles(_mqtt_port(fleet), name, "after")
        for device in fleet.devices():
            if device["device"].startswith("gym"):
                fleet.tag(device["device"], ["gym", "ground floor"])
            elif device["device"].startswith("ward"):
                fleet.tag(device["device"], ["ward"])
        yield fleet, job


def wait_for_version(job: Job, version: int) -> None:
    """Until the job has made so many versions."""
    deadline = time.monotonic() + WAIT_S
    while job.refresh()["version"] < version:
        assert time.monotonic() < deadline, f"no version {version} within {WAIT_S:g} s"
        time.sleep(0.5)


def _mqtt_port(fleet: Fleet) -> int:
    assert fleet._local is not None
    facts = json.loads((fleet._local.directory / "up.json").read_text())
    return int(facts["mqtt"].rpartition(":")[2])


def _tell_troubles(port: int, job: str, when: str) -> None:
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id=f"troubles-{when}", protocol=paho.MQTTv5)
    client.connect("127.0.0.1", port)
    client.loop_start()

    def say(topic: str, message: messages.Message | bytes) -> None:
        payload = message if isinstance(message, bytes) else messages.encode(message)
        client.publish(topic, payload, 1).wait_for_publish(WAIT_S)

    for device, (state, doing, reason) in TROUBLES.items():
        if when == "before":
            say(topics.state(device), DeviceState("ready", 3, "all"))
            info = DeviceInfo(
                "fedfleet 0.1.0" if device != "van-17" else "fedfleet 0.0.9",
                1,
                "aarch64",
                "onnxruntime 1.32.0",
                messages.CODECS,
                (DatasetInfo("wrist-imu", SCHEMA, 120),),
            )
            say(topics.info(device), info)
            continue
        if doing is not None:
            say(topics.task(device, job), TaskStatus(doing, 1, reason, 0.4 if doing == "training" else None))
        if state != "ready":
            say(topics.state(device), DeviceState(state, 3, "all"))
    if when == "after":  # an update that is none: refused, with the reason
        say(topics.update(Uid("gym-entrance", job, "0123456789abcdef", 1), 0), b"not an update at all")
    client.disconnect()
    client.loop_stop()
