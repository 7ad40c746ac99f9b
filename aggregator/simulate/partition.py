"""Which device has which samples. Pure."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aggregator.simulate.config import Classes, DataSection, Dirichlet, Iid, Natural
from aggregator.simulate.draws import Purpose, rng
from aggregator.simulate.errors import SimulationError
from aggregator.simulate.sources import Data, Ints
from edge_client.samples import split


@dataclass(frozen=True, slots=True)
class Shards:
    """Row numbers of all devices, one after another; `edges` int64 [devices + 1] are where each device's begin."""

    rows: npt.NDArray[np.int32]
    edges: Ints

    def __len__(self) -> int:
        """Number of devices."""
        return len(self.edges) - 1

    def of(self, device: int) -> npt.NDArray[np.int32]:
        """Row numbers of one device."""
        return self.rows[self.edges[device] : self.edges[device + 1]]


def deal(data: Data, section: DataSection, devices: int | None, seed: int) -> Shards:
    """Deal the samples to devices; raise SimulationError when they cannot be.

    When the devices are to have more samples in all than there are, a sample may be on several of them.
    """
    if isinstance(section.partition, Natural):
        return _natural(data, devices)
    if devices is None:
        raise SimulationError(
            "fleet.devices: say how many there are; only a natural partition has a number of its own"
        )
    draw = rng(seed, Purpose.PARTITION)
    sizes = _sizes(len(data.x), section, devices, draw)
    match section.partition:
        case Dirichlet(alpha):
            dealt = _dirichlet(_labels(data, "dirichlet"), sizes, alpha, draw)
        case Classes(per_device):
            dealt = _classes(_labels(data, "classes"), sizes, per_device, draw)
        case Iid():
            dealt = _iid(len(data.x), sizes, draw)
    edges = np.concatenate([[0], np.cumsum([len(rows) for rows in dealt])]).astype(np.int64)
    return Shards(np.concatenate(dealt).astype(np.int32), edges)


def parts(shards: Shards, data: Data, section: DataSection, device: int) -> tuple[Ints, Ints]:
    """Row numbers that a device trains on and holds out, split as the device itself does."""
    rows = shards.of(device).astype(np.int64)
    segment = np.zeros(len(rows), np.int64) if data.segment is None else data.segment[rows]
    train, holdout = split(segment, section.holdout, section.gap)
    return rows[train], rows[holdout]


def _natural(data: Data, devices: int | None) -> Shards:
    if data.owner is None:
        raise SimulationError(
            "data.partition natural: the data has no owners; add an array owner [n] to the .npz file"
        )
    order = np.argsort(data.owner, kind="stable")
    _, counts = np.unique(data.owner, return_counts=True)
    if devices is not None and devices != len(counts):
        raise SimulationError(
            f"fleet.devices is {devices}, but the data has {len(counts)} owners: leave it out"
        )
    return Shards(order.astype(np.int32), np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))


def _labels(data: Data, kind: str) -> Ints:
    if data.y is None or data.y.dtype != np.int64 or data.y.ndim != 1:
        raise SimulationError(f"data.partition {kind}: y is not classes, int64 [n]; use iid or natural")
    return np.asarray(data.y, dtype=np.int64)


def _sizes(samples: int, section: DataSection, devices: int, draw: np.random.Generator) -> Ints:
    """Number of samples of each device, at least one."""
    mean = section.samples_per_device or samples / devices
    factors = draw.lognormal(0.0, section.quantity_sigma, devices)  # of 1 each when sigma is 0
    sizes: Ints = np.maximum(1, np.floor(mean * devices * factors / factors.sum() + 1e-9)).astype(np.int64)
    if section.samples_per_device is None and devices > samples:
        raise SimulationError(
            f"fleet.devices: {devices} devices for {samples} samples; set data.samples_per_device, "
            "and devices share samples"
        )
    return sizes


class _Deck:
    """Row numbers in a random order; shuffled again when they run out, if they may be dealt more than once."""

    def __init__(self, rows: Ints, draw: np.random.Generator, *, again: bool) -> None:
        self._rows, self._draw, self._again = draw.permutation(rows), draw, again
        self._at = 0

    @property
    def left(self) -> int:
        """How many can be taken still."""
        return (1 << 62) * bool(len(self._rows)) if self._again else len(self._rows) - self._at

    def take(self, count: int) -> Ints:
        """The next `count` rows."""
        taken = [self._rows[self._at : self._at + count]]
        self._at += len(taken[0])
        while (missing := count - sum(map(len, taken))) > 0:
            self._rows = self._draw.permutation(self._rows)
            taken.append(self._rows[:missing])
            self._at = len(taken[-1])
        return np.concatenate(taken)


def _iid(samples: int, sizes: Ints, draw: np.random.Generator) -> list[Ints]:
    deck = _Deck(np.arange(samples, dtype=np.int64), draw, again=int(sizes.sum()) > samples)
    return [deck.take(int(size)) for size in sizes]


def _dirichlet(y: Ints, sizes: Ints, alpha: float, draw: np.random.Generator) -> list[Ints]:
    """A class that is used up is replaced by what the device's other shares say of those that are left."""
    again = int(sizes.sum()) > len(y)
    decks = [_Deck(np.flatnonzero(y == c), draw, again=again) for c in np.unique(y)]
    dealt = []
    for size in sizes.tolist():
        shares = np.maximum(draw.dirichlet(np.full(len(decks), alpha)), 1e-12)
        left = np.array([deck.left for deck in decks])
        counts = np.zeros(len(decks), np.int64)
        while counts.sum() < size:
            open_shares = np.where(counts < left, shares, 0.0)
            more = draw.multinomial(size - counts.sum(), open_shares / open_shares.sum())
            counts = np.minimum(counts + more, left)
        dealt.append(np.concatenate([deck.take(int(n)) for deck, n in zip(decks, counts, strict=True)]))
    return dealt


def _classes(y: Ints, sizes: Ints, per_device: int, draw: np.random.Generator) -> list[Ints]:
    """Each device has the classes that fewest others have so far; a class is divided among those that have it."""
    names = np.unique(y)
    if per_device > len(names):
        raise SimulationError(
            f"data.partition.per_device is {per_device}, but the data has {len(names)} classes"
        )
    uses, chosen = np.zeros(len(names)), np.zeros((len(sizes), per_device), np.int64)
    for device in range(len(sizes)):
        chosen[device] = np.argsort(uses + draw.random(len(names)))[:per_device]
        uses[chosen[device]] += 1
    dealt: list[list[Ints]] = [[] for _ in sizes]
    for index, name in enumerate(names):
        holders = np.flatnonzero((chosen == index).any(axis=1))
        rows = np.flatnonzero(y == name)
        want = np.maximum(1, sizes[holders] // per_device)
        again = int(want.sum()) > len(rows)
        if again and int(sizes.sum()) <= len(
            y
        ):  # there is enough in all: take less of this class, share nothing
            want, again = np.maximum(1, want * len(rows) // int(want.sum())), len(holders) > len(rows)
        deck = _Deck(rows, draw, again=again)
        for device, count in zip(holders.tolist(), want.tolist(), strict=True):
            dealt[device].append(deck.take(count))
    return [np.concatenate(rows) for rows in dealt]
