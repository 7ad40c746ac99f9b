"""Jobs: checked, started, paused, resumed, stopped, deleted."""

from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from aggregator import views
from aggregator.api import examples
from aggregator.api.bodies import example, json_body, read
from aggregator.api.etags import mark, match
from aggregator.api.idempotency import OnceRoute
from aggregator.api.pages import LIMIT_DEFAULT, Cursor, Limit, answer, page_by_name
from aggregator.engine import Engine
from aggregator.spec import JobSpec, parse
from edge_client.wire.limits import JSON_BYTES_MAX

STOPPED = "stopped by a person"
ONE = example(examples.JOB)


def routes(engine: Engine) -> APIRouter:
    """`/jobs`."""
    router = APIRouter(route_class=OnceRoute, tags=["jobs"])
    _add_starts(router, engine)
    _add_reads(router, engine)
    _add_changes(router, engine)
    return router


def _add_starts(router: APIRouter, engine: Engine) -> None:
    @router.post(
        "/jobs",
        status_code=201,
        openapi_extra=json_body(JobSpec, examples.SPEC),
        responses=example(examples.JOB, 201),
    )
    async def start_job(request: Request, response: Response) -> dict[str, Any]:
        """Start a job; what is not built yet is refused with code `unsupported`."""
        spec = parse(await read(request, JSON_BYTES_MAX))
        await engine.create(spec)
        return _shown(engine, spec.name, response)

    @router.post(
        "/jobs/validate",
        openapi_extra=json_body(JobSpec, examples.SPEC),
        responses=example({"spec": examples.JOB["spec"], "parameters": 24599}),
    )
    async def validate_job(request: Request) -> dict[str, Any]:
        """Check a spec as starting it would, start nothing; the answer has all its fields."""
        spec = parse(await read(request, JSON_BYTES_MAX))
        bundle, _ = await engine.store.check(spec)
        return {"spec": msgspec.to_builtins(spec), "parameters": bundle.manifest.parameters}


def _add_reads(router: APIRouter, engine: Engine) -> None:
    @router.get("/jobs", responses=example(examples.page("jobs", examples.JOB)))
    async def list_jobs(limit: Limit = LIMIT_DEFAULT, cursor: Cursor = None) -> dict[str, Any]:
        """All jobs, by name."""
        names, after = page_by_name(sorted(engine.jobs), str, limit, cursor)
        return answer("jobs", [views.job(engine, name) for name in names], after, len(engine.jobs))

    @router.get("/jobs/{name}", responses=ONE)
    async def show_job(name: str, response: Response) -> dict[str, Any]:
        """One job."""
        views.find_job(engine, name)
        return _shown(engine, name, response)

    @router.get("/jobs/{name}/participation", responses=example(examples.PARTICIPATION))
    async def participation(name: str) -> dict[str, Any]:
        """Who contributed to a job, and how evenly."""
        return views.participation(engine, name)


def _add_changes(router: APIRouter, engine: Engine) -> None:
    @router.post("/jobs/{name}/pause", responses=ONE)
    async def pause_job(name: str, request: Request, response: Response) -> dict[str, Any]:
        """Assign no more devices; those that train finish. Deadlines and other ends hold on."""
        _found(engine, name, request)
        await engine.pause(name)
        return _shown(engine, name, response)

    @router.post("/jobs/{name}/resume", responses=ONE)
    async def resume_job(name: str, request: Request, response: Response) -> dict[str, Any]:
        """Assign devices again."""
        _found(engine, name, request)
        await engine.resume(name)
        return _shown(engine, name, response)

    @router.post("/jobs/{name}/stop", responses=ONE)
    async def stop_job(name: str, request: Request, response: Response) -> dict[str, Any]:
        """End a job; devices remove its workspace."""
        _found(engine, name, request)
        await engine.end(name, STOPPED)
        return _shown(engine, name, response)

    @router.delete("/jobs/{name}", status_code=204, response_class=Response)
    async def delete_job(name: str, request: Request) -> Response:
        """Delete an ended job with all its versions and models. Its name stays taken."""
        _found(engine, name, request)
        await engine.delete(name)
        return Response(status_code=204)


def _shown(engine: Engine, name: str, response: Response) -> dict[str, Any]:
    mark(response, engine.store.revision(name))
    return views.job(engine, name)


def _found(engine: Engine, name: str, request: Request) -> None:
    """Raise NotFoundError, or RefusedError when the caller knows an older state of the job."""
    views.find_job(engine, name)
    match(request, engine.store.revision(name))
