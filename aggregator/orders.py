"""What operators do to one device: tag it, pause it, resume it, forget it.

A paused device gets no place; the server alone sees to that, so it holds for every device whatever its software.
A device is forgotten by an entry of the log, behind all it said so far: a replay forgets it at the same point.
"""

import asyncio
import secrets

from aggregator.engine import Engine
from aggregator.errors import NotFoundError, RefusedError
from aggregator.fleet import DeviceRecord
from aggregator.journal import Moment
from aggregator.marks import Pause
from broker_bridge.ports import Kind
from broker_bridge.records import EventRecord, encode
from edge_client.wire import topics

FORGET_S = 10.0  # for the engine to reach the entry: milliseconds, unless it is loading or its storage fails


def find(engine: Engine, device: str) -> DeviceRecord:
    """The record of a device; raise NotFoundError."""
    record = engine.fleet.devices.get(device)
    if record is None:
        raise NotFoundError(f"no device named {device[:80]} ever spoke")
    return record


async def tag(engine: Engine, device: str, tags: list[str]) -> None:
    """Replace a device's tags; raise RefusedError."""
    find(engine, device)
    await engine.marks.tag(device, tags)
    engine.stream.publish("device", {"device": device, "kind": "tags", "tags": engine.marks.of(device).tags})


async def pause(engine: Engine, device: str, by: str) -> None:
    """Give a device no more work; what it trains now it may finish. One that is paused stays as it is."""
    find(engine, device)
    if engine.marks.paused(device):
        return
    now = engine.clock()
    await engine.marks.pause(device, Pause(by, now))
    for job in engine.jobs.values():
        job.leases.away(device)
    engine.journal.note(device, Moment(now, "paused", what=f"by {by}"))


async def resume(engine: Engine, device: str, by: str) -> None:
    """Let a device work again: it gets a place after its next ask."""
    find(engine, device)
    if not engine.marks.paused(device):
        return
    await engine.marks.pause(device, None)
    engine.journal.note(device, Moment(engine.clock(), "resumed", what=f"by {by}"))


async def forget(engine: Engine, device: str) -> None:
    """Remove what is known of a device that is not connected; raise RefusedError (`connected`, `busy`).

    Its updates stay in the versions, and the verdicts on them with the bridge, so that none is folded twice (I1).
    """
    if find(engine, device).state == "ready":
        raise RefusedError(
            "connected", f"{device} is connected and would be back with its next message; switch it off first"
        )
    partition = topics.partition(device, engine.ports.partitions)
    uid = f"event:{device}:{secrets.token_hex(8)}"
    record = EventRecord(engine.clock(), "forget", device, "", b"")
    offset = await engine.ports.log.append(partition, uid, Kind.EVENT, encode(record))
    try:
        async with asyncio.timeout(FORGET_S):
            await engine.reached(partition, offset)
    except TimeoutError as error:
        raise RefusedError(
            "busy", f"{device} will be forgotten as soon as the server has caught up with its devices"
        ) from error
