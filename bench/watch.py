"""Smartwatch data, two people left out at a time: each device alone, the federation, and all data in one place.

    python bench/watch.py [--versions 120] [--folds 5] [--out FILE]

Ten people with two arms each: in each fold the arms of eight are the sixteen devices, and the other two are whom no
device has seen. The demo's network, settings, hold-outs and step budget; every arm of the comparison takes the version
that its hold-outs choose. The federation is simulated with the real aggregator (strategy `calibrated`, and `fedbuff` as
the demo runs it), speeds log-normal. JSON lines on stdout, a table at the end.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import numpy as np

from aggregator.demo import baselines, data, plan
from aggregator.demo.plan import Budget
from aggregator.simulate import config
from aggregator.simulate.simulation import Simulation, state_directory

STRATEGIES = ("fedbuff", "calibrated")
LAST = 5  # evaluations at the end whose mean counts: one version wavers
CONFIG = """
seeds = [{seed}]
[data]
source = "fold.npz"
partition = {{ kind = "natural" }}
holdout = {holdout}
gap = {gap}
[model]
bundle = "watch.bundle"
[fleet]
step_s = 0.05
speed = {{ kind = "lognormal", sigma = 1.0 }}
jitter = 0.3
[job]
buffer_size = {buffer_size}
concurrency = {concurrency}
server_lr = {server_lr}
lease_s = 3600.0
training = {{ steps = {steps}, density = {density}, learning_rate = {learning_rate}, batch_size = {batch_size} }}
{strategies}
[stop]
versions = {versions}
[evaluate]
every = {every}
"""


def fold(number: int, versions: int) -> dict:
    """One fold: accuracies in per cent on the two people who were left out."""
    unseen_subjects = (2 * number + 1, 2 * number + 2)
    shards, unseen = data.load(unseen_subjects=unseen_subjects)
    row: dict = {"fold": number, "unseen": unseen_subjects, "devices": len(shards)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = folder / "watch.bundle"
        bundle.write_bytes(plan.bundle().to_bytes())
        row |= _federated(folder, shards, unseen, number, versions)
        budget = Budget(plan.STEPS * plan.BUFFER_SIZE, versions)
        row["centralised"] = 100 * baselines.centralised(bundle, shards, unseen, budget, number).accuracy
        each = Budget(plan.STEPS * plan.BUFFER_SIZE // len(shards), versions)
        alone = list(baselines.local_only(bundle, shards, unseen, each, number))
        row["local_only"] = 100 * statistics.fmean(result.accuracy for result in alone)
    return row


def _federated(
    folder: Path, shards: list[data.Shard], unseen: data.Shard, number: int, versions: int
) -> dict:
    np.savez(
        folder / "fold.npz",
        x=np.concatenate([s.x for s in shards]),
        y=np.concatenate([s.y for s in shards]),
        owner=np.concatenate([np.full(len(s.y), i) for i, s in enumerate(shards)]),
        segment=np.concatenate([s.segment for s in shards]),
        x_test=unseen.x,
        y_test=unseen.y,
    )
    text = CONFIG.format(
        seed=number,
        holdout=plan.HOLDOUT,
        gap=plan.GAP,
        buffer_size=plan.BUFFER_SIZE,
        concurrency=plan.CONCURRENCY,
        server_lr=plan.SERVER_LR,
        steps=plan.STEPS,
        density=plan.DENSITY,
        learning_rate=plan.LEARNING_RATE,
        batch_size=plan.BATCH_SIZE,
        strategies="\n".join(f'[[strategy]]\nname = "{s}"\nstrategy = "{s}"' for s in STRATEGIES),
        versions=versions,
        every=4 * plan.BUFFER_SIZE,
    )
    (folder / "fold.toml").write_text(text)
    with state_directory(None) as scratch:
        settings = config.load(folder / "fold.toml")
        results = Simulation(settings, scratch).run(folder / "out", 2, lambda *_: None)
    return {r.label: 100 * statistics.fmean(p["accuracy"] for p in r.points[-LAST:]) for r in results}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--versions", type=int, default=120)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = []
    for number in range(arguments.folds):
        rows.append(fold(number, arguments.versions))
        print(json.dumps(rows[-1]), flush=True)
    arms = ("local_only", *STRATEGIES, "centralised")
    print(f"\n| people left out | {' | '.join(arms)} |\n|---|{'---|' * len(arms)}")
    for row in rows:
        cells = " | ".join(f"{row[arm]:.1f}" for arm in arms)
        print(f"| {row['unseen'][0]} and {row['unseen'][1]} | {cells} |")
    means = [statistics.fmean(row[arm] for row in rows) for arm in arms]
    spread = [statistics.stdev(row[arm] for row in rows) if len(rows) > 1 else 0.0 for arm in arms]
    print(
        f"| mean ± deviation | {' | '.join(f'{m:.1f} ± {s:.1f}' for m, s in zip(means, spread, strict=True))} |"
    )
    if arguments.out is not None:
        arguments.out.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
