"""A strategy: how much a stale update counts, and how a buffer's mean update becomes a step. Pure.

One's own is a subclass that overrides either method, has `defaults` for the fields of a job, and is named by an
entry point in the group `fedfleet.strategies` (docs/strategies.md).
"""

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any, ClassVar

from aggregator import optimizer, presets, staleness
from aggregator.optimizer import Doubles, Slots
from aggregator.spec import JobSpec


class Strategy:
    """The knobs of a job's spec; what the presets use.

    Both methods have to be functions of their arguments alone: replaying the log must give the same bytes (I2).
    """

    defaults: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, spec: JobSpec) -> None:
        self.spec = spec
        self._staleness = _staleness(spec)

    def weight(self, tau: int) -> float:
        """s(τ) for an update that was trained τ versions ago, 0 to 1."""
        return self._staleness(tau)

    def step(self, mean: Doubles, slots: Slots, delay: int) -> tuple[Doubles, Slots]:
        """What to add to the model, flat float64 [weights of the model], and the state to keep.

        `mean` is the buffer's mean update of the same form, `slots` what the last step kept ({} at first; each a
        float64 array of that form whose values float32 holds), `delay` the largest τ in the buffer.
        """
        direction, after = optimizer.step(self.spec.optimizer, mean, slots)
        return optimizer.rate(self.spec.optimizer, self.spec.server_lr, delay) * direction, after


def of(spec: JobSpec) -> Strategy:
    """The strategy of a checked job."""
    if spec.strategy in presets.PRESETS:
        return Strategy(spec)
    kind: type[Strategy] = presets.own()[spec.strategy].load()
    return kind(spec)


def _staleness(spec: JobSpec) -> staleness.Staleness:
    if spec.staleness in staleness.FUNCTIONS:
        return staleness.function(
            spec.staleness,
            exponent=spec.staleness_exponent,
            start=spec.staleness_start,
            floor=spec.staleness_floor,
        )
    (point,) = entry_points(group=staleness.GROUP, name=spec.staleness)
    found: staleness.Staleness = point.load()
    return found
