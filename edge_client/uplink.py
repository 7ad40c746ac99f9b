"""Outbox rows on their way out: cut into chunks the broker takes, a bounded number of them in flight (I9).

When a row is sent is outgoing.py's decision; that it is marked published first is kept here (I4).
"""

import hashlib
import time
from collections import OrderedDict, deque
from dataclasses import dataclass

from edge_client.events import Send
from edge_client.link import Meter
from edge_client.store import Store
from edge_client.transport import Transport
from edge_client.wire import chunks, topics
from edge_client.wire.topics import Uid


@dataclass(frozen=True, slots=True)
class _Body:
    """The body being sent, hashed once for all its chunks."""

    uid: Uid
    data: bytes
    digest: bytes


class Uplink:
    """Sends rows over a transport as it has room; call `pump` whenever that may have changed."""

    def __init__(self, store: Store, transport: Transport) -> None:
        self._store = store
        self._transport = transport
        self._queue: OrderedDict[Send, None] = OrderedDict()
        self._indices: deque[int] = deque()
        self._body: _Body | None = None
        self._chunk_bytes = 0
        self._meter = Meter()

    def connected(self, chunk_bytes: int) -> None:
        """A new connection: what was half sent is sent anew by the session."""
        self._chunk_bytes = chunk_bytes
        self._queue.clear()
        self._indices.clear()
        self._body = None

    def add(self, send: Send) -> None:
        """Queue a row; one that is queued already is not queued twice."""
        self._queue.setdefault(send)

    def acknowledged(self, message: int, now: float) -> tuple[int, float] | None:
        """The broker took a packet: bytes and seconds of an update when that was its last."""
        return self._meter.acknowledged(message, now)

    def pump(self) -> None:
        """Publish while there is room."""
        while self._transport.room:
            if self._indices and self._body is not None:
                self._publish_chunk(self._body, self._indices.popleft())
                if not self._indices:
                    self._meter.end()
            elif self._queue:
                self._begin(next(iter(self._queue)))
                self._queue.popitem(last=False)  # only now: when storage fails it is begun again
            else:
                self._body = None
                return

    def _begin(self, send: Send) -> None:
        data = self._store.body(send.uid)
        if data is None:  # settled while it waited here
            return
        self._store.mark_published(send.uid)
        if send.kind == "evaluation":
            self._transport.publish(topics.evaluation(send.uid), data)
            return
        total = chunks.count(len(data), self._chunk_bytes)
        asked = {i for first, last in send.missing for i in range(max(first, 0), min(last + 1, total))}
        self._indices.extend(sorted(asked) if send.missing else range(total))
        self._meter.begin(time.monotonic())
        self._body = _Body(send.uid, data, hashlib.sha256(data).digest()[:8])

    def _publish_chunk(self, body: _Body, index: int) -> None:
        size = self._chunk_bytes
        total = chunks.count(len(body.data), size)
        payload = body.data
        if total > 1:
            part = body.data[index * size : (index + 1) * size]
            payload = chunks.Chunk(index, total, len(body.data), body.digest, part).encode()
        message = self._transport.publish(topics.update(body.uid, index), payload)
        if message is not None:
            self._meter.sent(message, len(payload))
