"""Versions of a job and their models."""

import asyncio
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from aggregator import views
from aggregator.api import examples
from aggregator.api.bodies import example
from aggregator.api.etags import mark, match
from aggregator.api.idempotency import OnceRoute
from aggregator.api.pages import LIMIT_DEFAULT, Cursor, Limit, answer, page_by_number
from aggregator.engine import Engine
from aggregator.errors import CorruptStateError, RefusedError
from aggregator.job import Job
from aggregator.versions import VersionManifest, load_manifest, load_model
from edge_client.bundle import INFER
from firmware_tools.errors import ExportError
from firmware_tools.export import export_model

Order = Annotated[Literal["oldest", "newest"], Query(description="Which come first.")]
Format = Annotated[Literal["fp32", "int8"], Query(alias="format")]
BYTES: dict[int | str, dict[str, Any]] = {200: {"content": {"application/octet-stream": {}}}}


def routes(engine: Engine) -> APIRouter:
    """`/jobs/{name}/versions` and `/jobs/{name}/model`."""
    router = APIRouter(route_class=OnceRoute, tags=["versions"])
    _add_reads(router, engine)
    _add_changes(router, engine)
    return router


def _add_reads(router: APIRouter, engine: Engine) -> None:
    @router.get("/jobs/{name}/versions", responses=example(examples.page("versions", examples.VERSION)))
    async def list_versions(
        name: str, limit: Limit = LIMIT_DEFAULT, cursor: Cursor = None, order: Order = "oldest"
    ) -> dict[str, Any]:
        """Versions of a job with their figures."""
        job = views.find_job(engine, name)
        records = job.history.records
        shown, after = page_by_number(
            records, lambda r: r.version, limit, cursor, newest_first=order == "newest"
        )
        return answer("versions", [views.version(job, record) for record in shown], after, len(records))

    @router.get("/jobs/{name}/versions/{number}", responses=example(examples.VERSION))
    async def show_version(name: str, number: int) -> dict[str, Any]:
        """One version; `parent` is the digest of the manifest of the one it was made from."""
        job = views.find_job(engine, name)
        return views.version(job, views.find_version(job, number))

    @router.get("/jobs/{name}/versions/{number}/manifest")
    async def show_manifest(name: str, number: int) -> dict[str, Any]:
        """What made a version, immutable: its parent, the log ranges and bases of its updates, weights, bounds."""
        job = views.find_job(engine, name)
        digest = views.find_version(job, number).manifest
        manifest: dict[str, Any] = msgspec.json.decode(
            msgspec.json.encode(await load_manifest(engine.ports.blobs, digest))
        )
        return {"digest": digest, **manifest}

    @router.get("/jobs/{name}/model", response_class=Response, responses=BYTES)
    async def download_model(
        name: str, version: Annotated[int | None, Query()] = None, kind: Format = "fp32"
    ) -> Response:
        """A version's model as ONNX for inference: unless named the promoted, else the newest.

        Of a detector it is the newest that has a threshold of its own.
        """
        job = views.find_job(engine, name)
        number = views.find_version(job, job.exported if version is None else version).version
        data = await _exported(engine, job, number, kind)
        headers = {"X-Fedfleet-Version": str(number)}
        return Response(data, media_type="application/octet-stream", headers=headers)


def _add_changes(router: APIRouter, engine: Engine) -> None:
    @router.post("/jobs/{name}/versions/{number}/promote", responses=example(examples.VERSION))
    async def promote_version(name: str, number: int, request: Request, response: Response) -> dict[str, Any]:
        """Have this version exported and answered as the job's model by default; devices go on with the newest."""
        job = views.find_job(engine, name)
        _stored(job, views.find_version(job, number).version)
        match(request, engine.store.revision(name))
        await engine.promote(name, number)
        mark(response, engine.store.revision(name))
        return views.version(job, views.find_version(job, number))

    @router.post("/jobs/{name}/unpromote", responses=example(examples.JOB))
    async def unpromote_version(name: str, request: Request, response: Response) -> dict[str, Any]:
        """Take the promotion back: the newest is exported again, and the version is kept no longer than others."""
        job = views.find_job(engine, name)
        match(request, engine.store.revision(name))
        if job.promoted is None:
            raise RefusedError("not_promoted", f"no version of {name} is promoted")
        await engine.promote(name, None)
        mark(response, engine.store.revision(name))
        return views.job(engine, name)


async def _exported(engine: Engine, job: Job, number: int, kind: Literal["fp32", "int8"]) -> bytes:
    try:
        values = await load_model(engine.ports.blobs, _stored(job, number), job.bundle.sizes)
    except CorruptStateError:
        _stored(job, number)  # a commit may just have ended its time, which is nobody's fault
        raise
    bundle, _ = await engine.shelf.open(job.bundle_ref.digest)
    infer = bundle.member(INFER)
    try:  # in a thread: a large model takes seconds, and the engine shares this event loop
        return await asyncio.to_thread(
            export_model,
            infer,
            bundle.manifest,
            values,
            kind,
            version=str(number),
            threshold=job.history.threshold(number),
        )
    except ExportError as error:
        raise RefusedError("bad_export", str(error)) from error


def _stored(job: Job, number: int) -> VersionManifest:
    manifest = job.recent.get(number)
    if manifest is None:
        kept = ", ".join(str(v) for v in sorted(job.recent))
        raise RefusedError(
            "not_stored", f"version {number} of {job.spec.name} is not stored any more; these are: {kept}"
        )
    return manifest
