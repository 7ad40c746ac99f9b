"""Wakes coroutines that wait for something new in an engine; rung from any thread."""

import asyncio
import threading
from collections.abc import Iterable

HEADS = "heads"


def log_topic(partition: int) -> str:
    """What is rung when a partition of the log grows."""
    return f"log/{partition}"


class Bell:
    """Take a ticket, look, and only then await the ticket: nothing that came in between is missed.

    A ring may be spurious, so whoever it wakes looks again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tickets: dict[str, set[asyncio.Future[None]]] = {}

    def ticket(self, topic: str) -> asyncio.Future[None]:
        """A future that the next ring of `topic` resolves."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with self._lock:
            self._tickets.setdefault(topic, set()).add(future)
        return future

    def waited_for(self) -> bool:
        """Whether any ticket is out."""
        with self._lock:
            return bool(self._tickets)

    def ring(self, topics: Iterable[str]) -> None:
        """Resolve the tickets of `topics`."""
        with self._lock:
            rung = [future for topic in topics for future in self._tickets.pop(topic, ())]
        _resolve(rung)

    def ring_all(self) -> None:
        """Resolve every ticket."""
        with self._lock:
            rung = [future for futures in self._tickets.values() for future in futures]
            self._tickets.clear()
        _resolve(rung)


def _resolve(futures: list[asyncio.Future[None]]) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for future in futures:
        by_loop.setdefault(future.get_loop(), []).append(future)
    for loop, group in by_loop.items():
        if not loop.is_closed():  # a loop that ended has nobody left who waits
            loop.call_soon_threadsafe(_set_all, group)


def _set_all(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
