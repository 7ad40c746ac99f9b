"""What happens, live (server-sent events), and who changed what."""

import time
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse

from aggregator.api import examples
from aggregator.api.bodies import example
from aggregator.api.pages import LIMIT_DEFAULT, Cursor, Limit, answer, page_by_number
from aggregator.callers import caller
from aggregator.engine import Engine
from aggregator.errors import RefusedError
from aggregator.stream import HEARTBEAT_S, KINDS
from aggregator.tokens import Tokens

VIEWERS_MAX = 500  # connections that stay open; more are refused, or they would starve everybody else
KindsQuery = Annotated[str | None, Query(max_length=100, description="Comma-separated; all unless given.")]
STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}


def routes(engine: Engine) -> APIRouter:
    """`/events` and `/audit`."""
    router = APIRouter(tags=["events"])
    viewers: set[object] = set()
    tokens = Tokens(engine.ports.heads)

    @router.get("/events", response_class=StreamingResponse, responses=STREAM)
    async def follow_events(
        request: Request,
        kinds: KindsQuery = None,
        last_event_id: Annotated[str | None, Header(max_length=100)] = None,
    ) -> StreamingResponse:
        """Server-sent events `job`, `version`, `device`, `update`, `rejection` and `audit`.

        `Last-Event-ID` goes on after that event; an event `reset` says that some are lost, and to read anew.
        """
        wanted, known = _kinds(kinds), caller(request)
        if len(viewers) >= VIEWERS_MAX:
            raise RefusedError(
                "too_many_viewers", f"{VIEWERS_MAX} viewers follow already; close some, or ask for lists"
            )

        async def body() -> Any:
            this = object()
            viewers.add(this)
            looked_at = time.monotonic()
            try:
                async for text in engine.stream.follow(last_event_id, wanted):
                    if time.monotonic() - looked_at >= HEARTBEAT_S:  # a revoked token ends its streams, too
                        if not await tokens.still(known):
                            return
                        looked_at = time.monotonic()
                    yield text
            finally:
                viewers.discard(this)

        return StreamingResponse(body(), media_type="text/event-stream")

    @router.get("/events/recent", responses=example(examples.page("events", examples.EVENT)))
    async def list_events(
        kinds: KindsQuery = None, limit: Limit = LIMIT_DEFAULT, cursor: Cursor = None
    ) -> dict[str, Any]:
        """The events that are kept, newest first; `/events` goes on after the `id` of the first."""
        found = engine.stream.recent(_kinds(kinds))
        shown, after = page_by_number(found, lambda e: e.number, limit, cursor, newest_first=True)
        events = [
            {"id": engine.stream.id(event), "kind": event.kind, "data": msgspec.json.decode(event.data)}
            for event in shown
        ]
        return answer("events", events, after, len(found))

    @router.get("/audit", responses=example(examples.page("audit", examples.AUDIT)))
    async def list_audit(limit: Limit = LIMIT_DEFAULT, cursor: Cursor = None) -> dict[str, Any]:
        """The newest thousand changes that people made, newest first; `method` "command" is `fedfleet token`."""
        await engine.audit.load()  # `fedfleet token` notes what it did from a process of its own
        entries = engine.audit.entries
        shown, after = page_by_number(entries, lambda e: e.number, limit, cursor, newest_first=True)
        return answer("audit", [msgspec.to_builtins(entry) for entry in shown], after, len(entries))

    return router


def _kinds(kinds: str | None) -> tuple[str, ...]:
    wanted = KINDS if kinds is None else tuple(kinds.split(","))
    unknown = [kind for kind in wanted if kind not in KINDS]
    if unknown:
        raise RefusedError("bad_request", f"kinds: no {unknown[0][:40]!r}; there are: {', '.join(KINDS)}")
    return wanted
