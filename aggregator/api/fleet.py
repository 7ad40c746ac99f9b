"""The fleet as people look at it: at one glance, as a table, and why one device does not train."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Query, Request

from aggregator import orders, summary
from aggregator.api import examples
from aggregator.api.bodies import decode, example, json_body, read
from aggregator.api.idempotency import OnceRoute
from aggregator.api.pages import LIMIT_MAX
from aggregator.callers import caller
from aggregator.engine import Engine
from aggregator.errors import RefusedError
from aggregator.roster import FACET_VALUES_MAX, FACETS, Doing, Roster, Row, Sort, find
from aggregator.roster import Query as Filters
from aggregator.why import Work, why
from edge_client.wire.limits import FRAME_BYTES_MAX

DEVICES_MAX = 500  # that one request changes: some 0.2 s of writes, and a page can say how far it is
OFFSET_MAX = 10_000_000
Search = Annotated[
    str, Query(max_length=100, description="Part of id, cohort, tags, software, data or reasons.")
]
Word = Annotated[str | None, Query(max_length=400)]
Offset = Annotated[int, Query(ge=0, le=OFFSET_MAX, description="Rows before the first.")]
Window = Annotated[int, Query(ge=1, le=LIMIT_MAX, description="Rows of the answer.")]
StateName = Literal["ready", "disconnected", "lost", "unknown"]


class Devices(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which devices."""

    devices: list[str]


class TagChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Tags to put on devices and to take off them."""

    devices: list[str]
    add: list[str] = []
    remove: list[str] = []


def routes(engine: Engine) -> APIRouter:
    """`/fleet` and `/me`."""
    router = APIRouter(route_class=OnceRoute, tags=["fleet"])
    roster = Roster()
    _add_reads(router, engine, roster)
    _add_table(router, engine, roster)
    _add_changes(router, engine)
    return router


def _add_reads(router: APIRouter, engine: Engine, roster: Roster) -> None:
    @router.get("/me", responses=example(examples.ME))
    async def show_caller(request: Request) -> dict[str, Any]:
        """Who asks: the name of the token, or "local" where none is needed, and its role."""
        known = caller(request)
        return {"name": known.name, "role": known.role}

    @router.get("/fleet", responses=example(examples.FLEET))
    async def show_fleet() -> dict[str, Any]:
        """The fleet at one look: devices by state and by what they do, update rate, bytes, alerts."""
        now = engine.clock()
        devices = summary.devices(_rows(engine, roster, now))
        judged = summary.verdicts(engine.journal.updates)
        open_jobs = {n: j for n, j in engine.jobs.items() if engine.store.records[n].state != "ended"}
        notes = summary.alerts(
            devices,
            judged,
            open_jobs,
            trouble=engine.trouble,
            damaged=sorted(engine.store.damaged),
            dead_letters=len(engine.dead.letters),
            now=now,
        )
        return {
            "at": now,
            "devices": devices,
            "updates": {**judged, "minutes": summary.rate(engine.jobs.values(), now)},
            "cost": summary.cost(engine.jobs.values()),
            "alerts": [msgspec.to_builtins(note) for note in notes],
        }

    @router.get("/fleet/why/{device}", responses=example(examples.WHY))
    async def explain(device: str) -> dict[str, Any]:
        """Why a device trains or does not, a sentence for each job that has not ended."""
        record = orders.find(engine, device)
        works = [_work(engine, name) for name in sorted(engine.jobs) if _is_open(engine, name)]
        leases = {name: engine.jobs[name].leases for name in engine.jobs}
        paused = engine.marks.of(device).paused
        return {
            "because": [msgspec.to_builtins(b) for b in why(record, paused, works, leases, engine.clock())]
        }


def _add_table(router: APIRouter, engine: Engine, roster: Roster) -> None:
    @router.get("/fleet/devices", responses=example(examples.ROWS))
    async def list_rows(
        *,
        q: Search = "",
        state: StateName | None = None,
        doing: Doing | None = None,
        reason: Word = None,
        cohort: Word = None,
        tag: Word = None,
        software: Word = None,
        sort: Sort = "device",
        order: Literal["up", "down"] = "up",
        offset: Offset = 0,
        limit: Window = 100,
    ) -> dict[str, Any]:
        """A window into the table of devices, and how many devices each value of a facet would leave."""
        now = engine.clock()
        filters = Filters(q, state, doing, reason, cohort, tag, software)
        found = find(_rows(engine, roster, now), filters, sort, descending=order == "down")
        return {
            "total": len(found.rows),
            "devices": [_shown(row) for row in found.rows[offset : offset + limit]],
            "facets": {name: dict(found.facets[name].most_common(FACET_VALUES_MAX)) for name in FACETS},
        }


def _add_changes(router: APIRouter, engine: Engine) -> None:
    some = {"devices": ["watch-1", "watch-7"]}
    done = example({"changed": 2, "refused": []})

    @router.post(
        "/fleet/tags",
        openapi_extra=json_body(TagChange, {**some, "add": ["lab"], "remove": []}),
        responses=done,
    )
    async def tag_devices(request: Request) -> dict[str, Any]:
        """Put tags on up to 500 devices and take others off; those refused are named with the reason."""
        body = decode(await read(request, FRAME_BYTES_MAX), TagChange)
        return await _each(body.devices, lambda device: _retag(engine, device, body))

    @router.post("/fleet/pause", openapi_extra=json_body(Devices, some), responses=done)
    async def pause_devices(request: Request) -> dict[str, Any]:
        """Give up to 500 devices no more work; what they train now they may finish."""
        body = decode(await read(request, FRAME_BYTES_MAX), Devices)
        return await _each(body.devices, lambda d: _change(engine, d, orders.pause, caller(request).name))

    @router.post("/fleet/resume", openapi_extra=json_body(Devices, some), responses=done)
    async def resume_devices(request: Request) -> dict[str, Any]:
        """Let up to 500 devices work again: they get places after their next ask."""
        body = decode(await read(request, FRAME_BYTES_MAX), Devices)
        return await _each(body.devices, lambda d: _change(engine, d, orders.resume, caller(request).name))


async def _each(devices: list[str], change: Callable[[str], Awaitable[bool]]) -> dict[str, Any]:
    """Change one after the other: how many were changed, and who was refused, why."""
    if len(devices) > DEVICES_MAX:
        raise RefusedError("bad_request", f"{len(devices)} devices; send at most {DEVICES_MAX} at once")
    changed, refused = 0, []
    for device in devices:
        try:
            changed += await change(device)
        except RefusedError as error:
            refused.append({"device": device[:80], "code": error.code, "reason": str(error)})
    return {"changed": changed, "refused": refused}


async def _change(
    engine: Engine, device: str, order: Callable[[Engine, str, str], Awaitable[None]], by: str
) -> bool:
    before = engine.marks.revision(device)
    await order(engine, device, by)
    return engine.marks.revision(device) != before


async def _retag(engine: Engine, device: str, change: TagChange) -> bool:
    orders.find(engine, device)
    before = engine.marks.of(device).tags
    after = sorted((set(before) - set(change.remove)) | set(change.add))
    if after == before:
        return False
    await orders.tag(engine, device, after)
    return True


def _rows(engine: Engine, roster: Roster, now: float) -> list[Row]:
    leases_s = {name: job.spec.lease_s for name, job in engine.jobs.items() if _is_open(engine, name)}
    return roster.rows(engine.fleet, leases_s, engine.marks.of, engine.marks.revision, now)


def _is_open(engine: Engine, name: str) -> bool:
    return engine.store.records[name].state != "ended"


def _work(engine: Engine, name: str) -> Work:
    job, record = engine.jobs[name], engine.store.records[name]
    return Work(
        name,
        paused=record.state == "paused",
        cohort=job.spec.cohort,
        dataset=job.spec.dataset,
        places=job.places,
        lease_s=job.spec.lease_s,
        barrier=job.spec.barrier,
        barred=job.barred(),
        trouble=engine.trouble,
    )


def _shown(row: Row) -> dict[str, Any]:
    view: dict[str, Any] = msgspec.to_builtins(row)
    del view["text"], view["due"]
    return view
