"""Devices. What they say of themselves is a stranger's text: it is data here, and no part of it is interpreted."""

from collections import Counter
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Query, Request, Response

from aggregator import orders, views
from aggregator.api import examples
from aggregator.api.bodies import decode, example, json_body, read
from aggregator.api.etags import mark, match
from aggregator.api.idempotency import OnceRoute
from aggregator.api.pages import LIMIT_DEFAULT, Cursor, Limit, answer, page_by_name
from aggregator.callers import caller
from aggregator.engine import Engine
from aggregator.fleet import DeviceRecord
from aggregator.marks import NONE
from edge_client.wire.limits import JSON_BYTES_MAX

DeviceStateName = Literal["ready", "disconnected", "lost", "unknown"]
Search = Annotated[
    str | None,
    Query(max_length=100, description="Part of its id, cohort, tags, software, data sets or reasons."),
]
ONE = example(examples.DEVICE)
Word = Annotated[str | None, Query(max_length=100)]


class TagsBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All tags of a device."""

    tags: list[str]


def routes(engine: Engine) -> APIRouter:
    """`/devices`."""
    router = APIRouter(route_class=OnceRoute, tags=["devices"])
    _add_reads(router, engine)
    _add_changes(router, engine)
    return router


def _add_reads(router: APIRouter, engine: Engine) -> None:
    @router.get("/devices", responses=example(examples.page("devices", examples.DEVICE, states={"ready": 1})))
    async def list_devices(
        *,
        state: DeviceStateName | None = None,
        cohort: Word = None,
        tag: Word = None,
        paused: bool | None = None,
        q: Search = None,
        limit: Limit = LIMIT_DEFAULT,
        cursor: Cursor = None,
    ) -> dict[str, Any]:
        """All devices that ever spoke, by id; filters hold together. `states` counts those found by state."""
        fleet = engine.fleet
        names, states = fleet.names, fleet.states
        if any(given is not None for given in (state, cohort, tag, paused, q)):
            found = [fleet.devices[name] for name in names]
            if state is not None:
                found = [record for record in found if record.state == state]
            if cohort is not None:
                found = [record for record in found if record.cohort == cohort]
            found = _marked(engine, found, tag, paused=paused)
            if q is not None:
                words = q.casefold()
                found = [r for r in found if words in fleet.text(r) or words in _marks(engine, r.device)]
            names, states = [record.device for record in found], Counter(record.state for record in found)
        shown, after = page_by_name(names, str, limit, cursor)
        devices = [views.device(engine, fleet.devices[n]) for n in shown]
        return {**answer("devices", devices, after, len(names)), "states": dict(states)}

    @router.get("/devices/{device}", responses=example({**examples.DEVICE, "timeline": [examples.MOMENT]}))
    async def show_device(device: str, response: Response) -> dict[str, Any]:
        """One device: what it is, what it does for each job, and what it lately did, newest first."""
        record = orders.find(engine, device)
        mark(response, engine.marks.revision(device))
        timeline = [msgspec.to_builtins(moment) for moment in engine.journal.timeline(device)]
        return {**views.device(engine, record), "timeline": timeline}


def _add_changes(router: APIRouter, engine: Engine) -> None:
    @router.put(
        "/devices/{device}/tags",
        openapi_extra=json_body(TagsBody, {"tags": ["lab", "building 7"]}),
        responses=ONE,
    )
    async def tag_device(device: str, request: Request, response: Response) -> dict[str, Any]:
        """Replace a device's tags."""
        orders.find(engine, device)
        body = decode(await read(request, JSON_BYTES_MAX), TagsBody)
        match(request, engine.marks.revision(device))
        await orders.tag(engine, device, body.tags)
        return _shown(engine, device, response)

    @router.post("/devices/{device}/pause", responses=ONE)
    async def pause_device(device: str, request: Request, response: Response) -> dict[str, Any]:
        """Give a device no more work; what it trains now it may finish. Again is harmless."""
        orders.find(engine, device)
        match(request, engine.marks.revision(device))
        await orders.pause(engine, device, caller(request).name)
        return _shown(engine, device, response)

    @router.post("/devices/{device}/resume", responses=ONE)
    async def resume_device(device: str, request: Request, response: Response) -> dict[str, Any]:
        """Let a device work again: it gets a place after its next ask. Again is harmless."""
        orders.find(engine, device)
        match(request, engine.marks.revision(device))
        await orders.resume(engine, device, caller(request).name)
        return _shown(engine, device, response)

    @router.post("/devices/{device}/forget", responses=ONE)
    async def forget_device(device: str, request: Request) -> dict[str, Any]:
        """Remove what is known of a device that is not connected; the answer is what was. Its updates stay folded."""
        before = views.device(engine, orders.find(engine, device))
        match(request, engine.marks.revision(device))
        await orders.forget(engine, device)
        return before


def _shown(engine: Engine, device: str, response: Response) -> dict[str, Any]:
    mark(response, engine.marks.revision(device))
    return views.device(engine, orders.find(engine, device))


def _marked(
    engine: Engine, found: list[DeviceRecord], tag: str | None, *, paused: bool | None
) -> list[DeviceRecord]:
    """Those that have this tag, and are paused or not."""
    marks = engine.marks
    if tag is not None:
        found = [record for record in found if tag in marks.of(record.device).tags]
    if paused is not None:
        found = [record for record in found if marks.paused(record.device) is paused]
    return found


def _marks(engine: Engine, device: str) -> str:
    """What a search looks into of what operators put on a device."""
    mark = engine.marks.of(device)
    if mark is NONE:
        return ""
    return "\n".join([*mark.tags, f"paused by {mark.paused.by}" if mark.paused else ""]).casefold()
