"""A server of which parts are killed by a seed, and the audit of its files against the devices' own ledger."""

import asyncio
import itertools
import os
import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np

from aggregator import sdk
from aggregator.buffer import Buffer
from aggregator.commit import advance, mean_update
from aggregator.fold import Fold
from aggregator.hidden import follow
from aggregator.restarts import Restarts
from aggregator.supervise import Supervisor
from aggregator.versions import load_manifest, load_state
from broker_bridge import cells
from broker_bridge.ports import REMEMBERED, Kind
from broker_bridge.ports.open import open_ports
from broker_bridge.ports.types import split
from edge_client.wire import grid, sparse
from edge_client.wire.topics import Uid
from firmware_tools.compiler import compile_training
from firmware_tools.zoo import cnn1d
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
        versions = asyncio.run(self._replay({uid: marks[uid][:2] for uid in updates}))
        return {
            "produced": len(digests), "accepted": len(accepted), "rejected": len(digests) - len(accepted),
            "versions": versions, "receipts": self.swarm.receipts, "lost": len(lost), "folded_twice": 0,
            "kills": dict(self.killed), "codes": Counter(c for seen in final.values() for _, c in seen if c),
        }  # fmt: skip

    async def _replay(self, places):
        """Fold the devices' own frames again, version by version: each model must come out to the last bit."""
        ports = open_ports(f"sqlite:///{self.directory / 'server' / 'fleet.db'}")
        try:
            _, value = await ports.heads.load(cells.version_key(JOB))
            manifest = await load_manifest(
                ports.blobs, msgspec.json.decode(value, type=cells.VersionCell).manifest
            )
            chain = [manifest]
            while chain[-1].parent:
                chain.append(await load_manifest(ports.blobs, chain[-1].parent))
            chain.reverse()
            assert [m.version for m in chain] == list(range(len(chain))), "the chain of versions has a gap"
            state = await load_state(ports.blobs, chain[0], self.bundle.sizes)
        finally:
            await ports.close()
        by_partition = {}
        for uid, (partition, offset) in places.items():
            by_partition.setdefault(partition, {})[offset] = uid
        folded, reached = set(), {}
        for before, manifest in itertools.pairwise(chain):
            uids = self._included(manifest, by_partition, reached)
            assert not folded & set(uids), "an update is in two versions"
            folded |= set(uids)
            state = self._next(before, manifest, state, uids)
        assert folded == set(places), f"{len(set(places) - folded)} accepted updates are in no version"
        return len(chain) - 1

    def _included(self, manifest, by_partition, reached):
        uids = []
        for partition, (after, upto) in sorted(manifest.included.items()):
            assert after >= reached.get(partition, 0), "the ranges of two versions overlap"
            reached[partition] = upto
            own = by_partition.get(partition, {})
            uids += [own[offset] for offset in range(after + 1, upto + 1) if offset in own]
        return uids

    def _next(self, before, manifest, state, uids):
        bundle = self.bundle
        sizes = np.array([t.size for t in bundle.tensors])
        fold = Fold(bundle.sizes, "uniform")
        buffer = Buffer(fold, before.bounds, sizes)
        for uid in uids:
            frame = self.swarm.produced[uid]
            update = sparse.decode(frame, bundle.sizes, len(bundle.statistics))
            buffer.add(Uid.parse(uid).device, update, frame, wire_bytes=0, at=0.0)
        assert {base: bucket.count for base, bucket in fold.buckets.items()} == manifest.bases
        steps, statistics = [t.step_exp for t in bundle.table], len(bundle.statistics)
        step = np.zeros(sum(bundle.sizes))
        if uids:
            step = mean_update(fold, manifest.weights, statistics=int(sum(bundle.sizes) - sizes.sum()))
            step[: sizes.sum()] *= manifest.server_lr
        exact = advance(state.exact(), steps, step)
        after = follow(exact, state.model, steps, manifest.downlink_density, statistics=statistics)
        assert grid.model_hash(after.model).hex() == manifest.model_hash, (
            f"version {manifest.version} is another model"
        )
        return after

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
