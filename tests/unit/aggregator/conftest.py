"""An engine over memory ports, a small bundle, and devices that speak through the log."""

import asyncio
import hashlib
from pathlib import Path

import httpx
import msgspec
import numpy as np
import pytest

from aggregator.api.app import create_app
from aggregator.engine import Engine
from aggregator.spec import parse
from broker_bridge import cells
from broker_bridge.ports import Kind
from broker_bridge.ports.open import open_ports
from broker_bridge.records import EvaluationRecord, EventRecord, RejectionRecord, UpdateRecord, encode
from edge_client.wire import messages, topics
from edge_client.wire.sparse import Update
from edge_client.wire.sparse import encode as encode_update
from edge_client.wire.weights import Sparse, SparseTensor
from firmware_tools.compiler import compile_training
from firmware_tools.layers import Net
from firmware_tools.zoo import cnn1d

EPOCH = "0123456789abcdef"
WAIT_S = 10.0


class Clock:
    """Time that tests move."""

    def __init__(self):
        self.now = 1_000_000.0

    def __call__(self):
        return self.now


class Site:
    """One engine and what a test does to it."""

    def __init__(self, ports, cache):
        self.ports = ports
        self.cache = cache
        self.clock = Clock()
        self.seqs = {}
        self.fresh_engine()

    def fresh_engine(self):
        self.engine = Engine(self.ports, self.cache, self.clock)

    def api(self, *, token=None, client="127.0.0.1", host="127.0.0.1", **options):
        """A client of the HTTP API around the engine, which runs in the same loop."""
        transport = httpx.ASGITransport(create_app(self.engine, **options), client=(client, 1))
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.AsyncClient(transport=transport, base_url=f"http://{host}/api/v1", headers=headers)

    async def reject(self, device, code, message):
        record = RejectionRecord(self.clock(), code, message)
        await self.append(device, Kind.REJECTION, record, self.uid(device))

    async def start_job(self, bundle, **fields):
        _, digest = await self.engine.shelf.add(bundle)
        raw = {"name": "job", "bundle": digest, "dataset": "data", "buffer_size": 3, **fields}
        await self.engine.create(parse(msgspec.json.encode(raw)))
        return self.engine.jobs["job"]

    def uid(self, device):
        self.seqs[device] = self.seqs.get(device, 0) + 1
        return topics.Uid(device, "job", EPOCH, self.seqs[device])

    async def append(self, device, kind, record, uid):
        partition = topics.partition(device, self.ports.partitions)
        mark = None if kind is Kind.EVENT else b"mark"
        return await self.ports.log.append(partition, str(uid), kind, encode(record), mark)

    async def say(self, device, topic, message, job=""):
        record = EventRecord(self.clock(), topic, device, job, messages.encode(message))
        unique = hashlib.sha256(f"{device}{topic}{self.uid(device)}".encode()).hexdigest()
        await self.append(device, Kind.EVENT, record, f"event:{device}:{unique[:16]}")

    async def ask(self, device, number=1, holds=None):
        await self.say(device, "ask", messages.Ask(job="job", ask=number, n_samples=10, holds=holds))

    async def update(self, device, seed, base=None, uid=None):
        job = self.engine.jobs["job"]
        base = job.version if base is None else base
        frame = make_frame(job.bundle, seed, base, bytes.fromhex(job.recent[base].model_hash))
        await self.append(
            device, Kind.UPDATE, UpdateRecord(self.clock(), frame, len(frame)), uid or self.uid(device)
        )
        return frame

    async def evaluate(self, device, version, accuracy, n=100):
        await self.report(device, version, messages.Metrics(n=n, loss=1.0, accuracy=accuracy))

    async def report(self, device, version, metrics):
        evaluation = messages.Evaluation(version, metrics)
        record = EvaluationRecord(self.clock(), messages.encode(evaluation))
        await self.append(device, Kind.EVALUATION, record, self.uid(device))

    async def down(self, topic, kind):
        _, value = await self.ports.heads.load(cells.down_key(topic))
        return messages.decode(kind, value) if value else None

    async def step(self):
        """Let the engine see everything that is in the log."""
        await self.engine._step()


def make_frame(bundle, seed, base, base_hash):
    rng = np.random.default_rng(seed)
    tensors = []
    for tensor in bundle.tensors:
        indices = np.flatnonzero(rng.random(tensor.size) < 0.2).astype(np.int64)
        scale = float(np.float16(rng.uniform(0.001, 0.1))) if len(indices) else 0.0
        tensors.append(SparseTensor(indices, rng.random(len(indices)) < 0.5, scale))
    changes = rng.standard_normal(sum(t.size for t in bundle.statistics)).astype(np.float16)
    update = Update(base, base_hash, seed, 10, Sparse.of(tensors), changes)
    return encode_update(update, [t.size for t in bundle.tensors])


@pytest.fixture(scope="session")
def bundle() -> bytes:
    return compile_training(cnn1d(channels=2, length=8, classes=3, widths=(4, 4))).to_bytes()


@pytest.fixture(scope="session")
def observing_bundle() -> bytes:
    """A bundle whose model has statistics: the ranges of its activations."""
    model = cnn1d(channels=2, length=8, classes=3, widths=(4, 4))
    return compile_training(model, quantize="int8").to_bytes()


@pytest.fixture(scope="session")
def detector() -> bytes:
    """A bundle that reconstructs samples of four values."""
    net = Net("detector", (4,), seed=0)
    net.dense("x", "dense", (4, 4), output="logits")
    return compile_training(net.model((4,)), loss="reconstruction").to_bytes()


@pytest.fixture
def drive(tmp_path: Path):
    """Run an async test body with a Site over memory ports."""

    def run(body):
        async def main():
            ports = open_ports("memory:")
            site = Site(ports, tmp_path)
            try:
                await site.engine.load()
                await body(site)
            finally:
                await ports.close()

        asyncio.run(asyncio.wait_for(main(), WAIT_S))

    return run


def same(some, others):
    """Whether two sequences hold the same arrays."""
    return all(np.array_equal(a, b) for a, b in zip(some, others, strict=True))
