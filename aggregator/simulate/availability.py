"""When devices are connected, from a few numbers a device. Times are virtual seconds."""

import math
from typing import Protocol

import numpy as np

from aggregator.simulate.config import Churn, Diurnal, FleetSection
from aggregator.simulate.draws import Purpose, rng


class Availability(Protocol):
    """Connection of each device."""

    def span(self, device: int, now: float) -> tuple[bool, float]:
        """Whether the device is connected at `now`, and until when that stays so."""
        ...

    def settle(self, device: int, now: float) -> None:
        """Nobody asks about a time before `now` any more."""
        ...


def availability(section: FleetSection, devices: int, seed: int) -> Availability:
    """What a configuration says of connections."""
    match section.availability:
        case Diurnal() as days:
            return Days(days, devices, seed)
        case Churn() as churn:
            return Spans(churn, devices, seed)
    return Constant()


def back(times: Availability, device: int, now: float) -> float:
    """The earliest time from `now` on at which the device is connected."""
    connected, until = times.span(device, now)
    return now if connected else until


def served(times: Availability, device: int, start: float, seconds: float) -> float:
    """When a transfer of `seconds` that begins at `start` is over: it goes on only while the device is connected."""
    if seconds <= 0:
        return back(times, device, start)
    now, left = start, seconds
    while True:
        connected, until = times.span(device, now)
        if connected and now + left <= until:
            return now + left
        if connected:
            left -= until - now
        now = until


class Constant:
    """Always connected."""

    def span(self, device: int, now: float) -> tuple[bool, float]:
        """For ever."""
        del device, now
        return True, math.inf

    def settle(self, device: int, now: float) -> None:
        """Nothing is kept."""


class Days:
    """A window in each day, at another time for each device."""

    def __init__(self, section: Diurnal, devices: int, seed: int) -> None:
        self._day, self._share = section.day_s, section.share
        offsets = rng(seed, Purpose.AVAILABILITY).random(devices) * section.spread
        self._offsets = offsets.astype(np.float32)

    def span(self, device: int, now: float) -> tuple[bool, float]:
        """The window that `now` is in, or the pause."""
        if self._share >= 1:
            return True, math.inf
        days = now / self._day - float(self._offsets[device])
        day = math.floor(days)
        connected = days - day < self._share
        end = (day + (self._share if connected else 1.0) + float(self._offsets[device])) * self._day
        return connected, end if end > now else math.nextafter(now, math.inf)  # rounding must not stop time

    def settle(self, device: int, now: float) -> None:
        """Nothing is kept."""


class Spans:
    """Exponential times on and off, drawn one by one: span n of a device follows from (seed, device, n)."""

    def __init__(self, section: Churn, devices: int, seed: int) -> None:
        self._means = (section.on_s, section.off_s)
        self._seed = seed
        share = section.on_s / (section.on_s + section.off_s)
        self._first_on = rng(seed, Purpose.AVAILABILITY).random(devices) < share
        self._index = np.zeros(devices, np.int32)
        self._begin = np.zeros(devices, np.float64)

    def span(self, device: int, now: float) -> tuple[bool, float]:
        """The span that `now` is in."""
        connected, _, _, end = self._find(device, now)
        return connected, end

    def settle(self, device: int, now: float) -> None:
        """Nobody asks about a time before `now` any more."""
        _, self._index[device], self._begin[device], _ = self._find(device, now)

    def _find(self, device: int, now: float) -> tuple[bool, int, float, float]:
        """Of the span that `now` is in: on or off, its index, begin and end."""
        index, begin = int(self._index[device]), float(self._begin[device])
        while True:
            on = bool(self._first_on[device]) == (index % 2 == 0)
            draw = rng(self._seed, Purpose.AVAILABILITY, device + 1, index)
            end = begin + float(draw.exponential(self._means[0 if on else 1]))
            if now < end:
                return on, index, begin, end
            index, begin = index + 1, end
