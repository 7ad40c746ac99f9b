"""When each outbox row is sent, and sent again: pure schedule, no I/O (I1).

A row leaves only by a final receipt. It is sent on connect, when a bridge comes up, for the chunks a receipt
says are missing, and again after a growing wait.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace

from edge_client.events import BridgeState, Row, Send
from edge_client.wire.messages import Receipt
from edge_client.wire.topics import Uid

RECEIPT_WAIT_S = 30.0  # a receipt takes well under a second; longer means bridge or broker lost something
RECEIPT_WAIT_MAX_S = 600.0  # so that a fleet waiting for a broken bridge costs it little
JITTER = 0.2  # share by which every wait is stretched at random, so that a fleet does not march in step
BRIDGES_MAX = 256  # services whose state is remembered


@dataclass(slots=True)
class _Item:
    row: Row
    due: float = 0.0
    attempts: int = 0
    missing: tuple[tuple[int, int], ...] = ()


class Outgoing:
    """The rows that wait for a receipt."""

    def __init__(self, rows: Iterable[Row], rng: random.Random) -> None:
        self._items = {row.uid: _Item(row) for row in rows}
        self._rng = rng
        self._bridges: dict[str, BridgeState] = {}
        self._connected = False

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, uid: Uid) -> bool:
        return uid in self._items

    @property
    def open(self) -> bool:
        """May anything be sent? Uploads are held while every known bridge is down."""
        known = self._bridges.values()
        return self._connected and (not known or any(bridge.up for bridge in known))

    def update_of(self, job: str) -> Row | None:
        """The job's unreceipted update."""
        found = (i.row for i in self._items.values() if i.row.uid.job == job and i.row.kind == "update")
        return next(found, None)

    def add(self, rows: Iterable[Row]) -> None:
        """Take new rows, those that are not here yet; they are due at once."""
        for row in rows:
            self._items.setdefault(row.uid, _Item(row))

    def remove(self, uid: Uid) -> None:
        """A final receipt came."""
        self._items.pop(uid, None)

    def remove_job(self, job: str, *, published: bool) -> None:
        """Forget the job's rows; with `published` false only those nobody has seen."""
        for uid, item in list(self._items.items()):
            if uid.job == job and (published or not item.row.published):
                del self._items[uid]

    def connected(self, *, yes: bool) -> None:
        """The broker came or went; a new connection sends everything again.

        It says anew which bridges there are: a server set up afresh counts its connections from one again.
        """
        self._connected = yes
        if yes:
            self._bridges.clear()
            self._due_now()

    def bridge(self, event: BridgeState) -> bool:
        """A bridge came or went; True when there is one again. A will older than the last birth is stale."""
        last = self._bridges.get(event.service)
        if last is not None and event.conn_seq < last.conn_seq:
            return False
        if last is None and len(self._bridges) >= BRIDGES_MAX:
            return False
        was_open = self.open
        self._bridges[event.service] = event
        back = self.open and (not was_open or last is None or event.conn_seq > last.conn_seq)
        if back:
            self._due_now()  # a restarted bridge has lost the partial updates it was collecting
        return back

    def incomplete(self, uid: Uid, receipt: Receipt) -> None:
        """The bridge lacks these chunks."""
        item = self._items.get(uid)
        if item is not None:
            item.missing = receipt.missing
            item.due = 0.0

    def due(self, now: float) -> list[Send]:
        """What to send now; each is scheduled again in case no receipt comes."""
        if not self.open:
            return []
        sends = []
        for uid, item in self._items.items():
            if item.due <= now:
                sends.append(Send(uid, item.row.kind, item.missing))
                wait = min(RECEIPT_WAIT_S * 2**item.attempts, RECEIPT_WAIT_MAX_S)
                item.due = now + wait * (1 + JITTER * self._rng.random())
                item.attempts = min(item.attempts + 1, 10)
                item.missing = ()
                item.row = replace(item.row, published=True)
        return sends

    @property
    def wake(self) -> float | None:
        """When `due` is to be asked next; None when nothing waits or nothing may be sent."""
        return min((item.due for item in self._items.values()), default=None) if self.open else None

    def _due_now(self) -> None:
        for item in self._items.values():
            item.due = 0.0
            item.attempts = 0
            item.missing = ()
