"""What a lossy shared state costs and saves: accuracy against bytes down, for several densities of the deltas.

    python bench/downlink.py [--seeds 5] [--versions 160] [--out FILE]          (make bench-downlink)

The demo's federation in one process: its network, sixteen devices, settings and stopping place, with the real
trainer, uplink codec, fold, commit, hidden state and model frames, but no network: arrival is drawn from the seed.
Devices take the least of deltas, merged delta and key-frame. JSON lines on stdout, a table at the end.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from aggregator.commit import advance, mean_update
from aggregator.demo import data, plan
from aggregator.demo.baselines import Split, split_shards
from aggregator.fold import Fold
from aggregator.hidden import State, follow
from edge_client.bundle import PARAMS
from edge_client.compress import compress
from edge_client.samples import batches
from edge_client.training import TrainingSession
from edge_client.wire import grid, sparse
from firmware_tools.compiler import CompiledBundle

DENSITIES = (1.0, 0.1, 0.05, 0.02)
NORM_MAX = 100.0
STALENESS = (0.5, 20)  # exponent and largest of the default job
LAST_VERSIONS = 20  # accuracy is the mean over so many at the end: one version wavers by points
LOOK_EVERY = 4  # versions between two looks at the unseen people


class Server:
    """The aggregator's arithmetic: a buffer, x, x̂, and the frames of every version."""

    def __init__(self, bundle: CompiledBundle, density: float) -> None:
        self.manifest = bundle.manifest
        self.sizes = self.manifest.sizes
        self.steps = [t.step_exp for t in self.manifest.table]
        self.state = State.start(grid.apply(None, grid.decode(bundle.members[PARAMS], self.sizes), None))
        self.density = density
        self.version = 0
        self.deltas: list[bytes] = []
        self.keyframe = bundle.members[PARAMS]
        self.fold = Fold(self.sizes, "uniform")
        self.version_bytes: list[int] = []
        self.lag_bytes: list[int] = []
        self.lags: list[float] = []

    def take(self, frame: bytes) -> None:
        """Fold an update; a full buffer becomes a version."""
        self.fold.add(sparse.decode(frame, self.sizes))
        if self.fold.count < plan.BUFFER_SIZE:
            return
        exponent, latest = STALENESS
        weights = {b: (1.0 + min(self.version - b, latest)) ** -exponent for b in self.fold.buckets}
        exact = advance(self.state.exact(), self.steps, plan.SERVER_LR * mean_update(self.fold, weights))
        before, self.state = self.state, follow(exact, self.state.model, self.steps, self.density)
        self.deltas.append(grid.encode_delta(self.version + 1, self.version, self.state.model, before.model))
        self.version += 1
        self.keyframe = grid.encode_keyframe(self.version, self.state.model)
        self.version_bytes.append(len(self.deltas[-1]))
        self.lag_bytes.append(len(grid.encode_keyframe(self.version, self.state.lag)))
        self.lags.append(self.state.lag_norm(self.steps))
        self.fold = Fold(self.sizes, "uniform")

    def path_bytes(self, holds: int) -> int:
        """Bytes that bring a device from this version to the newest."""
        if holds == self.version:
            return 0
        deltas = self.deltas[holds:]
        merged = grid.merge([grid.decode(delta, self.sizes) for delta in deltas])
        return min(sum(map(len, deltas)), len(merged), len(self.keyframe))


class Device:
    """One arm of one person: its batches, residual and the version it holds."""

    def __init__(self, shard: data.Shard, seed: int) -> None:
        self.part: Split = split_shards([shard])
        self.deal = batches(np.arange(len(self.part.y)), plan.BATCH_SIZE, np.random.default_rng(seed))
        self.residual: bytes | None = None
        self.holds = 0

    def train(self, session: TrainingSession, version: int, model: tuple[grid.Grid, ...]) -> bytes:
        """The update of one participation."""
        table = session.bundle.manifest.table
        start = {
            t.name: grid.from_grid(v, t.step_exp).reshape(t.shape) for t, v in zip(table, model, strict=True)
        }
        session.load(start)
        session.reset_optimizer()
        for _ in range(plan.STEPS):
            rows = next(self.deal)
            session.step(self.part.x[rows], self.part.y[rows], plan.LEARNING_RATE)
        trained = session.params
        delta = [(trained[name] - value).ravel() for name, value in start.items()]
        result = compress(delta, self.residual, plan.DENSITY, NORM_MAX)
        self.residual = result.residual_accepted
        update = sparse.Update(version, grid.model_hash(model), 0, len(self.part.y), result.weights)
        return sparse.encode(update, session.bundle.manifest.sizes, result.codec)


