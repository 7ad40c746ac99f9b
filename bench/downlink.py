"""What a lossy shared state costs and saves: accuracy against bytes down, for several densities of the deltas.

    python bench/downlink.py [--seeds 6] [--densities 1 0.3 0.1] [--out FILE]          (make bench-downlink)
    python bench/downlink.py --fleets          bytes of fan-out against pulling, for fleets of several shapes

The demo's federation in one process: its network, sixteen devices, settings, stopping rule and choice of a version,
with the aggregator's own job, the real trainer, codecs and frames, but no network: who is done next is drawn from
the seed. JSON lines on stdout, a table at the end, with differences to the first density of the same seed.
"""

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path

import msgspec
import numpy as np

from aggregator import versions
from aggregator.audience import FAN_BYTES, PULL_BYTES
from aggregator.demo import data, plan
from aggregator.demo.baselines import Split, split_shards
from aggregator.history import VersionRecord
from aggregator.job import Job
from aggregator.spec import parse
from aggregator.versions import record, reference
from edge_client.bundle import PARAMS
from edge_client.compress import compress
from edge_client.samples import batches
from edge_client.training import TrainingSession
from edge_client.wire import grid, sparse
from edge_client.wire.messages import CODECS, Ask, Assignment, Evaluation
from firmware_tools.compiler import CompiledBundle

DENSITIES = (1.0, 0.3, 0.1, 0.05)
LAST_VERSIONS = 20  # accuracy is the mean over so many at the end: one version wavers by points


class Device:
    """One arm of one person: its samples, residual and the version it holds."""

    def __init__(self, shard: data.Shard) -> None:
        self.part: Split = split_shards([shard])
        self.residual: bytes | None = None
        self.holds = 0
        self.asks = 0

    def ask(self) -> Ask:
        """The next ask."""
        self.asks += 1
        return Ask(plan.JOB, self.asks, len(self.part.y), self.holds, CODECS)

    def train(
        self, session: TrainingSession, assignment: Assignment, model: tuple[grid.Grid, ...]
    ) -> tuple[Evaluation, bytes]:
        """The evaluation and the update of one participation, as the trainer child makes them."""
        start = params(session, model)
        session.load(start)
        session.reset_optimizer()
        before = session.evaluate(self.part.holdout_x, self.part.holdout_y)
        todo = assignment.plan
        deal = batches(np.arange(len(self.part.y)), todo.batch_size, np.random.default_rng(todo.seed))
        for _ in range(todo.steps):
            rows = next(deal)
            session.step(self.part.x[rows], self.part.y[rows], todo.learning_rate)
        trained = session.params
        delta = [(trained[name] - value).ravel() for name, value in start.items()]
        result = compress(delta, self.residual, todo.density, todo.norm_max, todo.codec)
        self.residual = result.residual_accepted
        base_hash = bytes.fromhex(assignment.version_hash)
        update = sparse.Update(assignment.version, base_hash, 0, len(self.part.y), result.weights)
        frame = sparse.encode(update, session.bundle.manifest.sizes, result.codec)
        return Evaluation(assignment.version, before), frame


class Federation:
    """One job over all devices; `behind` and `down` are versions and bytes of each participation's pull."""

    def __init__(
        self, bundle: CompiledBundle, density: float, seed: int, shards: list[data.Shard], **more: object
    ) -> None:
        fields = plan.spec("0" * 64) | {"downlink_density": density, "seed": seed} | more
        first, state = versions.first(plan.JOB, bundle.members[PARAMS], bundle.manifest.sizes, 0.0)
        self.job = Job(
            parse(msgspec.json.encode(fields)),
            bundle.manifest,
            reference(b""),
            0.0,
            ("", first, state),
        )
        self.job.history.add(record("", first))
        self.models = {0: state.model}
        self.fleet = {shard.name: Device(shard) for shard in shards}
        self.rng = np.random.default_rng(seed)
        self.training: list[tuple[str, Assignment]] = []
        self.down: list[int] = []
        self.behind: list[int] = []
        self.sealed: list[int] = []
        self.pulled: list[int] = []  # bytes of a participation with what is around them, pulled or handed out
        self.handed: list[int] = []
        self.followed = 0
        for name in self.rng.permutation(list(self.fleet)):
            self.job.ask(str(name), self.fleet[str(name)].ask(), 0.0)

    def step(self, session: TrainingSession, now: float) -> None:
        """Places are given, one device is done, and a full buffer is committed."""
        for name, assignment in self.job.grant(now):
            device = self.fleet[name]
            self.down.append(sum(blob.size for blob in assignment.model))
            self.behind.append(assignment.version - device.holds)
            prices = self.job.paths.prices(device.holds, assignment.version)
            if device.asks > 1 and prices is not None:
                deltas, least = prices
                self.pulled.append(least + PULL_BYTES)
                self.handed.append(sum(deltas) + FAN_BYTES * len(deltas))
                self.followed += assignment.follow
            device.holds = assignment.version
            self.training.append((name, assignment))
        name, assignment = self.training.pop(int(self.rng.integers(len(self.training))))
        evaluation, frame = self.fleet[name].train(session, assignment, self.models[assignment.version])
        self.job.update(name, frame, len(frame), now)
        self.job.history.evaluated(evaluation)
        self.job.ask(name, self.fleet[name].ask(), now)
        if self.job.due(now, draining=False):
            sealed = self.job.seal(now, {})
            self.job.advance(sealed, "")
            self.job.history.add(record("", sealed.manifest))
            self.models[self.job.version] = self.job.state.model
            assert sealed.manifest.lag is not None
            self.sealed.append(sealed.manifest.lag.size)


