"""Every error of the API as a problem document (RFC 9457): what went wrong in words, and a stable `code`."""

from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from aggregator.errors import AggregatorError, RefusedError
from broker_bridge.ports import Conflict, PortError, StorageFull

STATUS = {  # the rest: 422
    "not_found": 404,
    "exists": 409,
    "connected": 409,
    "ended": 409,
    "in_use": 409,
    "key_reused": 409,
    "paused": 409,
    "running": 409,
    "not_promoted": 409,
    "not_stored": 410,
    "stale_etag": 412,
    "too_large": 413,
    "damaged": 500,
    "busy": 503,
    "not_ready": 503,
    "too_many_viewers": 503,
}
FAILED = "the server failed; its log says why"

PROBLEM_SCHEMA = {
    "type": "object",
    "required": ["type", "title", "status", "code", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "code": {"type": "string", "description": "stable, for programs"},
        "detail": {"type": "string", "description": "what to change, for people"},
    },
}
_EXAMPLE = {
    "type": "about:blank",
    "title": "not_found",
    "status": 404,
    "code": "not_found",
    "detail": "no job named exercize; there are: exercise",
}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "A problem document (RFC 9457)",
        "content": {"application/problem+json": {"schema": PROBLEM_SCHEMA, "example": _EXAMPLE}},
    }
}

log = structlog.get_logger()


def answer_with_problems(app: FastAPI) -> None:
    """Have `app` answer every error with a problem document, its framework's own errors included."""
    app.add_exception_handler(RefusedError, _refused)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(HTTPException, _unrouted)
    app.add_exception_handler(AggregatorError, _failed)
    app.add_exception_handler(PortError, _failed)
    app.add_exception_handler(Exception, _unforeseen)


def problem(status: int, code: str, detail: str) -> Response:
    """A problem document."""
    body = {"type": "about:blank", "title": code, "status": status, "code": code, "detail": detail}
    return JSONResponse(body, status, media_type="application/problem+json")


async def _refused(_: Request, error: Exception) -> Response:
    code = error.code if isinstance(error, RefusedError) else "refused"
    return problem(STATUS.get(code, 422), code, str(error))


async def _malformed(_: Request, error: Exception) -> Response:
    wrong = error.errors() if isinstance(error, RequestValidationError) else []
    places = (f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in wrong)
    return problem(422, "bad_request", "; ".join(places))


async def _unrouted(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 404
    code = {404: "no_route", 405: "bad_method"}.get(status, "bad_request")
    response = problem(status, code, f"the API has no {request.method} {request.url.path}")
    response.headers.update(getattr(error, "headers", None) or {})
    return response


async def _failed(request: Request, error: Exception) -> Response:
    """The fault is the storage's, or another engine was faster: for the log what it was, for the client what to do."""
    log.error("api.failed", method=request.method, path=request.url.path, error=str(error))
    match error:
        case Conflict():
            return problem(503, "busy", "another server changed this at the same time; try again")
        case StorageFull():
            return problem(507, "storage_full", "the server's disk is full; make room and try again")
    return problem(500, "internal", FAILED)


async def _unforeseen(_: Request, __: Exception) -> Response:
    """The framework logs the traceback; it is nobody else's business."""
    return problem(500, "internal", FAILED)
