"""Who gets which samples."""

import numpy as np
import pytest

from aggregator.simulate.config import Classes, DataSection, Dirichlet, Iid, Natural
from aggregator.simulate.errors import SimulationError
from aggregator.simulate.partition import deal, parts
from aggregator.simulate.sources import Data

CLASSES = 10
Y = np.repeat(np.arange(CLASSES), 100).astype(np.int64)
DATA = Data(np.zeros((1000, 2), np.float32), Y, np.zeros((1, 2), np.float32), Y[:1], np.arange(1000) // 125)


def dealt(partition, devices=20, seed=0, **fields):
    shards = deal(DATA, DataSection("mine", partition, **fields), devices, seed)
    return [shards.of(device) for device in range(len(shards))]


@pytest.mark.parametrize("partition", [Dirichlet(0.3), Dirichlet(100.0), Iid(), Natural()], ids=str)
def test_every_sample_is_on_one_device(partition):
    """Without a wanted size all samples are dealt, each once."""
    devices = None if isinstance(partition, Natural) else 20

    assert sorted(np.concatenate(dealt(partition, devices))) == list(range(1000))


def test_a_small_alpha_gives_devices_few_classes():
    """The largest class of a device has a larger share of it the smaller alpha is."""
    shares = [
        np.mean([np.bincount(Y[rows]).max() / len(rows) for rows in dealt(Dirichlet(alpha))])
        for alpha in (100.0, 1.0, 0.1)
    ]

    assert shares[0] < 0.3 < shares[1] < shares[2]


@pytest.mark.parametrize("per_device", [1, 3])
def test_devices_have_as_many_classes_as_asked(per_device):
    """Each has just so many, all classes are used, and no sample is on two devices."""
    rows = dealt(Classes(per_device))

    assert {len(np.unique(Y[mine])) for mine in rows} == {per_device}
    assert len(np.unique(Y[np.concatenate(rows)])) == CLASSES
    assert len(np.unique(np.concatenate(rows))) == sum(map(len, rows)) > 700


def test_quantity_skew_keeps_the_total():
    """Sizes differ more the larger sigma is, and no device is empty."""
    even, skewed = (list(map(len, dealt(Iid(), quantity_sigma=sigma))) for sigma in (0.0, 1.5))

    assert set(even) == {50}
    assert max(skewed) > 4 * min(skewed) > 0
    assert 950 <= sum(skewed) <= 1000


@pytest.mark.parametrize("partition", [Dirichlet(0.3), Classes(2), Iid()], ids=str)
def test_devices_share_samples_when_there_are_too_few(partition):
    """A wanted size is given, though in all it is more than there is."""
    rows = dealt(partition, devices=50, samples_per_device=60)

    assert {len(mine) for mine in rows} == {60}


def test_the_seed_decides():
    """The same seed deals the same, another differently."""
    one, again, other = (dealt(Dirichlet(0.3), seed=seed) for seed in (1, 1, 2))

    assert all((a == b).all() for a, b in zip(one, again, strict=True))
    assert any(len(a) != len(b) or (a != b).any() for a, b in zip(one, other, strict=True))


def test_a_device_holds_out_as_the_real_one_does():
    """Training and hold-out samples are the device's own, and disjoint."""
    section = DataSection("mine", Natural(), holdout=0.2, gap=1)
    shards = deal(DATA, section, None, 0)
    train, holdout = parts(shards, DATA, section, 3)

    assert len(holdout) == 25
    assert len(train) == 99
    assert not set(train) & set(holdout)
    assert set(train) | set(holdout) <= set(shards.of(3))


@pytest.mark.parametrize(
    ("partition", "devices", "words"),
    [
        (Natural(), 5, "has 8 owners"),
        (Iid(), None, "fleet.devices"),
        (Iid(), 2000, "samples_per_device"),
        (Classes(11), 5, "has 10 classes"),
    ],
)
def test_what_cannot_be_dealt_is_refused(partition, devices, words):
    """The message says what does not fit."""
    with pytest.raises(SimulationError, match=words):
        dealt(partition, devices)
