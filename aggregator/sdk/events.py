"""Server-sent events, line by line (HTML standard, §9.2.6). Pure."""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

PAUSES_S = (0.2, 0.5, 1.0, 2.0, 5.0)  # between attempts to connect again, the last one over and over


class Event(NamedTuple):
    """Something happened: `kind` is job, version, device, update, rejection, audit, or `reset` (some were lost)."""

    kind: str
    data: dict[str, Any]
    id: str


class Parser:
    """Makes events of lines, and remembers where to go on."""

    def __init__(self, last_id: str | None = None) -> None:
        self.connected = False
        self._last_id = last_id or ""
        self._failures = 0
        self._fields: dict[str, str] = {}

    def resume(self) -> dict[str, str]:
        """Headers for the next connection."""
        self._fields = {}
        return {"Last-Event-ID": self._last_id} if self._last_id else {}

    def pause_s(self) -> float:
        """How long to wait before it."""
        pause = PAUSES_S[min(self._failures, len(PAUSES_S) - 1)]
        self._failures += 1
        return pause

    def feed(self, line: str) -> Iterator[Event]:
        """The event that a line ends, if it ends one."""
        self.connected, self._failures = True, 0
        if line:
            name, _, value = line.partition(":")
            self._fields[name] = value.removeprefix(" ")
            return
        fields, self._fields = self._fields, {}
        self._last_id = fields.get("id", self._last_id)
        if "data" in fields:
            yield Event(fields.get("event", "message"), json.loads(fields["data"]), self._last_id)
