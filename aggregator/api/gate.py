"""Every request passes here: from where, by whom, how often, whether it may; and changes are noted.

There are no cookies and no passwords, so a foreign web page has nothing of the user's to send along. While no token
is needed on loopback a page could still send requests there from the user's own browser; those are refused by their
`Origin` and `Host`, which no page can forge.
"""

import math
import time
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aggregator.api import site
from aggregator.api.problems import problem
from aggregator.api.rate import Rates
from aggregator.audit import AuditEntry
from aggregator.callers import LOCAL, Caller, may, needed
from aggregator.engine import Engine
from aggregator.errors import RefusedError
from aggregator.tokens import Tokens
from broker_bridge.ports import PortError

OPEN_PATHS = ("/api/v1/health", "/api/v1/ready")  # for probes, which have no token
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}
STATUS = {"unauthorized": 401, "expired": 401, "forbidden": 403, "foreign_origin": 403, "foreign_host": 403}
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
SAFE = ("GET", "HEAD", "OPTIONS")


class Gate:
    """Middleware of the application."""

    def __init__(self, app: ASGIApp, *, engine: Engine, tokens: Tokens, loopback: bool, rates: Rates) -> None:
        self._app = app
        self._engine = engine
        self._tokens = tokens
        self._loopback = loopback
        self._rates = rates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        answer = _Answer(self._engine, request, send)
        try:
            request.state.caller = await self._admit(request)
        except RefusedError as error:
            request.state.caller = None
            response = self._slow(request) or _refusal(error)
            await response(scope, receive, answer.send)
            return
        except PortError:
            response = problem(503, "busy", "the server's storage does not answer; try again")
            await response(scope, receive, answer.send)
            return
        slow = self._slow(request)
        if slow is not None:
            await slow(scope, receive, answer.send)
            return
        await self._app(scope, receive, answer.send)

    async def _admit(self, request: Request) -> Caller | None:
        """Who asks; None for a stranger on an open path. Raises RefusedError."""
        _refuse_foreign(request)
        token = request.headers.get("authorization")
        if token is None and self._loopback and not await self._tokens.any():
            if _hostname(request.headers.get("host", "")) not in LOOPBACK_NAMES:
                raise RefusedError(
                    "foreign_host",
                    "without tokens this server answers to localhost and 127.0.0.1 alone, so that a web page that "
                    "gives its name this address reads nothing; create a token: fedfleet token create",
                )
            return LOCAL
        path = request.scope["path"]  # what routing goes by; a URL is partly what the Host header says
        if token is None and request.method in SAFE and (path in OPEN_PATHS or site.is_file(path)):
            return None
        found = await self._tokens.find(token)
        wanted = needed(request.method, path)
        if not may(found.role, wanted):
            raise RefusedError(
                "forbidden",
                f"{request.method} {path} needs the role {wanted}; {found.name} is {found.role}",
            )
        return found

    def _slow(self, request: Request) -> Response | None:
        """The answer to a client that asks too often; strangers are told apart by their address."""
        caller: Caller | None = request.state.caller
        if caller == LOCAL:
            return None
        peer = request.client.host if request.client else ""
        client = f"token {caller.name}" if caller else f"address {peer}"
        wait_s = self._rates.take(client, time.monotonic())
        if not wait_s:
            return None
        response = problem(429, "too_many_requests", f"too many requests; try again in {wait_s:.2g} s")
        response.headers["Retry-After"] = str(math.ceil(wait_s))
        return response


class _Answer:
    """An answer on its way out: headers are added, and a change is noted before anybody is told of it."""

    def __init__(self, engine: Engine, request: Request, send: Send) -> None:
        self._engine = engine
        self._request = request
        self._send = send

    async def send(self, message: Message) -> None:
        """Pass a part of the answer on."""
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            own = site.HEADERS if site.is_file(self._request.scope["path"]) else {}
            for name, value in {**HEADERS, **own}.items():
                if name != "Cache-Control" or not own or name not in headers:  # assets may be kept
                    headers[name] = value
            if self._request.method not in SAFE and message["status"] < 300:
                await self._note(message["status"])
        await self._send(message)

    async def _note(self, status: int) -> None:
        request, scope = self._request, self._request.scope
        endpoint: Any = scope.get("endpoint")
        action = getattr(endpoint, "__name__", "")
        caller: Caller = request.state.caller
        path = scope["path"]
        entry = AuditEntry(0, time.time(), caller.name, caller.role, action, request.method, path, status)
        stored = await self._engine.audit.add(entry)
        self._engine.stream.publish("audit", {n: getattr(stored, n) for n in stored.__struct_fields__})


def _refusal(error: RefusedError) -> Response:
    status = STATUS[error.code]
    response = problem(status, error.code, str(error))
    if status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def _refuse_foreign(request: Request) -> None:
    """A change that a page of another site makes a browser send is refused."""
    origin = request.headers.get("origin")
    if origin is None or request.method in SAFE:
        return
    if urlsplit(origin).netloc.casefold() != request.headers.get("host", "").casefold():
        raise RefusedError("foreign_origin", f"a page of {origin[:80]} may not change anything here")


def _hostname(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
