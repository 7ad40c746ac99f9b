"""Loading, checking and dealing out a device's data."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client import samples
from edge_client.samples import DataError, batches, load, split
from edge_client.trainer_protocol import DataSource
from edge_client.wire.messages import DataSchema


def write(path, **arrays):
    np.savez(path, **arrays)
    return DataSource(str(path))


def good(n=20):
    return {"x": np.ones((n, 6, 100), np.float32), "y": np.arange(n, dtype=np.int64) % 7}


def test_a_good_file_is_loaded_and_described(tmp_path):
    """Shape and classes come from the arrays; the last fifth is held out after a gap of one."""
    data = load(write(tmp_path / "d.npz", **good()))

    assert data.schema == DataSchema(shape=(6, 100), n_classes=7)
    assert data.train.tolist() == list(range(15))
    assert data.holdout.tolist() == [16, 17, 18, 19]


def test_hold_out_is_the_end_of_each_segment():
    """Every recording gives its own end to the hold-out, also when recordings are interleaved."""
    segment = np.array([0, 1] * 10)
    train, held = split(segment, 0.2, 1)

    assert train.tolist() == [0, 2, 4, 6, 8, 10, 12, 1, 3, 5, 7, 9, 11, 13]
    assert held.tolist() == [16, 18, 17, 19]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.floats(0, 0.9), st.integers(0, 3))
def test_split_is_disjoint_and_keeps_the_gap(segment, holdout, gap):
    """No row is in both parts, and training rows end at least `gap` rows before a segment's hold-out."""
    segment = np.array(segment)
    train, held = split(segment, holdout, gap)

    assert not set(train) & set(held)
    for name in np.unique(segment):
        rows = np.flatnonzero(segment == name).tolist()
        mine = [rows.index(r) for r in train if segment[r] == name]
        theirs = [rows.index(r) for r in held if segment[r] == name]
        if mine and theirs:
            assert max(mine) + gap < min(theirs)


def labelled(target, y):
    """A good file but for y, declared to be of this kind; y None leaves it out."""
    arrays = {"x": good()["x"], **({} if y is None else {"y": y})}
    return lambda path: msgspec.structs.replace(write(path / "d.npz", **arrays), target=target)


@pytest.mark.parametrize(
    ("target", "y", "schema"),
    [
        ("labels", np.eye(20, 4, dtype=np.uint8), DataSchema((6, 100), 4, target="labels")),
        ("labels", np.ones(20, np.uint8), DataSchema((6, 100), 1, target="labels")),
        ("values", np.ones((20, 2, 3), np.float32), DataSchema((6, 100), target="values", target_shape=(2, 3))),
        ("values", np.ones(20, np.float32), DataSchema((6, 100), target="values", target_shape=(1,))),
        ("none", None, DataSchema((6, 100), target="none")),
        ("none", np.array(["not", "read"]), DataSchema((6, 100), target="none")),
    ],
)  # fmt: skip
def test_each_kind_of_target_is_loaded_and_described(tmp_path, target, y, schema):
    """Multi-hot labels, values of any shape and samples alone; one label or value a sample may be stored flat."""
    data = load(labelled(target, y)(tmp_path))

    assert data.schema == schema
    assert (data.y is None) == (target == "none")
    assert len(data) == 20


@pytest.mark.parametrize(
    ("target", "y", "reason"),
    [
        ("class", np.zeros((20, 2), np.int64), r"y is int64 \[20, 2\], which is not int64 \[n\]"),
        ("labels", np.zeros((20, 2), np.int64), r"y is int64, not uint8; a target of kind labels is uint8 \[n, labels\]"),
        ("labels", np.full((20, 2), 2, np.uint8), "a label that is neither 0 nor 1"),
        ("labels", np.zeros((19, 2), np.uint8), "do not go together"),
        ("labels", np.zeros((20, 2, 2), np.uint8), r"not uint8 \[n, labels\]"),
        ("values", np.zeros((20, 2)), "y is float64, not float32"),
        ("values", np.full((20, 2), np.inf, np.float32), "y holds values that are not finite"),
        ("values", np.array(1.0, np.float32), r"y is float32 \[\], which is not"),
        ("values", None, "holds no array 'y'"),
    ],
)  # fmt: skip
def test_targets_of_another_form_are_refused(tmp_path, target, y, reason):
    """I8: what y is and what it should be is said, never a value of it."""
    with pytest.raises(DataError, match=reason) as caught:
        load(labelled(target, y)(tmp_path))

    assert caught.value.code == "bad_data"


