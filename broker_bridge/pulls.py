"""Serves blobs to devices that ask for them, a window of chunks at a time.

Any blob of the store may be pulled by its digest: the store holds what devices are meant to have, or what is
made of admitted updates, and nothing else; a digest cannot be guessed. Raw data never gets there (I8).
"""

import asyncio
import contextlib
import re
from collections import OrderedDict

import structlog

from broker_bridge.counters import Counters
from broker_bridge.mqtt import Link
from broker_bridge.ports import Blobs, CorruptBlob, Digest, MissingBlob
from broker_bridge.storage import persistently
from edge_client.wire import chunks, topics
from edge_client.wire.chunks import Chunk
from edge_client.wire.errors import LocalWireError, RemoteWireError
from edge_client.wire.limits import BLOB_WINDOW_MAX, CHUNK_BYTES
from edge_client.wire.messages import BlobRequest

CHUNK_BYTES_MIN = 1024  # smaller chunks cost more in headers than they carry
PENDING_BYTES_MAX = 2 * BLOB_WINDOW_MAX * CHUNK_BYTES  # not yet taken by the broker, per device: two windows
PENDING_TOTAL_MAX = 256 * 1024 * 1024  # the same over all devices: memory while the broker is away
CACHE_BYTES = 64 * 1024 * 1024  # of blobs just served: a fleet pulls the same few, window after window
_DIGEST = re.compile(r"[0-9a-f]{64}")

log = structlog.get_logger()


class Pulls:
    """Answers blob requests; what exceeds a device's bound is refused, and the device asks again."""

    def __init__(self, link: Link, blobs: Blobs, counters: Counters) -> None:
        self._link = link
        self._blobs = blobs
        self._counters = counters
        self._cache: OrderedDict[Digest, bytes] = OrderedDict()
        self._cached_bytes = 0
        self._pending: dict[str, int] = {}  # bytes per device
        self._pending_total = 0
        self._serving: set[tuple[str, BlobRequest]] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def request(self, device: str, request: BlobRequest) -> None:
        """Serve a request in the background; raises RemoteWireError (`bad_request`, `busy`)."""
        if not _DIGEST.fullmatch(request.digest):
            raise RemoteWireError("bad_request", "a blob is named by its SHA-256 in hex")
        if not (0 < request.count <= BLOB_WINDOW_MAX and 0 <= request.start < 2**32):
            raise RemoteWireError("bad_request", f"chunks {request.start}+{request.count} of a blob")
        if not CHUNK_BYTES_MIN <= request.chunk_bytes <= CHUNK_BYTES:
            raise RemoteWireError("bad_request", f"chunks of {request.chunk_bytes} B")
        if (device, request) in self._serving:  # over a slow link, patience is all that helps
            raise RemoteWireError("busy", "this request is still being served")
        wanted = request.count * request.chunk_bytes
        if self._pending.get(device, 0) + wanted > PENDING_BYTES_MAX:
            raise RemoteWireError("busy", "earlier requests of this device are still being served")
        if self._pending_total + wanted > PENDING_TOTAL_MAX:
            raise RemoteWireError("busy", "too many devices are being served")
        self._pending[device] = self._pending.get(device, 0) + wanted
        self._pending_total += wanted
        self._serving.add((device, request))
        task = asyncio.ensure_future(self._serve(device, request, wanted))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Give up what is being served."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, device: str, request: BlobRequest, wanted: int) -> None:
        try:
            packets = await self._packets(device, request)
            # Chunks do not outlast their connection: answers and receipts would wait behind them on the next one.
            await asyncio.gather(*(self._link.publish(topic, data, lasting=False) for topic, data in packets))
        except LocalWireError as error:
            log.warning("blob_not_sent", device=device, error=str(error))
        finally:
            self._serving.discard((device, request))
            self._pending_total -= wanted
            self._pending[device] -= wanted
            if not self._pending[device]:
                del self._pending[device]

    async def _packets(self, device: str, request: BlobRequest) -> list[tuple[str, bytes]]:
        data = await self._load(Digest(request.digest))
        if data is None:
            self._counters.refused("unknown_blob")
            return [(topics.blob(device, request.digest, 0), b"")]
        total = chunks.count(len(data), request.chunk_bytes)
        digest = bytes.fromhex(request.digest)[:8]
        packets = []
        for index in range(request.start, min(request.start + request.count, total)):
            part = data[index * request.chunk_bytes : (index + 1) * request.chunk_bytes]
            packet = Chunk(index, total, len(data), digest, part).encode()
            packets.append((topics.blob(device, request.digest, index), packet))
            self._counters.went_down(len(packet))
        return packets

    async def _load(self, digest: Digest) -> bytes | None:
        if digest in self._cache:
            self._cache.move_to_end(digest)
            return self._cache[digest]
        data: bytes | None = None
        with contextlib.suppress(MissingBlob):  # None says so
            try:
                data = await persistently(lambda: self._blobs.get(digest), "blob")
            except CorruptBlob as error:
                log.error("blob_damaged", error=str(error))  # noqa: TRY400 - the message names the file
        if data is not None and digest not in self._cache:
            self._cache[digest] = data
            self._cached_bytes += len(data)
            while self._cached_bytes > CACHE_BYTES:
                self._cached_bytes -= len(self._cache.popitem(last=False)[1])
        return data
