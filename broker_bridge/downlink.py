"""Publishes the cells under `down/`, each at least once, and retained ones again on every connection.

A broker may come back without its retained messages (kill -9, a new broker), and nothing it says tells so
reliably. Publishing a few offers again is cheap. A cell with an empty value clears its retained topic each
time, so an offer that a broker resurrects from an old database is cleared if its cell was emptied rather
than dropped.
"""

import asyncio
from collections import deque

import structlog

from broker_bridge import cells
from broker_bridge.counters import Counters
from broker_bridge.mqtt import Link
from broker_bridge.ports import Change, Heads
from broker_bridge.storage import persistently
from edge_client.wire import topics
from edge_client.wire.errors import LocalWireError

WINDOW = 256  # publications not yet taken by the broker: a commit's assignments in one go, and a bound
_RETAINED_PREFIXES = (cells.down_key(f"{topics.ROOT}/b/"), cells.down_key(f"{topics.ROOT}/i/"))

log = structlog.get_logger()


class Downlink:
    """What goes to devices apart from receipts and blobs; `published` is the revision to resume from."""

    def __init__(self, link: Link, heads: Heads, counters: Counters, published: int) -> None:
        self._link = link
        self._heads = heads
        self._counters = counters
        self._seen = published
        self._published = published
        self._pending: deque[tuple[int, asyncio.Future[None] | None]] = deque()
        self._publishing = asyncio.Lock()  # keeps an older value from overtaking a newer one

    @property
    def published(self) -> int:
        """The revision up to which everything was taken by the broker."""
        while self._pending and (self._pending[0][1] is None or self._pending[0][1].done()):
            self._published = self._pending.popleft()[0]
        return self._published

    async def run(self) -> None:
        """Publish until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(persistently(self._follow, "downlink"))
            tasks.create_task(persistently(self._restore_retained, "retained"))

    async def _follow(self) -> None:
        async for change in self._heads.watch(cells.DOWN_PREFIX, self._seen):
            await self._link.connection()
            async with self._publishing:
                self._pending.append((change.revision, self._publish(change)))
                self._seen = change.revision
            while self.published < change.revision and len(self._pending) >= WINDOW:
                oldest = self._pending[0][1]
                if oldest is not None:
                    await asyncio.wait([oldest])

    async def _restore_retained(self) -> None:
        connection = 0
        while True:
            connection = await self._link.connection(after=connection)
            async with self._publishing:
                for prefix in _RETAINED_PREFIXES:
                    for change in await self._heads.list(prefix):
                        self._publish(change)

    def _publish(self, change: Change) -> asyncio.Future[None] | None:
        topic = cells.down_topic(change.key)
        retain = cells.retained(topic)
        if change.value is None and not retain:
            return None  # a command that was withdrawn: there is nothing to clear
        payload = change.value or b""
        try:
            future = self._link.publish(topic, payload, retain=retain)
        except LocalWireError as error:
            log.error("not_published", topic=topic, error=str(error))  # noqa: TRY400 - names the limit
            return None
        self._counters.went_down(len(payload))
        return future
