"""Who may train now: asks wait, a grant holds one of a job's places until its lease ends. Pure.

A device that vanished frees its place when its lease expires; its update, should it still come, is judged by
its staleness alone (DESIGN §7).
"""

from dataclasses import dataclass

import msgspec

from edge_client.wire.messages import Ask


class Waiting(msgspec.Struct, frozen=True):
    """A device that asked at Unix time `at` and has no place yet."""

    ask: Ask
    at: float


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
    """Places of one job."""

    def __init__(
        self, waiting: dict[str, Waiting] | None = None, held: dict[str, Lease] | None = None
    ) -> None:
        self.waiting = waiting or {}
        self.held = held or {}

    def ask(self, device: str, ask: Ask, at: float) -> None:
        """A device is willing; asking again gives back the place it held, because it lost its assignment."""
        lease = self.held.get(device)
        if lease is not None and lease.ask.ask > ask.ask:
            return
        self.held.pop(device, None)
        before = self.waiting.get(device)
        if before is not None and before.ask.ask > ask.ask:
            return
        self.waiting[device] = Waiting(ask, before.at if before else at)

    def release(self, device: str) -> None:
        """The device is done, or gone: its place is free."""
        self.held.pop(device, None)

    def away(self, device: str) -> None:
        """The device is not connected: no place is kept free for it. It asks again when it is back.

        A place that it holds stays its own until the lease ends: it may be training, or come back with an update.
        """
        self.waiting.pop(device, None)

    def forget(self, device: str) -> None:
        """The device left: neither place nor ask remains."""
        self.held.pop(device, None)
        self.waiting.pop(device, None)

    def expire(self, now: float) -> list[str]:
        """Free the places whose lease is over; return whose they were."""
        gone = [device for device, lease in self.held.items() if lease.expires <= now]
        for device in gone:
            del self.held[device]
        return gone

    def grant(self, *, places: int, version: int, now: float, lease_s: float) -> list[Grant]:
        """Give free places to those who waited longest."""
        grants = []
        for device, waiting in sorted(self.waiting.items(), key=lambda item: (item[1].at, item[0])):
            if len(self.held) >= places:
                break
            del self.waiting[device]
            self.held[device] = Lease(waiting.ask, version, now + lease_s)
            grants.append(Grant(device, waiting.ask))
        return grants
