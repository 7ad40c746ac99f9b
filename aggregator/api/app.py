"""The FastAPI application around one engine. Errors are problem details (RFC 9457)."""

import asyncio
from typing import Annotated, Any, Literal

import msgspec
from fastapi import FastAPI, Query, Request
from fastapi.responses import Response

from aggregator import views
from aggregator.api.problems import answer_with_problems
from aggregator.engine import Engine
from aggregator.errors import CorruptStateError, NotFoundError, RefusedError
from aggregator.job import Job
from aggregator.spec import JobSpec, parse
from aggregator.versions import VersionManifest, load_model
from broker_bridge import cells
from edge_client.bundle import INFER
from edge_client.wire.limits import FRAME_BYTES_MAX, JSON_BYTES_MAX
from firmware_tools.errors import ExportError
from firmware_tools.export import export_model

PREFIX = "/api/v1"
DeviceStateName = Literal["ready", "disconnected", "lost", "unknown"]


def create_app(engine: Engine) -> FastAPI:
    """Build the application; `engine` must be running on the same event loop."""
    # FastAPI's documentation pages load their scripts from a CDN, which a closed network does not reach.
    app = FastAPI(
        title="fedfleet", version="1", docs_url=None, redoc_url=None, openapi_url=f"{PREFIX}/openapi.json"
    )
    answer_with_problems(app)
    _add_service(app, engine)
    _add_bundles(app, engine)
    _add_testsets(app, engine)
    _add_jobs(app, engine)
    _add_versions(app, engine)
    return app


async def _body(request: Request, bytes_max: int) -> bytes:
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > bytes_max:
            raise RefusedError("too_large", f"the body is over {bytes_max} B")
    return bytes(data)


def _add_service(app: FastAPI, engine: Engine) -> None:
    @app.get(f"{PREFIX}/health")
    async def health() -> dict[str, Any]:
        """Answers when the server does; `status` is "ok", or "waiting" while storage takes nothing, for `reason`.

        `bridge` holds the bridge's counters, null before its first.
        """
        _, value = await engine.ports.heads.load(f"{cells.BRIDGE_PREFIX}main")
        bridge = msgspec.to_builtins(msgspec.json.decode(value, type=cells.BridgeCell)) if value else None
        return {
            "status": "waiting" if engine.trouble else "ok",
            "reason": engine.trouble,
            "jobs": len(engine.jobs),
            "damaged": sorted(engine.store.damaged),
            "devices": len(engine.fleet.devices),
            "bridge": bridge,
        }

    @app.get(f"{PREFIX}/devices")
    async def devices(state: DeviceStateName | None = None) -> dict[str, Any]:
        """All devices, by id; `state` filters on ready, disconnected, lost or unknown."""
        found = [r for _, r in sorted(engine.fleet.devices.items()) if state in (None, r.state)]
        return {"devices": [views.device(record) for record in found]}

    @app.get(f"{PREFIX}/devices/{{device}}")
    async def device(device: str) -> dict[str, Any]:
        """One device."""
        record = engine.fleet.devices.get(device)
        if record is None:
            raise NotFoundError(f"no device named {device} ever spoke")
        return views.device(record)


def _add_bundles(app: FastAPI, engine: Engine) -> None:
    @app.post(f"{PREFIX}/bundles", status_code=201, openapi_extra=_binary_body("a training bundle"))
    async def upload(request: Request) -> dict[str, Any]:
        """Store a training bundle; the same bundle again is harmless."""
        data = await _body(request, FRAME_BYTES_MAX)
        bundle, digest = await engine.shelf.add(data)
        return {"digest": digest, "manifest": msgspec.to_builtins(bundle.manifest)}

    @app.get(f"{PREFIX}/bundles/{{digest}}")
    async def show(digest: str) -> dict[str, Any]:
        """The manifest of a stored bundle."""
        bundle, ref = await engine.shelf.open(digest)
        return {"digest": ref.digest, "size": ref.size, "manifest": msgspec.to_builtins(bundle.manifest)}


