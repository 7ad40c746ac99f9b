"""Sparse ternary updates with error feedback."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.compress import compress
from edge_client.wire import messages, sparse
from edge_client.wire.weights import Dense

SIZES = st.lists(st.integers(1, 80), min_size=1, max_size=5)


def delta_of(rng, sizes, scale=1.0):
    return [(rng.standard_normal(n) * scale).astype(np.float32) for n in sizes]


def floats(residual):
    return np.frombuffer(residual, "<f2").astype(np.float32)


def sent(result, sizes):
    if isinstance(result.weights, Dense):
        return result.weights.values.astype(np.float32)
    return np.concatenate([t.dense(n) for t, n in zip(result.weights.tensors, sizes, strict=True)])


@given(
    st.integers(0, 2**32),
    SIZES,
    st.floats(0.01, 1),
    st.tuples(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3)),
    st.sampled_from(messages.CODECS),
)
def test_norm_of_the_encoded_update_is_bounded(seed, sizes, density, bounds, codec):
    """What the bridge decodes never has a norm above the plan's, whatever the codec and the residual."""
    norm_max, scale = bounds
    rng = np.random.default_rng(seed)
    residual = (rng.standard_normal(sum(sizes)) * scale).astype("<f2").tobytes()
    result = compress(delta_of(rng, sizes, scale), residual, density, norm_max, codec)
    update = sparse.Update(1, bytes(8), 0, 10, result.weights)

    got = sparse.decode(sparse.encode(update, sizes, result.codec), sizes)
    assert got.norm() <= norm_max * (1 + 1e-6)


@given(
    st.integers(0, 2**32),
    SIZES,
    st.lists(st.tuples(st.floats(0.01, 1), st.booleans()), min_size=2, max_size=8),
    st.sampled_from(["ternary", "q4", "q8"]),
)
def test_nothing_is_lost_when_the_density_changes(seed, sizes, rounds, codec):
    """I4: over updates of different densities, refused ones among them, all sent plus the residual is all trained."""
    rng = np.random.default_rng(seed)
    residual, trained, arrived, size = None, 0.0, 0.0, 0.0
    for density, accepted in rounds:
        delta = delta_of(rng, sizes)
        result = compress(delta, residual, density, 1e6, codec)
        trained += np.concatenate(delta).astype(np.float64)
        size += float(np.abs(floats(result.residual_kept)).max())
        if accepted:
            arrived += sent(result, sizes).astype(np.float64)
        residual = result.residual_accepted if accepted else result.residual_kept

    np.testing.assert_allclose(arrived + floats(residual), trained, atol=1e-3 * size)


