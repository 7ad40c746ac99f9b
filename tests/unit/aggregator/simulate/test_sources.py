"""Where samples come from."""

import gzip

import numpy as np
import pytest

from aggregator.simulate import models, sources
from aggregator.simulate.config import DataSection, ModelSection, Natural
from aggregator.simulate.errors import SimulationError
from aggregator.simulate.partition import deal, parts

X = np.arange(20, dtype=np.float32).reshape(10, 2)
Y = np.array([0, 1] * 5, dtype=np.int64)


def test_a_file_of_ones_own_is_split_for_evaluation(tmp_path):
    """The share is set apart, every sample is on one side, and its owner stays with it."""
    np.savez(tmp_path / "d.npz", x=X, y=Y, owner=[f"w{i}" for i in range(10)])
    data = sources.load(DataSection(str(tmp_path / "d.npz"), test_share=0.3))

    assert len(data.x_test) == 3
    assert sorted(np.concatenate([data.x, data.x_test])[:, 0].tolist()) == X[:, 0].tolist()
    assert (data.owner == data.x[:, 0] // 2).all()
    assert (data.y_test == data.x_test[:, 0] // 2 % 2).all()


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"y": Y}, "x is missing"),
        ({"x": X.astype(np.float64), "y": Y}, "x is float64"),
        ({"x": X, "y": Y[:3]}, "y has 3 entries for 10 samples"),
        ({"x": X, "y": Y, "owner": Y / 2}, "owner is float64"),
        ({"x": X * np.nan, "y": Y}, "not finite"),
        ({"x": X, "y": Y, "x_test": X}, "needs a y_test"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path, arrays, words):
    """The message names file, array and what is wrong with it."""
    np.savez(tmp_path / "d.npz", **arrays)

    with pytest.raises(SimulationError, match=rf"d\.npz: .*{words}"):
        sources.load(DataSection(str(tmp_path / "d.npz")))


def test_a_missing_source_says_what_there_is(tmp_path):
    """A misspelt name is taken for a path, so the message lists the names."""
    with pytest.raises(SimulationError, match="fashion-mnist, watch, or the path"):
        sources.load(DataSection(str(tmp_path / "fashion")))


def test_fashion_mnist_says_which_package_brings_it(monkeypatch, tmp_path):
    """Without the Debian package the error is the command that installs it."""
    monkeypatch.setattr(sources, "FASHION_MNIST", tmp_path)

    with pytest.raises(SimulationError, match="apt-get install dataset-fashion-mnist"):
        sources.load(DataSection("fashion-mnist"))


def test_fashion_mnist_is_read_from_its_files(monkeypatch, tmp_path):
    """Images become floats from 0 to 1 with one channel; a cut file is refused."""
    monkeypatch.setattr(sources, "FASHION_MNIST", tmp_path)
    for part, count in (("train", 3), ("t10k", 2)):
        images = bytes([0, 0, 8, 3, 0, 0, 0, count, 0, 0, 0, 2, 0, 0, 0, 2]) + bytes([0, 255, 51, 0]) * count
        labels = bytes([0, 0, 8, 1, 0, 0, 0, count]) + bytes(range(count))
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    data = sources.load(DataSection("fashion-mnist"))

    assert data.x.shape == (3, 1, 2, 2)
    assert data.x[0].ravel().tolist() == pytest.approx([0, 1, 0.2, 0])
    assert data.y_test.tolist() == [0, 1]

    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"\0\0\x08\x01\0\0"))
    with pytest.raises(SimulationError, match="t10k-labels"):
        sources.load(DataSection("fashion-mnist"))


def test_data_must_fit_the_model(tmp_path):
    """A bundle that was made for other samples is refused with both forms."""
    data = sources.Data(X, Y, X, Y)
    bundle = models.build(ModelSection(builtin="mlp", hidden=(3,)), data, 0, tmp_path / "a.bundle")
    other = sources.Data(X[:, :1], Y, X[:, :1], Y)

    with pytest.raises(SimulationError, match=r"the data does not fit the model: x is float32 \[4, 1\]"):
        models.build(ModelSection(bundle=str(bundle.path)), other, 0, tmp_path / "b.bundle")


def test_the_builtin_networks_have_the_documented_sizes(tmp_path):
    """The MLP 784-100-10 has 79,510 parameters, the CNN 54,314; initial values follow from the seed."""
    x, y = np.zeros((10, 1, 28, 28), np.float32), np.arange(10, dtype=np.int64)
    data = sources.Data(x, y, x, y)
    sizes = {
        name: models.build(ModelSection(builtin=name), data, 0, tmp_path / name).manifest.parameters
        for name in ("mlp", "cnn")
    }
    again, other = (
        models.build(ModelSection(builtin="mlp"), data, seed, tmp_path / str(seed)).path.read_bytes()
        for seed in (0, 1)
    )

    assert sizes == {"mlp": 79_510, "cnn": 54_314}
    assert again == (tmp_path / "mlp").read_bytes() != other


def test_the_demos_recordings_have_owners_and_unseen_people():
    """Sixteen arms are devices; two people are for evaluation."""
    section = DataSection("watch", Natural(), holdout=0.2, gap=1)
    data = sources.load(section)
    shards = deal(data, section, None, 0)

    assert len(shards) == 16
    assert data.x.shape[1:] == (6, 100)
    assert len(data.y_test) == len(data.x_test) > 300
    train, holdout = parts(shards, data, section, 0)
    assert len(train) > len(holdout) > 10
