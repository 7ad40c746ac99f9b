"""The fleet's state in arrays: an idle device is a few dozen bytes and no object."""

import hashlib
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from aggregator.simulate import traces
from aggregator.simulate.config import Fixed, FleetSection, HalfNormal, LogNormal, SpeedClasses, Trace
from aggregator.simulate.draws import Purpose, rng
from aggregator.simulate.errors import SimulationError

NAME_DIGITS = 7
FIRST_NUMBER = 29_000_000 << 27  # of asks and statuses: real ones begin with minutes since 1970 (store.py)
NOTHING = -1  # in place of a version that a device holds
FACTOR_MIN = 1e-3  # of a speed; nearer to zero a device would do everything at once
LINK_COLUMNS = ("up_bytes_s", "down_bytes_s", "latency_s")


class Phase(IntEnum):
    """What a device does; between idle and asking lies only whether it is connected and whose turn it is."""

    IDLE = 0
    ASKING = 1
    WORKING = 2  # pulls or trains
    UPLOADING = 3  # has an update without a verdict


class Devices:
    """Facts and state by device."""

    def __init__(self, section: FleetSection, count: int, seed: int) -> None:
        self.count = count
        self.factor = _factors(section, count, seed)
        self.rates = _rates(section, count, seed)
        self.malicious = _some(section.malicious.share, count, seed, Purpose.MALICIOUS)
        self.phase = np.zeros(count, np.uint8)
        self.holds = np.zeros(count, np.int32)  # version 0 is in the bundle
        self.equipped = np.zeros(count, np.bool_)  # has pulled the bundle
        self.ask = np.full(count, FIRST_NUMBER, np.int64)  # number of the next participation
        self.seq = np.ones(count, np.int32)
        self.failures = np.zeros(count, np.uint8)
        self.tasks = np.zeros(count, np.int32)  # participations begun, which number their draws
        self.messages = np.zeros(count, np.int32)  # sent and received, which number theirs
        self.accepted = np.zeros(count, np.int32)
        self.measured = np.zeros((count, 2), np.float64)  # of the uplink: fields of edge_client.link.Link

    def link(self, device: int) -> tuple[float, float, float]:
        """Bytes per second up and down (infinite where nothing is said), and seconds of latency."""
        up, down, latency = self.rates[device if len(self.rates) > 1 else 0].tolist()
        return up, down, latency


class Pool:
    """Idle devices; one is drawn at random in constant time."""

    def __init__(self, count: int, draw: np.random.Generator) -> None:
        self._devices = np.zeros(count, np.int32)
        self._size = 0
        self._draw = draw

    def __len__(self) -> int:
        return self._size

    def add(self, device: int) -> None:
        """A device became idle."""
        self._devices[self._size] = device
        self._size += 1

    def take(self) -> int:
        """Take any device out."""
        at = int(self._draw.integers(self._size)) if self._size > 1 else 0
        self._size -= 1
        taken = int(self._devices[at])
        self._devices[at] = self._devices[self._size]
        return taken


def name(device: int) -> str:
    """The id of a device."""
    return f"d{device:0{NAME_DIGITS}d}"


def index(device: str) -> int:
    """The device of an id."""
    return int(device[1:])


def epoch(seed: int, device: int) -> str:
    """The epoch of a device's state database (I12)."""
    return hashlib.sha256(f"{seed}:{device}".encode()).hexdigest()[:16]


def _factors(section: FleetSection, count: int, seed: int) -> npt.NDArray[np.float32]:
    draw = rng(seed, Purpose.SPEED)
    match section.speed:
        case LogNormal(sigma):
            factors = draw.lognormal(0.0, sigma, count) if sigma else np.ones(count)
        case HalfNormal(sigma):
            factors = np.abs(draw.normal(0.0, sigma, count))
        case SpeedClasses(kinds, shares):
            weights = np.array(shares or [1.0] * len(kinds))
            factors = draw.choice(np.array(kinds), count, p=weights / weights.sum())
        case Trace(csv):
            factors = draw.choice(traces.read(csv, ("factor",))[:, 0], count)
    slow = _some(section.slow_share, count, seed, Purpose.SLOW)
    return np.maximum(np.where(slow, factors * section.slow_factor, factors), FACTOR_MIN).astype(np.float32)


def _rates(section: FleetSection, count: int, seed: int) -> npt.NDArray[np.float64]:
    """[devices, 3], or one row for all."""
    if isinstance(section.link, Fixed):
        link = section.link
        return np.array([[link.up_bytes_s or np.inf, link.down_bytes_s or np.inf, link.latency_s]])
    rows = traces.read(section.link.csv, LINK_COLUMNS)
    if (rows[:, :2] <= 0).any():
        raise SimulationError(f"{section.link.csv}: a rate is 0; devices with it would never be done")
    return rows[rng(seed, Purpose.LINK).integers(len(rows), size=count)]


def _some(share: float, count: int, seed: int, purpose: Purpose) -> npt.NDArray[np.bool_]:
    """A share of the devices at random, to the nearest number of them."""
    chosen = np.zeros(count, np.bool_)
    chosen[rng(seed, purpose).permutation(count)[: round(share * count)]] = True
    return chosen