def run(
    session: TrainingSession,
    bundle: CompiledBundle,
    density: float,
    seed: int,
    versions: int,
    shards: list[data.Shard],
    unseen: data.Shard,
) -> dict:
    """One federation."""
    rng = np.random.default_rng(seed)
    server = Server(bundle, density)
    fleet = [Device(shard, seed * 1000 + i) for i, shard in enumerate(shards)]
    waiting = [int(i) for i in rng.permutation(len(fleet))]
    training: list[tuple[int, int, tuple[grid.Grid, ...]]] = []
    down, behind, looks = [], [], []
    while server.version < versions:
        while len(training) < plan.CONCURRENCY:
            device = waiting.pop(0)
            down.append(server.path_bytes(fleet[device].holds))
            behind.append(server.version - fleet[device].holds)
            fleet[device].holds = server.version
            training.append((device, server.version, server.state.model))
        device, version, model = training.pop(int(rng.integers(len(training))))
        before = server.version
        server.take(fleet[device].train(session, version, model))
        waiting.append(device)
        if server.version == before:
            continue
        if server.version % LOOK_EVERY == 0 or server.version > versions - LAST_VERSIONS:
            session.load(
                {
                    t.name: grid.from_grid(v, t.step_exp).reshape(t.shape)
                    for t, v in zip(bundle.manifest.table, server.state.model, strict=True)
                }
            )
            looks.append((server.version, 100 * session.evaluate(unseen.x, unseen.y).accuracy))
    dense = 4 * sum(server.sizes)
    ten = [
        min(
            sum(map(len, server.deltas[v - 10 : v])),
            len(grid.merge([grid.decode(d, server.sizes) for d in server.deltas[v - 10 : v]])),
        )
        for v in range(20, versions + 1, 10)
    ]
    return {
        "density": density,
        "seed": seed,
        "accuracy": float(np.mean([a for v, a in looks if v > versions - LAST_VERSIONS])),
        "halfway": float(np.mean([a for v, a in looks if abs(v - versions // 2) <= LAST_VERSIONS // 2])),
        "delta_bytes": float(np.mean(server.version_bytes)),
        "participation_bytes": float(np.mean(down)),
        "behind": float(np.mean(behind)),
        "ten_behind_bytes": float(np.mean(ten)),
        "dense_bytes": dense,
        "keyframe_bytes": len(server.keyframe),
        "lag_bytes": float(np.mean(server.lag_bytes)),
        "lag_norm": float(np.mean(server.lags[-LAST_VERSIONS:])),
        "looks": looks,
    }


def main() -> None:
    """Run every density over the seeds."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--versions", type=int, default=160)
    parser.add_argument("--densities", type=float, nargs="+", default=DENSITIES)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    shards, unseen = data.load()
    bundle = plan.bundle()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        session = TrainingSession(bundle.save(Path(folder) / "net.bundle"), flush_denormals=True)
        for seed in range(options.seeds):
            for density in options.densities:
                rows.append(run(session, bundle, density, seed, options.versions, shards, unseen))
                print(json.dumps({k: v for k, v in rows[-1].items() if k != "looks"}), flush=True)
    if options.out:
        options.out.parent.mkdir(exist_ok=True)
        options.out.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    print("| density | accuracy (each seed) | halfway | B a version | B a participation | ten behind | lag |")
    print("|---|---|---|---|---|---|---|")
    for density in options.densities:
        mine = [r for r in rows if r["density"] == density]
        mean = {k: float(np.mean([r[k] for r in mine])) for k in mine[0] if k != "looks"}
        ratio = {k: mean["dense_bytes"] / mean[k] for k in mean if k.endswith("_bytes")}
        each = ", ".join(f"{r['accuracy']:.1f}" for r in mine)
        print(
            f"| {density:g} | {mean['accuracy']:.1f} ({each}) | {mean['halfway']:.1f} "
            f"| {mean['delta_bytes']:,.0f} ({ratio['delta_bytes']:.0f}x) "
            f"| {mean['participation_bytes']:,.0f} ({ratio['participation_bytes']:.0f}x, {mean['behind']:.1f} behind) "
            f"| {mean['ten_behind_bytes']:,.0f} ({ratio['ten_behind_bytes']:.0f}x) | {mean['lag_norm']:.3f} |"
        )


if __name__ == "__main__":
    main()
