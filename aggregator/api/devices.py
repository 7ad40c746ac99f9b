"""Devices. What they say of themselves is a stranger's text: it is data here, and no part of it is interpreted."""

from collections import Counter
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Query, Request, Response

from aggregator import views
from aggregator.api import examples
from aggregator.api.bodies import decode, example, json_body, read
from aggregator.api.etags import mark, match
from aggregator.api.pages import LIMIT_DEFAULT, Cursor, Limit, answer, page_by_name
from aggregator.engine import Engine
from aggregator.errors import NotFoundError
from aggregator.fleet import DeviceRecord
from edge_client.wire.limits import JSON_BYTES_MAX

DeviceStateName = Literal["ready", "disconnected", "lost", "unknown"]
Search = Annotated[
    str | None,
    Query(max_length=100, description="Part of its id, cohort, tags, software, data sets or reasons."),
]
Word = Annotated[str | None, Query(max_length=100)]


class TagsBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All tags of a device."""

    tags: list[str]


def routes(engine: Engine) -> APIRouter:
    """`/devices`."""
    router = APIRouter(tags=["devices"])

    @router.get("/devices", responses=example(examples.page("devices", examples.DEVICE, states={"ready": 1})))
    async def list_devices(
        *,
        state: DeviceStateName | None = None,
        cohort: Word = None,
        tag: Word = None,
        q: Search = None,
        limit: Limit = LIMIT_DEFAULT,
        cursor: Cursor = None,
    ) -> dict[str, Any]:
        """All devices that ever spoke, by id; filters hold together. `states` counts those found by state."""
        found = [
            record
            for record in engine.fleet.devices.values()
            if state in (None, record.state)
            and cohort in (None, record.cohort)
            and (tag is None or tag in engine.tags.of(record.device))
            and (q is None or q.casefold() in _text(engine, record))
        ]
        found.sort(key=lambda record: record.device)
        shown, after = page_by_name(found, lambda record: record.device, limit, cursor)
        page = answer("devices", [views.device(engine, record) for record in shown], after, len(found))
        return {**page, "states": dict(Counter(record.state for record in found))}

    @router.get("/devices/{device}", responses=example({**examples.DEVICE, "timeline": [examples.MOMENT]}))
    async def show_device(device: str, response: Response) -> dict[str, Any]:
        """One device: what it is, what it does for each job, and what it lately did, newest first."""
        record = _find(engine, device)
        mark(response, engine.tags.revision(device))
        timeline = [msgspec.to_builtins(moment) for moment in engine.journal.timeline(device)]
        return {**views.device(engine, record), "timeline": timeline}

    @router.put(
        "/devices/{device}/tags",
        openapi_extra=json_body(TagsBody, {"tags": ["lab", "building 7"]}),
        responses=example(examples.DEVICE),
    )
    async def tag_device(device: str, request: Request, response: Response) -> dict[str, Any]:
        """Replace a device's tags."""
        record = _find(engine, device)
        body = decode(await read(request, JSON_BYTES_MAX), TagsBody)
        match(request, engine.tags.revision(device))
        await engine.tags.put(device, body.tags)
        engine.stream.publish("device", {"device": device, "kind": "tags", "tags": engine.tags.of(device)})
        mark(response, engine.tags.revision(device))
        return views.device(engine, record)

    return router


def _find(engine: Engine, device: str) -> DeviceRecord:
    record = engine.fleet.devices.get(device)
    if record is None:
        raise NotFoundError(f"no device named {device[:80]} ever spoke")
    return record


def _text(engine: Engine, record: DeviceRecord) -> str:
    """What a search looks into."""
    words = [record.device, record.cohort, *engine.tags.of(record.device)]
    if record.info is not None:
        words += [record.info.software, record.info.arch, *(data.name for data in record.info.datasets)]
    words += [task.status.reason for task in record.tasks.values() if task.status is not None]
    return "\n".join(words).casefold()
