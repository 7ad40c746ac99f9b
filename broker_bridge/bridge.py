"""The bridge: one process between a broker and the ports, put together from its parts.

What it must remember is in the ports, so it may be killed at any point and started again.
"""

import asyncio
import time

import msgspec
import structlog

from broker_bridge import cells
from broker_bridge.catalog import Catalog
from broker_bridge.cells import LinkCell
from broker_bridge.counters import Counters
from broker_bridge.downlink import Downlink
from broker_bridge.fanout import Fanout
from broker_bridge.mqtt import Link, Presence
from broker_bridge.ports import Conflict, PortError, Ports
from broker_bridge.pulls import Pulls
from broker_bridge.storage import persistently
from broker_bridge.uplink import Uplink
from edge_client.wire import messages, topics
from edge_client.wire.messages import ServiceState

SAVE_S = 1.0  # how often counters and cursor are written: what a kill -9 loses of the counters
STOP_S = (
    2.0  # for the last write of counters and cursor, which may be lost, when the disk is full for instance
)
SERVICE = "bridge"

log = structlog.get_logger()


class Bridge:
    """Carries messages both ways until stopped; `name` tells several bridges of one engine apart."""

    def __init__(self, ports: Ports, host: str, port: int, name: str = "main") -> None:
        self._ports = ports
        self._key = f"{cells.LINK_PREFIX}{name}"
        self._revision = 0
        self._cell = LinkCell()
        self._counters = Counters(ports.heads, name)
        self._link = Link(host, port, f"fedfleet-bridge-{name}", [topics.UP_FILTER], self._presence)
        self._saving = asyncio.Lock()

    async def run(self, stop: asyncio.Event) -> None:
        """Run until `stop` is set, then say farewell and store counters and cursor; raises PortError."""
        await persistently(self._load, "start")
        catalog = Catalog(self._ports.heads)
        pulls = Pulls(self._link, self._ports.blobs, self._counters)
        uplink = Uplink(self._link, self._ports, catalog, self._counters, pulls)
        downlink = Downlink(self._link, self._ports.heads, self._counters, self._cell.published)
        fanout = Fanout(self._link, self._ports, self._counters)
        parts = (
            catalog.follow(), uplink.run(), downlink.run(), fanout.run(), self._link.run(),
            self._save_often(uplink, downlink),
        )  # fmt: skip
        tasks = [asyncio.ensure_future(part) for part in (*parts, _wait(stop))]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # raises what ended a part that should have run on
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await pulls.close()
        try:
            async with asyncio.timeout(STOP_S):
                await self._save(uplink, downlink)
        except TimeoutError:
            log.warning("counters_not_saved", reason=f"storage took longer than {STOP_S:g} s")
        log.info("bridge_stopped")

    async def _load(self) -> None:
        self._revision, value = await self._ports.heads.load(self._key)
        if value:
            self._cell = msgspec.json.decode(value, type=LinkCell)
        await self._counters.load()

    async def _presence(self) -> Presence:
        """Birth and will of the next connection, under a number that was never used before."""
        number = self._cell.conn_seq + 1
        await self._store(conn_seq=number)
        return Presence(
            topics.service_state(SERVICE),
            birth=messages.encode(ServiceState("up", number)),
            will=messages.encode(ServiceState("down", number)),
        )

    async def _save_often(self, uplink: Uplink, downlink: Downlink) -> None:
        while True:
            await asyncio.sleep(SAVE_S)
            await persistently(lambda: self._save(uplink, downlink), "counters")

    async def _save(self, uplink: Uplink, downlink: Downlink) -> None:
        await self._counters.save(uplink.partials, uplink.untaken, time.time())
        if downlink.published != self._cell.published:
            await self._store(published=downlink.published)

    async def _store(self, **changes: int) -> None:
        async with self._saving:
            cell = msgspec.structs.replace(self._cell, **changes)
            value = msgspec.json.encode(cell)
            try:
                self._revision = await persistently(
                    lambda: self._ports.heads.swing(self._key, self._revision, value), "link"
                )
            except Conflict as error:
                raise PortError(f"another bridge runs under the name of {self._key}") from error
            self._cell = cell


async def _wait(stop: asyncio.Event) -> None:
    await stop.wait()
