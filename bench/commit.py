"""What the aggregator's arithmetic costs: folding updates, and committing a version from many shards' partial sums.

    python bench/commit.py [--out FILE]          (make bench-aggregation runs it too)

JSON lines on stdout: folds a second of ternary updates at 1 % of 50 000 parameters, decoding included, uncalibrated and
calibrated; the commit of a version of 1 000 000 parameters from 64 shards' buckets; bytes a bucket keeps. The baseline
of a fold is the same update added as a dense float32 array. Medians of five, in processor time.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from aggregator.bounds import GAIN_ONE
from aggregator.commit import advance, mean_update
from aggregator.fold import Cached, Fold
from aggregator.hidden import State, follow
from edge_client.compress import compress
from edge_client.wire import grid, sparse

REPEATS = 5
STEP_EXP = -18
SHARDS, BASES, UPDATES = 64, 4, 3  # updates of each shard to each base version


def frame(sizes: list[int], density: float, seed: int, base: int = 0) -> bytes:
    """A ternary update of heavy-tailed values."""
    rng = np.random.default_rng(seed)
    delta = [rng.standard_t(3, n).astype(np.float32) * 1e-3 for n in sizes]
    made = compress(delta, None, density, 100.0)
    return sparse.encode(sparse.Update(base, b"\0" * 8, seed, 1, made.weights), sizes, made.codec)


def seconds(run: Callable[[], object]) -> float:
    """Median processor time of a call, which other programs on the machine do not lengthen by much."""
    run()  # the first call pays for what is loaded and allocated once
    taken = []
    for _ in range(REPEATS):
        start = time.process_time()
        run()
        taken.append(time.process_time() - start)
    return statistics.median(taken)


def folds() -> list[dict]:
    """Updates a second at 50 000 parameters."""
    sizes = [432, 4608, 44_000, 960]
    frames = [frame(sizes, 0.01, seed) for seed in range(200)]
    before = Cached(sparse.decode(frames[0], sizes), GAIN_ONE, 1)

    def fold(cached: Cached | None) -> None:
        buffer = Fold(sizes, "uniform")
        for data in frames:
            buffer.add(sparse.decode(data, sizes), GAIN_ONE, cached)

    def dense() -> None:
        total = np.zeros(sum(sizes), dtype=np.float32)
        for data in frames:
            tensors = sparse.decode(data, sizes).weights.tensors
            total += np.concatenate([t.dense(n) for t, n in zip(tensors, sizes, strict=True)])

    runs = {"fold": lambda: fold(None), "fold_calibrated": lambda: fold(before), "dense_baseline": dense}
    rates = {name: len(frames) / seconds(run) for name, run in runs.items()}
    return [
        {"what": f"{name}_per_s", "value": rate, "to_dense": rate / rates["dense_baseline"]}
        for name, rate in rates.items()
    ]


def commits() -> list[dict]:
    """A version of a million parameters from 64 shards."""
    sizes = [1000, 99_000, 900_000]
    shards = []
    for shard in range(SHARDS):
        part = Fold(sizes, "uniform")
        for base in range(BASES):
            for number in range(UPDATES):
                part.add(sparse.decode(frame(sizes, 0.01, 1000 * shard + 10 * base + number, base), sizes))
        shards.append(part)
    steps = [STEP_EXP] * len(sizes)
    state = State.start(tuple(np.zeros(n, dtype=np.int32) for n in sizes))
    made: dict[str, Fold] = {}

    def merge() -> None:
        made["fold"] = Fold(sizes, "uniform")
        for part in shards:
            made["fold"].merge(part)

    def step() -> None:
        weights = {base: (BASES - base) ** -0.5 for base in range(BASES)}
        exact = advance(state.exact(), steps, mean_update(made["fold"], weights))
        made["state"] = follow(exact, state.model, steps, 1.0)

    def encode() -> None:
        grid.encode_keyframe(1, made["state"].model)
        grid.encode_delta(1, 0, made["state"].model, state.model)

    parts = {"merge": merge, "step": step, "encode": encode}
    rows = [{"what": f"commit_{name}_ms", "value": 1000 * seconds(run)} for name, run in parts.items()]
    rows.append({"what": "commit_ms", "value": rows[0]["value"] + rows[1]["value"]})
    few = next(iter(shards[0].buckets.values())).sums
    kept = sum(p.nbytes + v.nbytes for p, v in few.parts) if few.array is None else few.array.nbytes
    return [*rows, {"what": "bytes_of_a_sparse_bucket", "value": kept, "to_dense": kept / (8 * sum(sizes))}]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    rows = [*folds(), *commits()]
    lines = [json.dumps(row) for row in rows]
    print("\n".join(lines))
    out = parser.parse_args().out
    if out is not None:
        out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