def params(session: TrainingSession, model: tuple[grid.Grid, ...]) -> dict[str, np.ndarray]:
    """A model as the trainer takes it."""
    table = session.bundle.manifest.table
    return {t.name: grid.from_grid(v, t.step_exp).reshape(t.shape) for t, v in zip(table, model, strict=True)}


def run(
    session: TrainingSession,
    bundle: CompiledBundle,
    density: float,
    seed: int,
    shards: list[data.Shard],
    unseen: data.Shard,
) -> dict:
    """One federation until its stopping rule ends it."""
    federation = Federation(bundle, density, seed, shards)
    job, now = federation.job, 0.0
    while job.over(now) is None:
        now += 0.1
        federation.step(session, now)

    def accuracy(version: int) -> float:
        session.load(params(session, federation.models[version]))
        return 100 * session.evaluate(unseen.x, unseen.y).accuracy

    last = [accuracy(v) for v in range(job.version - LAST_VERSIONS + 1, job.version + 1)]
    records: list[VersionRecord] = job.history.records[1:]
    chosen = job.best()
    return {
        "density": density,
        "seed": seed,
        "accuracy": float(np.mean(last)),
        "wavers": float(np.std(last)),
        "chosen": accuracy(chosen),
        "chosen_version": chosen,
        "versions": job.version,
        "staleness": sum(t * n for r in records for t, n in r.staleness.items())
        / sum(r.updates for r in records),
        "delta_bytes": float(np.mean([r.bytes_delta for r in records])),
        "participation_bytes": float(np.mean(federation.down)),
        "behind": float(np.mean(federation.behind)),
        "dense_bytes": 4 * bundle.manifest.parameters,
        "keyframe_bytes": records[-1].bytes_keyframe,
        "lag_bytes": float(np.mean(federation.sealed)),
        "lag_norm": float(np.mean([r.lag_norm for r in records[-LAST_VERSIONS:]])),
    }


SHORT = {"steps": 4, "density": plan.DENSITY}  # bytes hardly depend on how long devices train
FLEETS = ((16, 4, 8), (16, 16, 16), (16, 1, 16), (100, 10, 20), (100, 10, 100), (100, 100, 100))


def fleets(session: TrainingSession, bundle: CompiledBundle, shards: list[data.Shard], updates: int) -> None:
    """Bytes of a participation by pulling and by fan-out to all who trained before, and what `auto` chooses."""
    print("| devices | K | places | density | behind | pulled | handed out | ratio | auto follows |")
    print("|---|---|---|---|---|---|---|---|---|")
    for devices, buffer, places in FLEETS:
        for density in (1.0, 0.1):
            copies = [dataclasses.replace(shards[i % len(shards)], name=f"dev-{i}") for i in range(devices)]
            made = Federation(
                bundle, density, 0, copies, buffer_size=buffer, concurrency=places, training=SHORT
            )
            while made.job.version < max(4, updates // buffer):
                made.step(session, 0.0)
            pulled, handed = float(np.mean(made.pulled)), float(np.mean(made.handed))
            print(
                f"| {devices} | {buffer} | {places} | {density:g} | {np.mean(made.behind[devices:]):.1f} "
                f"| {pulled:,.0f} B | {handed:,.0f} B | {handed / pulled:.2f} "
                f"| {100 * made.followed / len(made.pulled):.0f} % |",
                flush=True,
            )


def table(rows: list[dict], densities: list[float]) -> None:
    """Means by density, and paired differences to the first."""
    print("| density | end | - first | chosen | - first | versions | B a version | B a participation | lag |")
    print("|---|---|---|---|---|---|---|---|---|")
    first = {r["seed"]: r for r in rows if r["density"] == densities[0]}
    for density in densities:
        mine = [r for r in rows if r["density"] == density]
        mean = {k: float(np.mean([r[k] for r in mine])) for k in mine[0]}
        paired = {}
        for k in ("accuracy", "chosen"):
            d = np.array([r[k] - first[r["seed"]][k] for r in mine])
            paired[k] = f"{d.mean():+.1f} ± {d.std(ddof=1) / len(d) ** 0.5 if len(d) > 1 else 0:.1f}"
        print(
            f"| {density:g} | {mean['accuracy']:.1f} | {paired['accuracy']} | {mean['chosen']:.1f} "
            f"| {paired['chosen']} | {mean['versions']:.0f} "
            f"| {mean['delta_bytes']:,.0f} ({mean['dense_bytes'] / mean['delta_bytes']:.0f}x) "
            f"| {mean['participation_bytes']:,.0f} ({mean['dense_bytes'] / mean['participation_bytes']:.0f}x, "
            f"{mean['behind']:.1f} behind) | {mean['lag_norm']:.3f} |"
        )


def main() -> None:
    """Run every density over the seeds."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--densities", type=float, nargs="+", default=DENSITIES)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--fleets", type=int, nargs="?", const=240, help="so many updates of each fleet")
    options = parser.parse_args()
    shards, unseen = data.load()
    bundle = plan.bundle()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        session = TrainingSession(bundle.save(Path(folder) / "net.bundle"), flush_denormals=True)
        if options.fleets:
            fleets(session, bundle, shards, options.fleets)
            return
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            for density in options.densities:
                rows.append(run(session, bundle, density, seed, shards, unseen))
                print(json.dumps(rows[-1]), flush=True)
    if options.out:
        options.out.parent.mkdir(exist_ok=True)
        options.out.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    table(rows, list(options.densities))


if __name__ == "__main__":
    main()
