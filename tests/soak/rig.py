"""A server of which parts are killed by a seed, and the audit of its files against the devices' own ledger."""

import asyncio
import os
import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path

from aggregator import sdk
from aggregator.restarts import Restarts
from aggregator.supervise import Supervisor
from broker_bridge.ports import REMEMBERED, Kind
from broker_bridge.ports.open import open_ports
from broker_bridge.ports.types import split
from firmware_tools.compiler import compile_training
from firmware_tools.zoo import cnn1d
from tests.replay import replay
from tests.soak.devices import JOB, Swarm
from tests.witness import Witness

PARTS = ("broker", "broker_bridge", "aggregator")
WEIGHTS = (3, 4, 2)  # a start of the aggregator takes longest, and nothing is folded meanwhile
SETTLE_S = 120.0


class Rig:
    """Server and devices; `killed` counts kills by part."""

    def __init__(self, directory: Path, *, devices: int, seed: int, buffer_size: int = 50, **spec):
        self.directory, self.rng = directory, random.Random(seed)
        self.killed = dict.fromkeys(PARTS, 0)
        self.supervisor = Supervisor(directory / "server", 0, 0, "mosquitto")
        self._ended, self._lock = threading.Event(), threading.Lock()
        self.supervisor.start()
        self.api = sdk.Fleet(f"http://127.0.0.1:{self.supervisor.http_port}")
        self._seen = Witness(directory / "server" / "fleet.db", frames=False)
        self._tending = threading.Thread(target=self._tend)
        self._tending.start()
        self.swarm = None
        try:
            until(self.healthy, "the API answers")
            self._seen.start()
            self.bundle = compile_training(cnn1d(channels=2, length=8, classes=3, widths=(4, 4))).manifest
            model = compile_training(cnn1d(channels=2, length=8, classes=3, widths=(4, 4))).to_bytes()
            own = {
                "name": JOB,
                "bundle": self.api.upload(model),
                "dataset": "waves",
                "buffer_size": buffer_size,
            }
            limits = {"concurrency": devices, "lease_s": 20, "staleness_max": 50, "max_wait_s": 5}
            self.api.start({**own, **limits, **spec})
            self.swarm = Swarm(self.supervisor.mqtt_port, devices, self.bundle.sizes, seed)
        except BaseException:
            self.close()
            raise

    def healthy(self):
        """Whether the server says that all is well."""
        try:
            return self.api.health()["status"] == "ok"
        except sdk.FleetError:
            return False

    def facts(self):
        """What the server says of the job, None while it does not answer."""
        try:
            return self.api.job(JOB).facts
        except sdk.FleetError:
            return None

    def pids(self):
        """The processes of the server by part."""
        return {child.name: child.process.pid for child in self.supervisor.children}

    def kill(self, part=None):
        """SIGKILL a part, a random one unless it is named, if it runs."""
        part = part or self.rng.choices(PARTS, WEIGHTS)[0]
        child = next(child for child in self.supervisor.children if child.name == part)
        with self._lock:
            if child.process.poll() is None:
                os.kill(child.process.pid, signal.SIGKILL)
                child.process.wait()
                self.killed[part] += 1

    def disturb(self, seconds, pause_s):
        """Kill parts and break connections for so long, with pauses of `pause_s` (low, high)."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.kill()
            for _ in range(3):
                self.swarm.drop()
            time.sleep(self.rng.uniform(*pause_s))

    def settle(self):
        """Let every device hear its verdict, end the job, and wait until the last version is made."""
        self.swarm.ending = True
        until(lambda: all(d.settled() for d in self.swarm.devices), "every update has a verdict", SETTLE_S)
        until(self.healthy, "the API answers", SETTLE_S)
        self.api.job(JOB).stop()
        accepted = sum(seen == {("accepted", "")} for seen in self.swarm.verdicts.values())
        until(
            lambda: (f := self.facts()) and f["updates"] >= accepted and not f["buffered"],
            "the last fold",
            SETTLE_S,
        )

    def close(self):
        """End devices and server; again is harmless."""
        if self._ended.is_set():
            return
        if self.swarm is not None:
            self.swarm.stop()
        self._ended.set()
        self._tending.join()
        self._seen.end()
        self.supervisor.stop()
        self.api.close()

    def audit(self):
        """Compare what devices know with what the stopped server's files say; the figures of it."""
        marks = self._seen.marks()
        updates = {uid for uid, (_, _, kind, _) in marks.items() if kind == Kind.UPDATE}
        verdicts, digests = self.swarm.verdicts, self.swarm.digests()
        newest = Counter()  # number of each stream
        for uid in digests:
            stream, number = split(uid)
            newest[stream] = max(newest[stream], number)
        final = {uid: _final(uid, seen, newest) for uid, seen in verdicts.items()}
        accepted = {uid for uid, seen in final.items() if seen == {("accepted", "")}}
        lost = [uid for uid in digests if not final.get(uid)]
        assert not lost, f"{len(lost)} updates without a verdict: {lost[:3]}"
        assert not [uid for uid, seen in final.items() if len(seen) > 1], "two verdicts on one update"
        assert accepted == updates, "what devices were told is accepted and what the log accepted differ"
        assert all(marks[uid][3].digest == digest for uid, digest in digests.items()), (
            "other bytes than were sent"
        )
        places = {marks[uid][:2]: (uid, self.swarm.produced[uid]) for uid in updates}
        versions = asyncio.run(self._replay(places))
        return {
            "produced": len(digests), "accepted": len(accepted), "rejected": len(digests) - len(accepted),
            "versions": versions, "receipts": self.swarm.receipts, "lost": len(lost), "folded_twice": 0,
            "kills": dict(self.killed), "codes": Counter(c for seen in final.values() for _, c in seen if c),
        }  # fmt: skip

    async def _replay(self, updates):
        ports = open_ports(f"sqlite:///{self.directory / 'server' / 'fleet.db'}")
        try:
            return await replay(ports, JOB, self.bundle, updates)
        finally:
            await ports.close()

    def _tend(self):
        while not self._ended.wait(0.02):
            with self._lock:
                for child in self.supervisor.children:
                    child.restarts = Restarts()  # the deaths are ours: no reason to wait longer each time
                self.supervisor.tend()


def _final(uid, seen, newest):
    """The verdicts that count: `incomplete` is none, and a copy that comes after its mark went is a conflict."""
    stream, number = split(uid)
    seen = seen - {("incomplete", "")}
    late = len(seen) > 1 and newest[stream] >= number + REMEMBERED
    return seen - {("rejected", "conflict")} if late else seen


def until(condition, what, seconds=60.0):
    """Wait for a condition with a deadline; return its value."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds:g} s: {what}")
