"""What the devices of a run act on, and what is counted of them."""

from collections.abc import Callable
from dataclasses import dataclass, field

from aggregator.simulate.availability import Availability
from aggregator.simulate.clock import Clock
from aggregator.simulate.config import Config
from aggregator.simulate.devices import Devices
from aggregator.simulate.residuals import Residuals
from aggregator.simulate.server import Server
from aggregator.simulate.sources import Ints
from aggregator.simulate.workers import Workers
from edge_client.wire.topics import Uid


@dataclass(frozen=True, slots=True)
class Row:
    """Something on its way to the bridge until it has a verdict; an update with its two residuals."""

    device: int
    uid: Uid
    body: bytes
    residuals: tuple[bytes, bytes] | None


@dataclass(slots=True)
class Counts:
    """What happened so far, beside what the server counts."""

    participations: int = 0
    produced: int = 0  # updates
    failed: dict[str, int] = field(default_factory=dict)  # trainings, by code
    crashes: int = 0
    lost: int = 0  # messages
    doubled: int = 0
    late: int = 0


@dataclass(frozen=True, slots=True)
class Site:
    """What devices act on."""

    config: Config
    seed: int
    bundle: str
    clock: Clock
    server: Server
    workers: Workers
    devices: Devices
    times: Availability
    residuals: Residuals
    parts: Callable[[int], tuple[Ints, Ints]]
