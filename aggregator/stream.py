"""What happens, as numbered events that any number of viewers follow, each at its own pace.

The newest EVENTS_KEPT stay, so that a viewer whose connection broke goes on where it was. A viewer that fell behind
further, or saw another run of the server, is told so by an event `reset` and reads everything anew.
"""

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator, Collection
from typing import Any, Literal, NamedTuple

import msgspec

EVENTS_KEPT = 4096  # some seconds of a busy fleet, an hour of a quiet one; at most a few MB
HEARTBEAT_S = 15.0  # proxies close connections that are silent for 30 to 60 s

Kind = Literal["job", "version", "device", "update", "rejection", "audit"]
KINDS: tuple[Kind, ...] = ("job", "version", "device", "update", "rejection", "audit")


class Event(NamedTuple):
    """One event; `data` is a JSON object."""

    number: int
    kind: str
    data: bytes


class Stream:
    """The newest events of this run of the server."""

    def __init__(self) -> None:
        self.run = secrets.token_hex(4)  # numbers begin anew with each run
        self._events: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self._number = 0
        self._changed = asyncio.Event()
        self._closed = False

    def publish(self, kind: Kind, data: dict[str, Any]) -> None:
        """Tell all viewers; call it on the event loop."""
        self._number += 1
        self._events.append(Event(self._number, kind, msgspec.json.encode(data)))
        self._wake()

    def recent(self, kinds: Collection[str]) -> list[Event]:
        """Those of the events that are kept, oldest first."""
        return [event for event in self._events if event.kind in kinds]

    def id(self, event: Event) -> str:
        """An event's id, as viewers see it."""
        return f"{self.run}-{event.number}"

    def close(self) -> None:
        """End all viewers' streams."""
        self._closed = True
        self._wake()

    def position(self, last_id: str | None) -> int | None:
        """The number after which a viewer goes on that saw event `last_id` last; None when that is not known here."""
        if not last_id:
            return self._number
        run, _, number = last_id.partition("-")
        if run != self.run or not number.isascii() or not number.isdigit() or len(number) > 18:
            return None
        return int(number) if self._oldest - 1 <= int(number) <= self._number else None

    async def follow(self, last_id: str | None, kinds: Collection[str]) -> AsyncIterator[str]:
        """Server-sent events after `last_id`, and heartbeats, until `close`."""
        after = self.position(last_id)
        if after is None:
            after = self._number
            yield self._text("reset", after, b"{}")
        else:  # the headers go with the first bytes
            yield ": connected\n\n"
        while not self._closed:
            changed = self._changed
            if after < self._oldest - 1:
                after = self._number
                yield self._text("reset", after, b"{}")
            fresh = [event for event in self._events if event.number > after] if after < self._number else []
            if fresh:
                after = fresh[-1].number
                shown = [self._text(e.kind, e.number, e.data) for e in fresh if e.kind in kinds]
                if shown:
                    yield "".join(shown)
                continue
            try:
                await asyncio.wait_for(changed.wait(), HEARTBEAT_S)
            except TimeoutError:
                yield ": heartbeat\n\n"

    @property
    def _oldest(self) -> int:
        """The number of the oldest event that is kept, or of the next one."""
        return self._events[0].number if self._events else self._number + 1

    def _text(self, kind: str, number: int, data: bytes) -> str:
        return f"id: {self.run}-{number}\nevent: {kind}\ndata: {data.decode()}\n\n"

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
