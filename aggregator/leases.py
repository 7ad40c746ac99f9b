"""Who may train now: asks wait, a grant holds one of a job's places until its lease ends. Pure.

A device that vanished frees its place when its lease expires; its update, should it still come, is judged by
its staleness alone (DESIGN §7). Among those who wait a policy chooses:

| policy | who is next |
|---|---|
| `round-robin` | who has waited longest |
| `random` | anybody, with equal chances |
| `fair` | who contributed least so far, and of these who has waited longest |
"""

import heapq
import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec

from edge_client.wire.messages import Ask

LATE_S = 120.0  # a copy of a message comes seconds late; a device whose memory was lost begins to count anew

Policy = Literal["round-robin", "random", "fair"]


class Waiting(msgspec.Struct, frozen=True):
    """A device that asked at Unix time `at` and has no place yet; it had contributed `done` updates by then."""

    ask: Ask
    at: float
    done: int = 0


class Lease(msgspec.Struct, frozen=True):
    """A place held by a device until Unix time `expires`."""

    ask: Ask
    version: int
    expires: float


@dataclass(frozen=True, slots=True)
class Grant:
    """This device gets a place now."""

    device: str
    ask: Ask


class Leases:
    """Places of one job; each call takes time logarithmic in the number of devices, but for `expire`."""

    def __init__(
        self,
        waiting: Mapping[str, Waiting] | None = None,
        held: Mapping[str, Lease] | None = None,
        *,
        policy: Policy = "round-robin",
        seed: int = 0,
    ) -> None:
        self.waiting: dict[str, Waiting] = {}
        self.held: dict[str, Lease] = dict(held or {})
        self._answered: dict[
            str, tuple[int, float]
        ] = {}  # the number of its last ask, and until when it matters
        self._fair = policy == "fair"
        self._rng = random.Random(seed) if policy == "random" else None  # noqa: S311 - chooses, keeps no secret
        # Entries of devices that stopped waiting stay until they come up; `_queue` and `_urn` are never both used.
        self._queue: list[tuple[int, float, str]] = []
        self._urn: list[str] = []
        for device, entry in (waiting or {}).items():
            self._wait(device, entry)

    def ask(self, device: str, ask: Ask, at: float, done: int = 0) -> None:
        """A device is willing; asking again gives back the place it held, because it lost its assignment.

        `done` is the number of updates it has contributed.
        """
        lease = self.held.get(device)
        if lease is not None and lease.ask.ask > ask.ask:
            return
        number, until = self._answered.get(device, (-1, at))
        if ask.ask <= number and _counts(
            until, at
        ):  # a late copy: the device would not know what its place is for
            return
        self.held.pop(device, None)
        before = self.waiting.get(device)
        if before is not None and before.ask.ask > ask.ask:
            return
        if before is not None:  # it keeps its turn
            self.waiting[device] = msgspec.structs.replace(before, ask=ask)
        else:
            self._wait(device, Waiting(ask, at, done))

    def release(self, device: str, at: float) -> None:
        """The device gave an update at Unix time `at`: its place is free, and copies of its ask say nothing any more.

        It asks again only after a verdict, so an ask that waits is a copy of the one this update answers.
        """
        lease, waiting = self.held.pop(device, None), self.waiting.pop(device, None)
        numbers = [entry.ask.ask for entry in (lease, waiting) if entry is not None]
        if numbers:
            self._answered[device] = (max(numbers), at + LATE_S)

    def away(self, *devices: str) -> None:
        """These devices are not connected: no place is kept free for them. They ask again when they are back.

        A place that one holds stays its own until the lease ends: it may be training, or come back with an update.
        """
        for device in devices:
            self.waiting.pop(device, None)

    def forget(self, device: str) -> None:
        """The device left: neither place nor ask remains."""
        self.held.pop(device, None)
        self.waiting.pop(device, None)

    def expire(self, now: float, lease_s: float) -> list[str]:
        """Free the places whose lease is over; return whose they were.

        A lease that ends later than one given now was given before the clock was set back: it ends like one of now.
        """
        for device, lease in self.held.items():
            if lease.expires > now + lease_s:
                self.held[device] = msgspec.structs.replace(lease, expires=now + lease_s)
        gone = [device for device, lease in self.held.items() if lease.expires <= now]
        for device in gone:
            del self.held[device]
        while (
            self._answered
            and (device := next(iter(self._answered)))
            and not _counts(self._answered[device][1], now)
        ):
            del self._answered[device]  # in the order in which they were answered, or nearly
        return gone

    def grant(
        self, *, places: int, version: int, now: float, lease_s: float, barred: Collection[str] = ()
    ) -> list[Grant]:
        """Give free places to those whose turn it is; who is `barred` goes on waiting."""
        grants: list[Grant] = []
        passed: list[str] = []
        while len(self.held) < places:
            device = self._next()
            if device is None:
                break
            if device in barred:
                passed.append(device)
                continue
            waiting = self.waiting.pop(device)
            self.held[device] = Lease(waiting.ask, version, now + lease_s)
            grants.append(Grant(device, waiting.ask))
        for device in passed:
            self._wait(device, self.waiting[device])
        return grants

    def _wait(self, device: str, entry: Waiting) -> None:
        self.waiting[device] = entry
        if self._rng is None:
            heapq.heappush(self._queue, self._key(device, entry))
        else:
            self._urn.append(device)

    def _key(self, device: str, entry: Waiting) -> tuple[int, float, str]:
        return (entry.done if self._fair else 0, entry.at, device)

    def _next(self) -> str | None:
        """Take out whose turn it is; the device still waits."""
        while self._queue:
            key = heapq.heappop(self._queue)
            entry = self.waiting.get(key[2])
            if entry is not None and self._key(key[2], entry) == key:
                return key[2]
        while self._urn and self._rng is not None:
            at = self._rng.randrange(len(self._urn))
            self._urn[at], self._urn[-1] = self._urn[-1], self._urn[at]
            device = self._urn.pop()
            if device in self.waiting:
                return device
        return None


def _counts(until: float, now: float) -> bool:
    """Whether an answer still tells late copies of its ask; not when the clock was set back since."""
    return until - LATE_S <= now < until