def _add_testsets(app: FastAPI, engine: Engine) -> None:
    @app.post(f"{PREFIX}/testsets", status_code=201, openapi_extra=_binary_body("an .npz with x and y"))
    async def upload(request: Request) -> dict[str, Any]:
        """Store a data set for evaluation on the server; the same again is harmless."""
        return {"digest": await engine.shelf.add_testset(await _body(request, FRAME_BYTES_MAX))}


def _add_jobs(app: FastAPI, engine: Engine) -> None:
    @app.post(f"{PREFIX}/jobs", status_code=201, openapi_extra=_json_body(JobSpec))
    async def start(request: Request) -> dict[str, Any]:
        """Start a job; what is not built yet is refused with code `unsupported`."""
        spec = parse(await _body(request, JSON_BYTES_MAX))
        await engine.create(spec)
        return views.job(engine, spec.name)

    @app.get(f"{PREFIX}/jobs")
    async def jobs() -> dict[str, Any]:
        """All jobs, by name."""
        return {"jobs": [views.job(engine, name) for name in sorted(engine.jobs)]}

    @app.get(f"{PREFIX}/jobs/{{name}}")
    async def job(name: str) -> dict[str, Any]:
        """One job."""
        return views.job(engine, name)

    @app.get(f"{PREFIX}/jobs/{{name}}/participation")
    async def participation(name: str) -> dict[str, Any]:
        """Who contributed to a job, and how evenly."""
        return views.participation(engine, name)

    @app.post(f"{PREFIX}/jobs/{{name}}/stop")
    async def stop(name: str) -> dict[str, Any]:
        """End a job; devices remove its workspace."""
        views.find_job(engine, name)
        await engine.end(name, "stopped by a person")
        return views.job(engine, name)


def _add_versions(app: FastAPI, engine: Engine) -> None:
    @app.get(f"{PREFIX}/jobs/{{name}}/versions")
    async def versions(name: str) -> dict[str, Any]:
        """All versions of a job with their figures, oldest first."""
        job = views.find_job(engine, name)
        return {"versions": [views.version(job, record) for record in job.history.records]}

    @app.get(f"{PREFIX}/jobs/{{name}}/versions/{{number}}")
    async def version(name: str, number: int) -> dict[str, Any]:
        """One version."""
        job = views.find_job(engine, name)
        return views.version(job, views.find_version(job, number))

    @app.get(f"{PREFIX}/jobs/{{name}}/model", response_class=Response)
    async def model(
        name: str,
        version: int | None = None,
        kind: Annotated[Literal["fp32", "int8"], Query(alias="format")] = "fp32",
    ) -> Response:
        """A version's model as ONNX for inference: the newest unless named, of a detector one with a threshold."""
        job = views.find_job(engine, name)
        number = views.find_version(job, job.exported if version is None else version).version
        try:
            values = await load_model(engine.ports.blobs, _stored(job, number), job.bundle.sizes)
        except CorruptStateError:
            _stored(job, number)  # a commit may just have ended its time, which is nobody's fault
            raise
        bundle, _ = await engine.shelf.open(job.bundle_ref.digest)
        infer = bundle.member(INFER)
        try:  # in a thread: a large model takes seconds, and the engine shares this event loop
            data = await asyncio.to_thread(
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
        headers = {"X-Fedfleet-Version": str(number)}
        return Response(data, media_type="application/octet-stream", headers=headers)


def _stored(job: Job, number: int) -> VersionManifest:
    manifest = job.recent.get(number)
    if manifest is None:
        kept = ", ".join(str(v) for v in sorted(job.recent))
        raise RefusedError(
            "not_stored", f"version {number} of {job.spec.name} is not stored any more; these are: {kept}"
        )
    return manifest


def _binary_body(what: str) -> dict[str, Any]:
    schema = {"type": "string", "format": "binary", "description": what}
    return {"requestBody": {"required": True, "content": {"application/octet-stream": {"schema": schema}}}}


def _json_body(kind: type[msgspec.Struct]) -> dict[str, Any]:
    (reference,), parts = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
    schema = {**reference, "$defs": parts}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
