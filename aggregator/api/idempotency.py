"""`Idempotency-Key`: a POST that is sent again, because its answer was lost, gets the answer of the first.

The newest KEYS_KEPT answers are remembered while the server runs. Only answers to changes that were made are: one
that was refused may be tried again with the same key.
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from aggregator.api.bodies import read
from aggregator.callers import caller
from aggregator.errors import RefusedError
from edge_client.wire.limits import FRAME_BYTES_MAX

KEYS_KEPT = 1000
KEY_LENGTH_MAX = 200  # characters; clients send UUIDs
ANSWER_BYTES_MAX = 64 * 1024  # what is remembered of one answer; those to POSTs are smaller

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


@dataclass
class _Answered:
    digest: bytes
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    response: tuple[int, bytes, dict[str, str]] | None = None


class Answers:
    """What was answered, by who asked and the key."""

    def __init__(self) -> None:
        self._answered: OrderedDict[tuple[str, str], _Answered] = OrderedDict()

    async def once(self, request: Request, handler: Handler) -> Response:
        """The answer of `handler`, or of the request with this key before."""
        key = request.headers["idempotency-key"]
        if not 1 <= len(key) <= KEY_LENGTH_MAX or not key.isprintable():
            raise RefusedError(
                "bad_request", f"Idempotency-Key: send 1 to {KEY_LENGTH_MAX} printable characters"
            )
        body = await read(request, FRAME_BYTES_MAX)
        request._body = body  # noqa: SLF001 - what Starlette itself keeps for whoever reads the body next
        digest = hashlib.sha256(f"{request.method} {request.url}\n".encode() + body).digest()
        name = (caller(request).name, key)
        known = self._answered.setdefault(name, _Answered(digest))
        if known.digest != digest:
            raise RefusedError(
                "key_reused",
                "this Idempotency-Key came with another request before; take a new key for a new one",
            )
        async with known.lock:
            if known.response is not None:
                status, content, headers = known.response
                return Response(content, status, {**headers, "Idempotency-Replayed": "true"})
            try:
                response = await handler(request)
            except BaseException:
                self._answered.pop(name, None)
                raise
            self._keep(name, known, response)
            return response

    def _keep(self, name: tuple[str, str], known: _Answered, response: Response) -> None:
        if response.status_code >= 400 or len(response.body) > ANSWER_BYTES_MAX:
            self._answered.pop(name, None)
            return
        known.response = (response.status_code, bytes(response.body), dict(response.headers))
        self._answered.move_to_end(name)
        while len(self._answered) > KEYS_KEPT:
            self._answered.popitem(last=False)


class OnceRoute(APIRoute):
    """A route whose POSTs honour the key."""

    def get_route_handler(self) -> Handler:
        """Go through the application's `Answers` when there is a key."""
        handler = super().get_route_handler()

        async def once(request: Request) -> Response:
            if request.method != "POST" or "idempotency-key" not in request.headers:
                return await handler(request)
            answers: Answers = request.app.state.answers
            return await answers.once(request, handler)

        return once
