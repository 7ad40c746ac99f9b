"""Waits by a clock that people and NTP may set: one that was set back must not make a wait a day longer. Pure."""


def waited(since: float, span_s: float, now: float) -> bool:
    """Whether so many seconds have passed since a Unix time; also when the clock was set back by as many."""
    return abs(now - since) >= span_s