def test_a_job_without_targets_takes_any_labels(tmp_path):
    """Reconstruction needs the sample's shape and nothing else; labels of another kind are a mismatch elsewhere."""
    data = load(labelled("values", np.ones(20, np.float32))(tmp_path))
    samples.check(data, DataSchema((6, 100), target="none"))

    with pytest.raises(DataError, match=r"values of shape \[1\] in the data, one of 2 classes in the job"):
        samples.check(data, DataSchema((6, 100), 2))


def broken_files():
    bad = good()
    yield "no array 'y'", {"x": bad["x"]}
    yield "x is float64", bad | {"x": bad["x"].astype(np.float64)}
    yield "y is int32", bad | {"y": bad["y"].astype(np.int32)}
    yield "do not go together", bad | {"y": bad["y"][:-1]}
    yield "x is float32 .20.; a sample needs an axis", bad | {"x": bad["x"][:, 0, 0]}
    yield "holds no samples", {"x": bad["x"][:0], "y": bad["y"][:0]}
    yield "negative", bad | {"y": bad["y"] - 1}
    yield "not finite", bad | {"x": np.where(np.arange(100) == 3, np.nan, bad["x"]).astype(np.float32)}
    yield "segment", bad | {"segment": np.zeros(3, np.int64)}
    yield "not a readable", {"x": np.array([object()], dtype=object), "y": bad["y"]}


@pytest.mark.parametrize(("reason", "arrays"), list(broken_files()))
def test_malformed_data_is_refused(tmp_path, reason, arrays):
    """Data not of the declared form, pickles included, is `bad_data` with the reason."""
    with pytest.raises(DataError, match=reason) as caught:
        load(write(tmp_path / "d.npz", **arrays))

    assert caught.value.code == "bad_data"


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 truncated"])
def test_unreadable_file_is_refused(tmp_path, content):
    """A missing, empty or damaged file is `bad_data`; the server hears so, and therefore not its path."""
    path = tmp_path / "d.npz"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(DataError, match=r"^the file (cannot be read: No such|is not a readable)") as caught:
        load(DataSource(str(path)))
    assert str(tmp_path) not in str(caught.value)


def test_oversized_data_is_refused_before_it_is_read(tmp_path, monkeypatch):
    """The unpacked size is checked against its limit first."""
    monkeypatch.setattr(samples, "DATA_BYTES_MAX", 1000)

    with pytest.raises(DataError, match="1000 B is the most"):
        load(write(tmp_path / "d.npz", **good()))


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        (DataSchema((6, 128), 7, ("channel", "time")), r"axis 1 \(time\) is 100 in the data, 128 in the job"),
        (DataSchema((3, 100), 7), "axis 0 is 6 in the data, 3 in the job"),
        (DataSchema((600,), 7), r"\[6, 100\] in the data, \[600\] in the job"),
        (DataSchema((6, 100), 5), "a label is beyond the job's 5 classes"),
    ],
)
def test_mismatch_names_the_axis(tmp_path, schema, reason):
    """Data that does not fit the job is `schema_mismatch`, naming the axis by number and name."""
    data = load(write(tmp_path / "d.npz", **good()))

    with pytest.raises(DataError, match=reason) as caught:
        samples.check(data, schema)

    assert caught.value.code == "schema_mismatch"


def test_batches_are_seeded_full_and_fair():
    """Each pass deals every row at most once, all batches are full, and a seed repeats them."""
    rows = np.arange(100, 110)
    first, again = (batches(rows, 4, np.random.default_rng(5)) for _ in range(2))
    dealt = [next(first) for _ in range(6)]

    assert [b.tolist() for b in dealt] == [next(again).tolist() for _ in range(6)]
    assert {len(b) for b in dealt} == {4}
    assert len(set(np.concatenate(dealt[:2]))) == 8
    assert set(np.concatenate(dealt)) <= set(rows)


def test_a_batch_is_never_larger_than_the_data():
    """Fewer rows than the batch size give batches of all rows; no rows give none."""
    assert sorted(next(batches(np.arange(3), 32, np.random.default_rng(0)))) == [0, 1, 2]
    assert list(batches(np.arange(0), 32, np.random.default_rng(0))) == []
