"""Publishes the delta of each new version once, for the broker to hand to the devices that follow the job.

A help, not a promise: who misses one pulls it. So nothing is published again, neither after a restart nor when
versions come faster than they are published.
"""

import asyncio

import msgspec
import structlog

from broker_bridge import cells
from broker_bridge.cells import FanCell
from broker_bridge.counters import Counters
from broker_bridge.mqtt import Link
from broker_bridge.ports import Change, CorruptBlob, Digest, MissingBlob, Ports
from broker_bridge.storage import persistently
from edge_client.wire import chunks, topics
from edge_client.wire.errors import LocalWireError

log = structlog.get_logger()


class Fanout:
    """Follows the cells under `fan/`."""

    def __init__(self, link: Link, ports: Ports, counters: Counters) -> None:
        self._link = link
        self._ports = ports
        self._counters = counters
        self._seen = 0

    async def run(self) -> None:
        """Publish until cancelled."""
        known = await persistently(lambda: self._ports.heads.list(cells.FAN_PREFIX), "fanout")
        self._seen = max((change.revision for change in known), default=0)
        await persistently(self._follow, "fanout")

    async def _follow(self) -> None:
        async for change in self._ports.heads.watch(cells.FAN_PREFIX, self._seen):
            await self._link.connection()
            if change.value is not None:
                await self._publish(change, msgspec.json.decode(change.value, type=FanCell))
            self._seen = change.revision

    async def _publish(self, change: Change, fan: FanCell) -> None:
        job = change.key[len(cells.FAN_PREFIX) :]
        try:
            frame = await self._ports.blobs.get(Digest(fan.digest))
            sent = [
                self._link.publish(topics.delta(fan.cohort, job, fan.version, index), packet)
                for index, packet in enumerate(packets(frame, self._link.packet_bytes_max))
            ]
            await asyncio.gather(*sent)
        except (MissingBlob, CorruptBlob, LocalWireError) as error:
            log.warning("delta_not_published", job=job, version=fan.version, error=str(error))
            return
        self._counters.went_down(len(frame))


def packets(frame: bytes, packet_bytes_max: int | None) -> list[bytes]:
    """The payloads a DELTA frame travels as: itself where it fits a chunk, else CHUNK frames (I9)."""
    size = chunks.chunk_bytes(packet_bytes_max)
    total = chunks.count(len(frame), size)
    if total == 1:
        return [frame]
    return [chunks.cut(frame, index, size).encode() for index in range(total)]
