"""Verdicts on the newest updates of all devices."""

from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Query

from aggregator.api import examples
from aggregator.api.bodies import example
from aggregator.api.pages import LIMIT_DEFAULT, Cursor, Limit, answer, page_by_number
from aggregator.engine import Engine

Name = Annotated[str | None, Query(max_length=100)]


def routes(engine: Engine) -> APIRouter:
    """`/updates`."""
    router = APIRouter(tags=["updates"])

    @router.get("/updates", responses=example(examples.page("updates", examples.VERDICT)))
    async def list_updates(
        verdict: Literal["accepted", "rejected"] | None = None,
        job: Name = None,
        device: Name = None,
        limit: Limit = LIMIT_DEFAULT,
        cursor: Cursor = None,
    ) -> dict[str, Any]:
        """What was said to the newest thousand updates, newest first: accepted, or rejected with code and reason."""
        found = [
            note
            for note in engine.journal.updates
            if verdict in (None, note.verdict) and job in (None, note.job) and device in (None, note.device)
        ]
        shown, after = page_by_number(found, lambda note: note.number, limit, cursor, newest_first=True)
        return answer("updates", [msgspec.to_builtins(note) for note in shown], after, len(found))

    return router
