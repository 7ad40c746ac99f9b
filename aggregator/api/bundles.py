"""Bundles, and the test sets that versions are evaluated on."""

from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from aggregator.api import examples
from aggregator.api.bodies import binary_body, example, read
from aggregator.api.idempotency import OnceRoute
from aggregator.api.pages import LIMIT_DEFAULT, Cursor, Limit, answer, page_by_name
from aggregator.engine import Engine
from aggregator.errors import RefusedError
from edge_client.wire.limits import FRAME_BYTES_MAX

_STORED = {"digest": examples.DIGEST, "manifest": {"name": "exercise", "loss": "cross_entropy"}}


def routes(engine: Engine) -> APIRouter:
    """`/bundles` and `/testsets`."""
    router = APIRouter(route_class=OnceRoute, tags=["bundles"])

    @router.post(
        "/bundles",
        status_code=201,
        openapi_extra=binary_body("a training bundle"),
        responses=example(_STORED, 201),
    )
    async def upload_bundle(request: Request) -> dict[str, Any]:
        """Store a training bundle; the same bundle again is harmless."""
        bundle, digest = await engine.shelf.add(await read(request, FRAME_BYTES_MAX))
        return {"digest": digest, "manifest": msgspec.to_builtins(bundle.manifest)}

    @router.get("/bundles", responses=example(examples.page("bundles", examples.BUNDLE)))
    async def list_bundles(limit: Limit = LIMIT_DEFAULT, cursor: Cursor = None) -> dict[str, Any]:
        """Stored bundles, by digest, with the jobs that use each."""
        found = await engine.shelf.list()
        shown, after = page_by_name(found, lambda entry: entry.digest, limit, cursor)
        bundles = [{**msgspec.to_builtins(entry), "jobs": _users(engine, entry.digest)} for entry in shown]
        return answer("bundles", bundles, after, len(found))

    @router.get("/bundles/{digest}", responses=example({**_STORED, "size": 220170}))
    async def show_bundle(digest: str) -> dict[str, Any]:
        """The manifest of a stored bundle."""
        bundle, ref = await engine.shelf.open(digest)
        return {"digest": ref.digest, "size": ref.size, "manifest": msgspec.to_builtins(bundle.manifest)}

    @router.delete("/bundles/{digest}", status_code=204, response_class=Response)
    async def delete_bundle(digest: str) -> Response:
        """Delete a bundle that no job uses, not even one that ended."""
        users = _users(engine, digest)
        if users:
            raise RefusedError(
                "in_use", f"bundle {digest[:12]} is used by {', '.join(users)}; delete that first"
            )
        await engine.shelf.delete(digest)
        return Response(status_code=204)

    @router.post(
        "/testsets",
        status_code=201,
        openapi_extra=binary_body("an .npz with x and y"),
        responses=example({"digest": examples.DIGEST}, 201),
    )
    async def upload_testset(request: Request) -> dict[str, Any]:
        """Store a data set for evaluation on the server; the same again is harmless."""
        return {"digest": await engine.shelf.add_testset(await read(request, FRAME_BYTES_MAX))}

    return router


def _users(engine: Engine, digest: str) -> list[str]:
    """Jobs that use a bundle, damaged ones too."""
    return sorted(name for name, record in engine.store.records.items() if record.bundle.digest == digest)
