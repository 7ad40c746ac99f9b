"""An aggregator with a fleet in its log, written as the bridge writes it: what the screens are tested on."""

import asyncio
import threading
import time

import httpx

from broker_bridge.ports import Kind, open_ports
from broker_bridge.records import EvaluationRecord, EventRecord, RejectionRecord, UpdateRecord, encode
from edge_client.wire import messages, topics
from edge_client.wire.messages import DataSchema, DatasetInfo, DeviceInfo, DeviceState, TaskStatus
from edge_client.wire.topics import Uid
from tests.e2e.conftest import EPOCH, until, update
from tests.e2e.server import WAIT_S, Aggregator, small_bundle

BATCH = 1000
SCHEMA = DataSchema((2, 8), 3, ("channel", "time"))


def apart(work):
    """The result of `work` on a thread of its own: playwright's loop runs on this one, where no other may."""
    done = []
    thread = threading.Thread(target=lambda: done.append(work()))
    thread.start()
    thread.join(WAIT_S * 2)
    assert done, "the work failed; its traceback is above"
    return done[0]


class Stage(Aggregator):
    """A server, what devices tell it, and a client to look behind the browser."""

    def __init__(self, directory):
        super().__init__(directory)
        self.bundle = small_bundle()
        self.api = None
        self._told = 0
        self._sequences = {}

    def open(self, port=None):
        """Start it and wait until it answers."""
        self.start(port)
        self.address = f"http://127.0.0.1:{self.port}"
        if self.api is not None:
            self.api.close()
        self.api = httpx.Client(base_url=f"{self.address}/api/v1", timeout=WAIT_S)
        until(self._ready, "the server is ready", WAIT_S * 2)

    def close(self):
        """End it and what talks to it."""
        if self.api is not None:
            self.api.close()
        super().close()

    def job(self, name="exercise", **fields):
        """Start a job of the small bundle on the data set `wrist`."""
        digest = self.api.post("/bundles", content=self.bundle.to_bytes()).json()["digest"]
        spec = {"name": name, "bundle": digest, "dataset": "wrist", "buffer_size": 2, **fields}
        response = self.api.post("/jobs", json=spec)
        assert response.status_code == 201, response.text

    def births(self, *devices, state="ready", cohort="all", software="fedfleet 0.1.0", dataset="wrist"):
        """Entries in which devices connect and introduce themselves."""
        info = DeviceInfo(
            software, 1, "aarch64", "onnxruntime 1.32.0", ("ternary",), (DatasetInfo(dataset, SCHEMA, 120),)
        )
        return [
            entry
            for device in devices
            for entry in (
                self.event(device, "state", DeviceState(state, 1, cohort)),
                self.event(device, "info", info),
            )
        ]

    def event(self, device, topic, message, job="", at=None):
        """An entry of what a device says."""
        self._told += 1
        record = EventRecord(at or time.time(), topic, device, job, messages.encode(message))
        return device, f"event:{device}:{self._told}", Kind.EVENT, record

    def task(self, device, state, reason="", job="exercise", **more):
        """An entry of what a device does for a job."""
        self._told += 1
        return self.event(device, "task", TaskStatus(state, self._told, reason), job, **more)

    def update(self, device, job="exercise", base=0):
        """An entry of an update that was admitted."""
        uid = self._uid(device, job)
        frame = update(uid, 0.01, base=base, sizes=self.bundle.manifest.sizes, k=3)
        return device, str(uid), Kind.UPDATE, UpdateRecord(time.time(), frame, len(frame))

    def rejection(self, device, code, message, job="exercise"):
        """An entry of an update that was refused."""
        return (
            device,
            str(self._uid(device, job)),
            Kind.REJECTION,
            RejectionRecord(time.time(), code, message),
        )

    def evaluation(self, device, version, accuracy, job="exercise"):
        """An entry of what a device measured of a version."""
        self._told += 1
        figures = messages.Metrics(60, 1.2 - accuracy, accuracy)
        message = messages.Evaluation(version, figures, steps=20, density=0.05)
        uid = Uid(device, job, EPOCH, 100_000 + self._told)
        return device, str(uid), Kind.EVALUATION, EvaluationRecord(time.time(), messages.encode(message))

    def tell(self, *entries):
        """Append entries in order, from a thread of its own."""

        async def main():
            ports = open_ports(self.url)
            try:
                for start in range(0, len(entries), BATCH):
                    await asyncio.gather(
                        *(
                            ports.log.append(
                                topics.partition(device, ports.partitions), uid, kind, encode(record)
                            )
                            for device, uid, kind, record in entries[start : start + BATCH]
                        )
                    )
            finally:
                await ports.close()
            return True

        apart(lambda: asyncio.run(main()))

    def wait(self, path, condition, what):
        """The JSON of a path of the API, once it fulfils the condition."""
        found = until(
            lambda: (body := self.api.get(path).json()) and condition(body) and [body], what, WAIT_S * 2
        )
        return found[0]

    def _uid(self, device, job):
        sequence = self._sequences[device, job] = self._sequences.get((device, job), 0) + 1
        return Uid(device, job, EPOCH, sequence)

    def _ready(self):
        assert self.process.poll() is None, self.log.read_text()
        try:
            return self.api.get("/ready").is_success
        except httpx.TransportError:
            return False
