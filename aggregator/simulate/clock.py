"""Virtual time: what happens next, in order of time and then of entry."""

import heapq
import itertools
from collections.abc import Callable
from typing import Any

Step = Callable[..., None]


class Clock:
    """Seconds since the simulation began, and the events to come."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Step, tuple[Any, ...]]] = []
        self._order = itertools.count()

    @property
    def next_at(self) -> float | None:
        """When the next event is due; None when there is none."""
        return self._events[0][0] if self._events else None

    def at(self, when: float, step: Step, *args: Any) -> None:
        """Call `step` at `when`, which is not in the past."""
        heapq.heappush(self._events, (max(when, self.now), next(self._order), step, args))

    def pop(self) -> None:
        """Move to the next event and perform it."""
        self.now, _, step, args = heapq.heappop(self._events)
        step(*args)
