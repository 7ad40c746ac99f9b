"""How many requests one client may make: a token bucket each. Pure; time comes in as `now` (seconds)."""

from collections import OrderedDict

RATE_S = 100.0  # requests a second, for ever
BURST = 500.0  # requests at once: a dashboard that opens, a notebook that reads all versions
CLIENTS_MAX = 4096  # clients that are remembered, the newest; who is forgotten has a full bucket again


class Rates:
    """A bucket for each client; a request takes one token, and `rate_s` tokens come back a second."""

    def __init__(self, rate_s: float = RATE_S, burst: float = BURST) -> None:
        self._rate_s = rate_s
        self._burst = burst
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str, now: float) -> float:
        """0 when the client may go on, else the seconds until it may."""
        tokens, at = self._buckets.pop(client, (self._burst, now))
        tokens = min(self._burst, tokens + (now - at) * self._rate_s)
        wait_s = 0.0 if tokens >= 1 else (1 - tokens) / self._rate_s
        self._buckets[client] = (tokens - 1 if not wait_s else tokens, now)
        if len(self._buckets) > CLIENTS_MAX:
            self._buckets.popitem(last=False)
        return wait_s
