"""What happens, as numbered events that any number of viewers follow, each at its own pace.

The newest EVENTS_KEPT stay, so that a viewer whose connection broke goes on where it was. A viewer that fell behind
further, or saw another run of the server, is told so by an event `reset` and reads everything anew.

An event is encoded once, whoever follows. When many come, viewers get them BATCH_S apart, together and as the same
bytes: two hundred viewers cost some thousand writes a second however fast updates arrive.
"""

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator, Collection
from itertools import islice
from typing import Any, Literal, NamedTuple

import msgspec

EVENTS_KEPT = 8192  # more than a second of a busy fleet, an hour of a quiet one; some MB
HEARTBEAT_S = 15.0  # proxies close connections that are silent for 30 to 60 s
BATCHES_MAX = 16  # kept between two ringings: viewers that keep up differ by their kinds alone
BATCH_S = 0.5  # between what a viewer is told when events are many; the first after a pause is told at once

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
        self._ringing: asyncio.TimerHandle | None = None
        self._rang_at = 0.0
        self._batches: dict[tuple[int, int, frozenset[str]], bytes] = {}  # since the last ringing
        self._closed = False

    def publish(self, kind: Kind, data: dict[str, Any]) -> None:
        """Tell all viewers; call it on the event loop."""
        self._number += 1
        self._events.append(Event(self._number, kind, msgspec.json.encode(data)))
        if self._ringing is None:
            loop = asyncio.get_running_loop()
            self._ringing = loop.call_at(max(loop.time(), self._rang_at + BATCH_S), self._ring)

    def recent(self, kinds: Collection[str]) -> list[Event]:
        """Those of the events that are kept, oldest first."""
        return [event for event in self._events if event.kind in kinds]

    def id(self, event: Event) -> str:
        """An event's id, as viewers see it."""
        return f"{self.run}-{event.number}"

    def close(self) -> None:
        """End all viewers' streams."""
        self._closed = True
        self._ring()

    def position(self, last_id: str | None) -> int | None:
        """The number after which a viewer goes on that saw event `last_id` last; None when that is not known here."""
        if not last_id:
            return self._number
        run, _, number = last_id.partition("-")
        if run != self.run or not number.isascii() or not number.isdigit() or len(number) > 18:
            return None
        return int(number) if self._oldest - 1 <= int(number) <= self._number else None

    async def follow(self, last_id: str | None, kinds: Collection[str]) -> AsyncIterator[bytes]:
        """Server-sent events after `last_id`, and heartbeats, until `close`."""
        wanted, after = frozenset(kinds), self.position(last_id)
        loop = asyncio.get_running_loop()
        beat_at = loop.time() + HEARTBEAT_S
        if after is None:
            after = self._number
            yield self._reset()
        else:  # the headers go with the first bytes
            yield b": connected\n\n"
        while not self._closed:
            changed = self._changed
            if after < self._oldest - 1:
                after = self._number
                yield self._reset()
            if after < self._number:
                batch = self._batch(after, wanted)
                after = self._number
                if batch:
                    yield batch
                    beat_at = loop.time() + HEARTBEAT_S
            try:
                async with asyncio.timeout_at(beat_at):  # events of other kinds wake it, and say nothing
                    await changed.wait()
            except TimeoutError:
                yield b": heartbeat\n\n"
                beat_at = loop.time() + HEARTBEAT_S

    @property
    def _oldest(self) -> int:
        """The number of the oldest event that is kept, or of the next one."""
        return self._events[0].number if self._events else self._number + 1

    def _batch(self, after: int, kinds: frozenset[str]) -> bytes:
        """The events after one, as the bytes that every viewer gets who is as far and wants the same kinds."""
        key = (after, self._number, kinds)
        batch = self._batches.get(key)
        if batch is None:
            fresh = list(islice(reversed(self._events), self._number - after))[::-1]
            batch = b"".join(self._text(e.kind, e.number, e.data) for e in fresh if e.kind in kinds)
            if len(self._batches) < BATCHES_MAX:
                self._batches[key] = batch
        return batch

    def _reset(self) -> bytes:
        return self._text("reset", self._number, b"{}")

    def _text(self, kind: str, number: int, data: bytes) -> bytes:
        return f"id: {self.run}-{number}\nevent: {kind}\ndata: ".encode() + data + b"\n\n"

    def _ring(self) -> None:
        """Wake all viewers."""
        if self._ringing is not None:
            self._ringing.cancel()
            self._ringing, self._rang_at = None, asyncio.get_running_loop().time()
        self._batches.clear()
        self._changed.set()
        self._changed = asyncio.Event()
