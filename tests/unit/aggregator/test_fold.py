"""The fold and the commit: exact, order-free, and FedAvg when there is no delay."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator.commit import EXACT_MAX, advance, mean_update
from aggregator.fold import UNIT_BITS, Bucket, Fold
from aggregator.hidden import FINE_BITS
from aggregator.sums import Sums
from edge_client.wire.limits import FRACTION_BITS
from edge_client.wire.sparse import Update
from edge_client.wire.weights import Sparse, SparseTensor

SIZES = (7, 1, 40)
STEP_EXPS = (-16, -18, -15)


def make_update(seed, base=0, n_samples=1):
    rng = np.random.default_rng(seed)
    tensors = []
    for size in SIZES:
        indices = np.flatnonzero(rng.random(size) < 0.4).astype(np.int64)
        scale = float(np.float16(rng.lognormal(-4, 2))) if len(indices) else 0.0
        tensors.append(SparseTensor(indices, rng.random(len(indices)) < 0.5, scale))
    return Update(base, b"\0" * 8, seed, n_samples, Sparse.of(tensors))


def commit(before, step_exps, fold, weights, server_lr, *, statistics=0):
    """The model after one step of plain SGD on the server."""
    step = mean_update(fold, weights, statistics=statistics)
    step[: len(step) - statistics] *= server_lr
    return advance(before, step_exps, step)


def folded(updates, weighting="uniform"):
    fold = Fold(SIZES, weighting)
    for update in updates:
        fold.add(update)
    return fold


@settings(max_examples=50)
@given(st.permutations(list(range(8))), st.sampled_from(["uniform", "samples"]))
def test_order_does_not_change_a_buffer(order, weighting):
    """I2: the same updates in any order leave the same integer sums per base version."""
    updates = [make_update(seed, base=seed % 3, n_samples=seed * 100) for seed in range(8)]

    straight, shuffled = folded(updates, weighting), folded([updates[i] for i in order], weighting)

    assert straight.buckets.keys() == shuffled.buckets.keys()
    for base, bucket in straight.buckets.items():
        assert np.array_equal(bucket.sums.dense(), shuffled.buckets[base].sums.dense())
        assert (bucket.weight, bucket.count) == (shuffled.buckets[base].weight, shuffled.buckets[base].count)


def test_sums_are_exact_for_every_float16():
    """I2: the smallest and the largest float16 scales are folded without rounding."""
    scales = [2.0**-24, float(np.float16(0.1)), 65504.0]
    tensors = [SparseTensor(np.array([0]), np.array([False]), scale) for scale in scales]
    fold = Fold((1,), "uniform")
    for tensor in tensors:
        fold.add(Update(0, b"\0" * 8, 1, 1, Sparse.of([tensor])))

    assert fold.buckets[0].sums.dense()[0] == sum(int(scale * 2**UNIT_BITS) for scale in scales)
    assert all(scale * 2**FRACTION_BITS == int(scale * 2**FRACTION_BITS) for scale in scales)


def test_no_delay_gives_fedavg_to_the_last_bit():
    """I10: K = cohort, τ = 0 and s = 1 equal the sample-weighted mean computed in exact integers."""
    updates = [make_update(seed, n_samples=10 + 7 * seed) for seed in range(5)]
    before = tuple(np.arange(size, dtype=np.int64) for size in SIZES)
    fold = folded(updates, "samples")

    result = commit(before, STEP_EXPS, fold, {0: 1.0}, 1.0)

    total = sum(u.n_samples for u in updates)
    for i, (values, step_exp) in enumerate(zip(before, STEP_EXPS, strict=True)):
        exact = [0] * len(values)
        for update in updates:
            tensor = update.weights.tensors[i]
            unit = int(tensor.scale * 2**FRACTION_BITS) * update.n_samples
            for index, negative in zip(tensor.indices, tensor.negative, strict=True):
                exact[index] += -unit if negative else unit
        shift = FINE_BITS - step_exp - FRACTION_BITS
        move = [np.rint(np.ldexp(v * (1.0 / total), shift)) for v in map(float, exact)]
        assert np.array_equal(result[i], values + np.array(move).astype(np.int64))


def with_statistics(seed, base, n_samples, changes):
    update = make_update(seed, base, n_samples)
    own = [getattr(update, name) for name in update.__slots__[:-1]]
    return Update(*own, np.array(changes, dtype=np.float16))


def test_statistics_move_to_the_weighted_mean_of_the_devices():
    """I2: neither the server's learning rate nor staleness shrinks or stretches what devices observed."""
    fold = Fold((*SIZES, 2), "samples")
    fold.add(with_statistics(1, 0, 30, [4.0, -1.0]))
    fold.add(with_statistics(2, 3, 10, [0.0, 3.0]))
    before = tuple(np.zeros(size, dtype=np.int64) for size in (*SIZES, 2))
    weights = {0: 0.5, 3: 1.0}

    result = commit(before, (*STEP_EXPS, -16), fold, weights, server_lr=1.7, statistics=2)

    first = (0.5 * 30 * 4.0 + 10 * 0.0) / (0.5 * 30 + 10)
    second = (0.5 * 30 * -1.0 + 10 * 3.0) / (0.5 * 30 + 10)
    assert result[-1].tolist() == [round(v * 2 ** (16 + FINE_BITS)) for v in (first, second)]
    plain = commit(before[:-1], STEP_EXPS, folded_weights(fold), weights, server_lr=1.7)
    assert all(np.array_equal(a, b) for a, b in zip(result[:-1], plain, strict=True))


