"""Who is to hear of new versions as they are made: fan-out against pulling, by what each costs a device. Pure.

Deltas one by one are never fewer bytes than one merged delta, but each is published once for all, comes without a
request, and at once. So it pays where devices take part in nearly every version, and not where they come back after
several.
"""

from typing import Literal

from aggregator.path import Paths

Mode = Literal["auto", "always", "never"]
MEMORY = 0.95  # weight of earlier grants beside a new one: some twenty decide
PULL_BYTES = 256  # around each pulled blob: request, topic with its digest, chunk header
FAN_BYTES = 48  # around each delta that is fanned out: its topic


class Audience:
    """One job's decision, made with each assignment; a restart learns it anew."""

    def __init__(self, mode: Mode) -> None:
        self._mode = mode
        self._based: dict[str, int] = {}  # version of each device's last assignment
        self._fanned = 0.0
        self._pulled = 0.0
        self._until = 0.0

    @property
    def pays(self) -> bool:
        """True when the next assignment asks its device to follow."""
        return self._mode == "always" or (self._mode == "auto" and 0 < self._fanned <= self._pulled)

    def listens(self, now: float) -> bool:
        """True while a device follows."""
        return now < self._until

    def grant(self, device: str, version: int, now: float, lease_s: float, paths: Paths) -> bool:
        """A device is assigned `version`: whether it is to follow from there until its lease ends."""
        before, self._based[device] = self._based.get(device, version), version
        prices = paths.prices(before, version)
        if prices is not None:
            deltas, least = prices
            self._fanned = MEMORY * self._fanned + sum(deltas) + FAN_BYTES * len(deltas)
            self._pulled = MEMORY * self._pulled + least + PULL_BYTES
        if self.pays:
            self._until = max(self._until, now + lease_s)
        return self.pays
