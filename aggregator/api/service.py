"""Whether the server works."""

from typing import Any

import msgspec
from fastapi import APIRouter, Request

from aggregator.api.bodies import example
from aggregator.engine import Engine
from aggregator.errors import RefusedError
from broker_bridge import cells, deadletters


def routes(engine: Engine) -> APIRouter:
    """`/health` and `/ready`, which need no token."""
    router = APIRouter(tags=["service"])

    @router.get(
        "/health",
        responses=example(
            {
                "status": "ok",
                "reason": "",
                "jobs": 1,
                "damaged": [],
                "dead_letters": 0,
                "dead_messages": [],
                "devices": 16,
                "bridge": None,
            }
        ),
    )
    async def health(request: Request) -> dict[str, Any]:
        """Answers when the server does; `status` is "ok", or "waiting" while storage takes nothing, for `reason`.

        `bridge` holds the bridge's counters, null before its first. Who has no token is told the status alone.
        """
        status = "waiting" if engine.trouble else "ok"
        if request.state.caller is None:
            return {"status": status}
        _, value = await engine.ports.heads.load(f"{cells.BRIDGE_PREFIX}main")
        bridge = msgspec.to_builtins(msgspec.json.decode(value, type=cells.BridgeCell)) if value else None
        return {
            "status": status,
            "reason": engine.trouble,
            "jobs": len(engine.jobs),
            "damaged": sorted(engine.store.damaged),
            "dead_letters": len(engine.dead.letters),
            "dead_messages": [
                {"at": letter.at, "topic": letter.topic, "reason": letter.reason, "bytes": letter.size}
                for letter in await deadletters.read(engine.ports.heads)
            ],
            "devices": len(engine.fleet.devices),
            "bridge": bridge,
        }

    @router.get("/ready", responses=example({"status": "ready"}))
    async def ready() -> dict[str, str]:
        """Answers 200 when the engine has loaded its state and its storage takes what is written, else 503."""
        if not engine.ready.is_set():
            raise RefusedError("not_ready", "the server is loading its state; try again in a moment")
        if engine.trouble:
            raise RefusedError("not_ready", engine.trouble)
        await engine.ports.heads.load("ready")
        return {"status": "ready"}

    return router
