"""How fast this device's updates go up, and how much the next one may carry. Pure.

Measured is what the broker acknowledged: from the first chunk's publish to the last one's PUBACK. For small updates
that is mostly the way there and back, so the rate is never above the link's and a choice by it is on the safe side.
"""

import math
from dataclasses import dataclass

from edge_client.wire.messages import TrainingPlan

MEMORY = (
    0.7  # weight of all earlier measurements beside a new one: a link that changed shows after some three
)
SECONDS_MIN = 1e-3  # a loopback's; clocks and scheduling are not finer
OVERHEAD_BYTES = 64  # of an update before its values: envelope, header and a few tensors
HALVINGS = 30  # of the interval in which the density is searched: more than float32 tells apart
VALUE_BITS = {
    "ternary": 1,
    "q4": 4,
    "q8": 8,
}  # codecs whose size follows the density: sign and level of a value


@dataclass(frozen=True, slots=True)
class Link:
    """Bytes sent and the seconds that took, older ones counting less."""

    sent_bytes: float = 0.0
    seconds: float = 0.0

    def measured(self, sent_bytes: int, seconds: float) -> "Link":
        """The link after another update of so many bytes."""
        return Link(MEMORY * self.sent_bytes + sent_bytes, MEMORY * self.seconds + max(seconds, SECONDS_MIN))

    @property
    def rate(self) -> float | None:
        """Bytes a second; None before the first measurement."""
        return self.sent_bytes / self.seconds if self.seconds > 0 else None


class Meter:
    """Times one update at a time: its packets by message id, until all are acknowledged."""

    def __init__(self) -> None:
        self._open: set[int] = set()
        self._began = 0.0
        self._bytes = 0
        self._whole = False

    def begin(self, now: float) -> None:
        """The first packet of an update is about to go; what was not acknowledged of another is not measured."""
        self._open.clear()
        self._began, self._bytes, self._whole = now, 0, False

    def sent(self, message: int, size: int) -> None:
        """A packet of `size` bytes went out under this message id."""
        self._open.add(message)
        self._bytes += size

    def end(self) -> None:
        """The last packet went out."""
        self._whole = True

    def acknowledged(self, message: int, now: float) -> tuple[int, float] | None:
        """Bytes and seconds of the update when this was the last acknowledgement it waited for."""
        if message not in self._open:
            return None
        self._open.discard(message)
        return (self._bytes, now - self._began) if self._whole and not self._open else None


def density(rate: float | None, plan: TrainingPlan) -> float:
    """The share of values that the next update carries over a link of `rate` bytes a second.

    The largest whose update is published within the plan's budget, between its least and its most; the plan's own
    while the link is not measured, or where the codec's size does not depend on it.
    """
    uplink, value_bits = plan.uplink, VALUE_BITS.get(plan.codec)
    if uplink is None or rate is None or value_bits is None:
        return plan.density
    room = rate * uplink.budget_s
    most = max(plan.density, uplink.density_max)
    least = min(plan.density, uplink.density_min)
    if update_bytes(uplink.parameters, most, value_bits) <= room:
        return most
    low, high = least, most
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if update_bytes(uplink.parameters, middle, value_bits) <= room:
            low = middle
        else:
            high = middle
    return low


def update_bytes(parameters: int, share: float, value_bits: int) -> float:
    """About what an update takes that sends this share of its values: their places' entropy, and their bits.

    Grows with the share: from a half on, where places would get cheaper again, they count as at a half.
    """
    p = min(share, 0.5)
    places = -p * math.log2(p) - (1 - p) * math.log2(1 - p) if p > 0 else 0.0
    return OVERHEAD_BYTES + parameters * (places + share * value_bits) / 8
