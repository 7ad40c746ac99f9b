"""Models on the grid: key-frames, deltas, hashes."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.wire import frame, grid
from edge_client.wire.errors import RemoteWireError

# Large enough to need long codes, small enough that a unary quotient stays short beside small neighbours.
TENSOR = st.lists(st.one_of(st.just(0), st.integers(-3000, 3000)), min_size=1, max_size=60)
MODEL = st.lists(TENSOR, min_size=1, max_size=4).map(lambda m: tuple(np.array(t, dtype=np.int32) for t in m))


def sizes(model):
    return tuple(len(t) for t in model)


def same(a, b):
    return [t.tolist() for t in a] == [t.tolist() for t in b]


def example():
    return (np.array([0, 5, 0, 0, -70, 1], np.int32), np.zeros(3, np.int32), np.array([9, -9], np.int32))


@given(MODEL, st.integers(0, 2**32 - 1))
def test_keyframes_round_trip(model, version):
    """A key-frame gives back version and values."""
    got = grid.decode(grid.encode_keyframe(version, model), sizes(model))

    assert (got.version, got.base_version, got.keyframe) == (version, version, True)
    assert same(grid.apply(None, got, None), model)


@given(st.data(), MODEL)
def test_deltas_lead_from_old_to_new(data, old):
    """Applying the delta to the old model gives the new one, exactly."""
    steps = st.integers(-5, 5)
    new = tuple(
        (t + np.array(data.draw(st.lists(steps, min_size=len(t), max_size=len(t))))).astype(np.int32)
        for t in old
    )
    got = grid.decode(grid.encode_delta(8, 7, new, old), sizes(old))

    assert (got.version, got.base_version, got.keyframe) == (8, 7, False)
    assert same(grid.apply(old, got, 7), new)


@given(st.data(), MODEL)
def test_deltas_add_in_any_grouping(data, first):
    """I5: single deltas, merged ones and merged merged ones lead to the same values and hash."""
    units = st.sampled_from([-32, -8, -1, 0, 0, 0, 1, 4, 32])
    models = [first]
    for _ in range(4):
        models.append(
            tuple(
                (t + np.array(data.draw(st.lists(units, min_size=len(t), max_size=len(t))))).astype(np.int32)
                for t in models[-1]
            )
        )
    steps = [
        grid.decode(grid.encode_delta(v + 1, v, models[v + 1], models[v]), sizes(first)) for v in range(4)
    ]
    cut = data.draw(st.integers(1, 3))
    halves = [grid.decode(grid.merge(part), sizes(first)) for part in (steps[:cut], steps[cut:])]

    for way in (steps, halves, [grid.decode(grid.merge(halves), sizes(first))]):
        values, version = first, 0
        for step in way:
            values, version = grid.apply(values, step, version), step.version
        assert version == 4
        assert same(values, models[4])
    assert grid.merge(halves) == grid.merge(steps) == grid.encode_delta(4, 0, models[4], first)


def test_only_deltas_that_follow_each_other_are_merged():
    """A gap between two deltas, a key-frame or nothing at all is refused."""
    model = example()
    one, two = (grid.decode(grid.encode_delta(v + 1, v, model, model), sizes(model)) for v in (0, 2))
    whole = grid.decode(grid.encode_keyframe(1, model), sizes(model))
    for steps in ([one, two], [whole], []):
        with pytest.raises(ValueError, match="delta"):
            grid.merge(steps)


def test_equal_magnitudes_cost_positions_and_signs_only():
    """A ternary tensor has no magnitude bits, whatever its power of two is."""
    old = (np.zeros(1000, np.int32),)
    new = [np.zeros(1000, np.int32)]
    new[0][::10] = 1
    one = grid.encode_delta(1, 0, new, old)
    for exponent in (1, 12, 30):
        other = grid.encode_delta(1, 0, (new[0] << exponent,), old)
        assert len(other) == len(one)
    new[0][0] = 3
    assert len(grid.encode_delta(1, 0, new, old)) >= len(one) + 12


def test_memory_of_a_decoder_stays_below_its_bound():
    """I6: decoding a key-frame takes no more memory than `decode` states, plus what Python itself needs."""
    model = tuple(np.random.default_rng(t).integers(-9000, 9000, 20_000).astype(np.int32) for t in range(10))
    data = grid.encode_keyframe(1, model)
    values = sum(len(t) for t in model)
    tracemalloc.start()
    grid.decode(data, sizes(model))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak <= 104 * values + 8 * len(data) + 100_000


def test_a_hostile_table_is_refused():
    """A set reserved bit, magnitudes where none are sent, and a unit beyond the grid are errors with a code."""
    model = (np.array([1, -1], np.int32),)
    body = bytearray(frame.decode(grid.encode_keyframe(4, model))[2])
    at = 19  # the entry's fields, behind the header and a one-byte count
    assert body[at : at + 2] == bytes((0x1F, 0x00))
    for fields, code in ((0x041F, "bad_stream"), (0x0021, "bad_stream"), (0x03FF, "bad_index")):
        body[at : at + 2] = fields.to_bytes(2, "little")
        with pytest.raises(RemoteWireError) as caught:
            grid.decode(frame.encode(frame.Kind.KEYFRAME, bytes(body)), (2,))

        assert caught.value.code == code


def test_extreme_values_round_trip():
    """The saturation bounds of the grid survive a key-frame."""
    model = (np.array([grid.GRID_MAX, -grid.GRID_MAX], np.int32),)

    assert same(grid.decode(grid.encode_keyframe(0, model), (2,)).values, model)


def test_a_delta_on_another_version_is_resync():
    """A delta neither applies to nothing, nor to another version, nor to another model of that version."""
    old = example()
    new = tuple(t + 1 for t in old)
    step = grid.decode(grid.encode_delta(2, 1, new, old), sizes(old))
    for values, version in ((None, None), (old, 0), (new, 1)):
        with pytest.raises(RemoteWireError) as caught:
            grid.apply(values, step, version)

        assert caught.value.code == "resync"


def test_any_changed_byte_or_truncation_is_detected():
    """Each single-byte change and each prefix is refused, also a prefix of the body under a right CRC."""
    model = example()
    data = grid.encode_keyframe(4, model)
    for at in range(len(data)):
        broken = bytearray(data)
        broken[at] ^= 0x10
        for candidate in (bytes(broken), data[:at]):
            with pytest.raises(RemoteWireError):
                grid.decode(candidate, sizes(model))
    body = frame.decode(data)[2]
    for end in range(len(body)):
        with pytest.raises(RemoteWireError):
            grid.decode(frame.encode(frame.Kind.KEYFRAME, bytes(body[:end])), sizes(model))


@given(st.data())
def test_hostile_bodies_raise_only_the_wire_error(data):
    """A body with bytes replaced decodes to int32 tensors of the right sizes, or is a RemoteWireError."""
    model = data.draw(st.sampled_from([example(), tuple(4 * np.sign(t) for t in example())]))
    body = bytearray(frame.decode(grid.encode_keyframe(4, model))[2])
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        got = grid.decode(frame.encode(frame.Kind.KEYFRAME, bytes(body)), sizes(model))
    except RemoteWireError:
        return
    assert sizes(got.values) == sizes(model)
    assert {t.dtype for t in got.values} == {np.dtype(np.int32)}


@given(st.binary(max_size=200), st.sampled_from(frame.Kind))
def test_any_bytes_raise_only_the_wire_error(data, kind):
    """Whatever arrives, bare or framed, decodes or is a RemoteWireError."""
    for candidate in (data, frame.encode(kind, data)):
        try:
            grid.decode(candidate, (6, 3, 2))
        except RemoteWireError:
            continue


def test_another_model_is_bad_tensors():
    """A key-frame of a model with other tensors is refused."""
    data = grid.encode_keyframe(0, example())
    for other in ((6, 3), (6, 3, 1)):
        with pytest.raises(RemoteWireError) as caught:
            grid.decode(data, other)

        assert caught.value.code == "bad_tensors"


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=50), st.integers(4, 20))
def test_rounding_stays_within_half_a_step(values, bits):
    """Values on the grid differ by at most half a step; grid points come back exactly."""
    array = np.array(values, dtype=np.float32)
    exponent = grid.step_exponent(float(np.abs(array).max()), bits)
    points = grid.to_grid(array, exponent)
    back = grid.from_grid(points, exponent)

    assert np.abs(back.astype(np.float64) - array).max() <= 2.0**exponent / 2
    assert grid.to_grid(back, exponent).tolist() == points.tolist()


def test_rounding_saturates():
    """A value beyond the grid becomes its bound, with its sign."""
    assert grid.to_grid(np.array([1e30, -1e30], np.float32), 0).tolist() == [grid.GRID_MAX, -grid.GRID_MAX]


def test_hash_is_of_all_values_in_order():
    """Moving a value between tensors keeps the hash's input; changing one changes the hash."""
    a, b = np.array([1, 2], np.int32), np.array([3], np.int32)

    assert grid.model_hash((a, b)) == grid.model_hash((np.array([1, 2, 3], np.int32),))
    assert grid.model_hash((a, b)) != grid.model_hash((b, a))