def folded_weights(fold):
    """The same buffer without its statistics."""
    twin = Fold(SIZES, "samples")
    for base, bucket in fold.buckets.items():
        sums = Sums(sum(SIZES))
        sums.add(np.arange(sum(SIZES)), bucket.sums.dense()[: sum(SIZES)])
        twin.buckets[base] = Bucket(sums, Sums(sum(SIZES)), bucket.weight, bucket.count)
    return twin


def test_one_update_of_a_large_buffer_is_not_rounded_away():
    """A change that is far below a grid step after division by a thousand updates still moves the model."""
    fold = Fold((1,), "uniform")
    fold.add(
        Update(0, b"\0" * 8, 1, 1, Sparse.of([SparseTensor(np.array([0]), np.array([False]), 2.0**-10)]))
    )
    fold.buckets[0].weight = 1000  # the others did not send this value

    (result,) = commit((np.zeros(1, dtype=np.int64),), (-16,), fold, {0: 1.0}, 1.0)

    share = 2.0**-10 / 1000 * 2 ** (16 + FINE_BITS)
    assert result.tolist() == [round(share)]
    assert 0 < share < 2**FINE_BITS / 2


def test_grid_values_saturate_instead_of_wrapping():
    """I5: a step that would leave the 32-bit grid stops at its edge."""
    before = (np.array([EXACT_MAX - 10]),)
    fold = Fold((1,), "uniform")
    fold.add(Update(0, b"\0" * 8, 1, 1, Sparse.of([SparseTensor(np.array([0]), np.array([False]), 1.0)])))

    result = commit(before, (-20,), fold, {0: 1.0}, 1.0)

    assert result[0][0] == (2**31 - 1) << FINE_BITS == EXACT_MAX


@settings(max_examples=30)
@given(st.lists(st.integers(0, 3), min_size=8, max_size=8), st.permutations(range(4)))
def test_partial_sums_of_shards_add_up(shard_of, order):
    """I2: however updates are dealt to shards, and in whatever order the shards are put together, the sums are the same."""
    updates = [make_update(seed, base=seed % 3) for seed in range(8)]
    shards = [Fold(SIZES, "uniform") for _ in range(4)]
    for update, shard in zip(updates, shard_of, strict=True):
        shards[shard].add(update)
    together = Fold(SIZES, "uniform")
    for number in order:
        together.merge(shards[number])

    for base, bucket in folded(updates).buckets.items():
        assert np.array_equal(bucket.sums.dense(), together.buckets[base].sums.dense())
        assert (bucket.weight, bucket.count) == (together.buckets[base].weight, together.buckets[base].count)


def test_sums_of_few_values_are_kept_sparse():
    """I6: up to a tenth of the values 16 B an entry, from then on 8 B a value; the numbers are the same."""
    sums, plain = Sums(1000), np.zeros(1000, dtype=np.int64)
    rng = np.random.default_rng(0)
    for count in range(1, 30):
        positions = rng.choice(1000, count, replace=False)
        values = rng.integers(-9, 9, count)
        sums.add(positions, values)
        plain[positions] += values

        assert np.array_equal(sums.dense(), plain)
        assert (sums.array is None) == (count * (count + 1) // 2 <= 100)


def test_many_sparse_sums_merge_exactly():
    """I2: the largest sums that validation lets through are added without rounding."""
    rng = np.random.default_rng(1)
    plain, shards = np.zeros(5000, dtype=np.int64), []
    for _ in range(40):
        shard = Sums(5000)
        positions = rng.choice(5000, 30, replace=False)
        values = rng.integers(-(2**62) // 40, 2**62 // 40, 30)
        shard.add(positions, values)
        plain[positions] += values
        shards.append(shard)
    together = Sums(5000)
    for shard in shards:
        together.merge(shard)

    assert np.array_equal(together.dense(), plain)