@given(st.integers(0, 2**32), SIZES, st.floats(0.01, 1), st.sampled_from(messages.CODECS))
def test_nothing_is_lost(seed, sizes, density, codec):
    """What was sent plus the accepted residual is u, and the kept residual is u, to float16."""
    rng = np.random.default_rng(seed)
    delta = delta_of(rng, sizes)
    residual = rng.standard_normal(sum(sizes)).astype("<f2").tobytes()
    result = compress(delta, residual, density, 1e6, codec)
    u = np.concatenate(delta) + floats(residual)

    np.testing.assert_allclose(floats(result.residual_kept), u, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(
        sent(result, sizes) + floats(result.residual_accepted), u, rtol=2e-3, atol=2e-3 * np.abs(u).max()
    )


def test_the_largest_values_are_kept_across_tensors():
    """Density counts over all tensors; each tensor's scale is the mean magnitude of what it keeps."""
    delta = [np.array([0.1, -4.0, 0.2, 2.0], np.float32), np.array([0.3, 0.1, 8.0, 0.0], np.float32)]
    first, second = compress(delta, None, 3 / 8, 100.0).weights.tensors

    assert first.indices.tolist() == [1, 3]
    assert first.negative.tolist() == [True, False]
    assert first.scale == 3.0
    assert (second.indices.tolist(), second.scale) == ([2], 8.0)


def test_clipping_is_of_the_delta_not_of_the_residual():
    """The delta is clipped to norm_max before the residual joins it; the kept residual shows it."""
    result = compress([np.array([30.0, 40.0], np.float32)], None, 1.0, 5.0)

    np.testing.assert_allclose(floats(result.residual_kept), [3.0, 4.0], rtol=1e-3)


def test_an_update_over_the_bound_is_scaled_and_the_rest_kept():
    """A large residual is paid out over several updates instead of being refused."""
    residual = np.array([6.0, 0.0], "<f2").tobytes()
    result = compress([np.zeros(2, np.float32)], residual, 0.5, 2.0)

    assert result.weights.tensors[0].scale == pytest.approx(2.0, rel=1e-3)
    np.testing.assert_allclose(floats(result.residual_accepted), [4.0, 0.0], rtol=1e-2)


def test_no_change_is_an_empty_update():
    """All zeros give no indices, and the update still encodes."""
    result = compress([np.zeros(5, np.float32), np.zeros(3, np.float32)], None, 0.5, 1.0)

    assert [len(t.indices) for t in result.weights.tensors] == [0, 0]
    data = sparse.encode(sparse.Update(0, bytes(8), 0, 1, result.weights), (5, 3))
    assert sparse.decode(data, (5, 3)).norm() == 0


def test_tiny_values_stay_in_the_residual():
    """Values below what a float16 scale can state are not sent as zeros of both signs."""
    result = compress([np.full(4, 1e-9, np.float32)], None, 1.0, 1.0)

    assert len(result.weights.tensors[0].indices) == 0


def test_residual_saturates():
    """A residual beyond float16 becomes its largest finite value, never infinite."""
    result = compress([np.array([1e6, 1.0], np.float32)], None, 0.5, 1e9)

    assert np.isfinite(floats(result.residual_kept)).all()


def test_unfit_input_is_a_value_error():
    """A residual of another model, or a value that is not finite, is refused."""
    with pytest.raises(ValueError, match="does not fit"):
        compress([np.zeros(4, np.float32)], bytes(6), 0.5, 1.0)
    with pytest.raises(ValueError, match="not finite"):
        compress([np.array([np.nan], np.float32)], None, 0.5, 1.0)


def test_error_feedback_transmits_everything_in_time():
    """Repeating one delta, the sum of sparse updates approaches the sum of deltas."""
    rng = np.random.default_rng(1)
    delta = delta_of(rng, [50])
    residual, total = None, np.zeros(50, np.float32)
    for _ in range(60):
        result = compress(delta, residual, 0.2, 1e3)
        total += sent(result, [50])
        residual = result.residual_accepted

    assert np.linalg.norm(total / 60 - delta[0]) < 0.1 * np.linalg.norm(delta[0])


def test_more_bits_come_closer_to_the_values():
    """With the same values kept, q8 is nearer to them than q4, and q4 than ternary; dense forms are nearest."""
    rng = np.random.default_rng(3)
    delta = [rng.standard_normal(n).astype(np.float32) ** 3 for n in (300, 40)]
    errors = {}
    for codec in messages.CODECS:
        result = compress(delta, None, 0.2, 1e6, codec)
        errors[codec] = float(np.linalg.norm(floats(result.residual_accepted)))

    assert errors["dense-fp32"] <= errors["dense-fp16"] < errors["q8"] < errors["q4"] < errors["ternary"]


def test_sign_sends_every_value_in_a_bit():
    """The codec `sign` keeps all values, and its frame has one bit for each."""
    delta = [np.random.default_rng(0).standard_normal(8000).astype(np.float32)]
    result = compress(delta, None, 0.01, 1e6, "sign")
    data = sparse.encode(sparse.Update(0, bytes(8), 0, 1, result.weights), [8000], result.codec)

    assert result.weights.kept == 8000
    assert len(data) == 30 + 2 + 2 + 1000


def test_an_unknown_codec_is_named():
    """A codec this device does not speak is an error that lists those it does."""
    with pytest.raises(ValueError, match="unknown codec 'zip'; known: ternary, q4"):
        compress([np.ones(4, np.float32)], None, 0.5, 1.0, "zip")
