"""Sending calls over HTTP, synchronously and not.

httpx is loaded with the first client: it takes a third of a second.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from aggregator.sdk import account
from aggregator.sdk.calls import Call, Listing, Query, Record, check
from aggregator.sdk.errors import FleetError
from aggregator.sdk.events import Event, Parser

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")
TIMEOUT_S = 30.0  # an export of a large model is the slowest call
STREAM_TIMEOUT_S = 40.0  # events: the server says something every 15 s
RETRIES = 3  # after 429, when the server says to come again
RETRY_S_MAX = 10.0


class Wire:
    """A connection to one server; raises FleetError with the server's own words."""

    def __init__(self, url: str | None, token: str | None) -> None:
        import httpx  # noqa: PLC0415 - see above

        self.url, token = account.resolve(url, token)
        self._errors = httpx.RequestError
        self._http = _client(httpx.Client, self.url, token)

    def do(self, call: Call[T]) -> T:
        """The answer to a call."""
        for left in range(RETRIES, -1, -1):
            try:
                answer = self._http.request(call.method, call.path, **_request(call))
            except self._errors as error:
                raise _unreachable(self.url, error) from error
            wait_s = _wait_s(answer, left)
            if wait_s is None:
                break
            time.sleep(wait_s)
        check(answer)
        return call.read(answer)

    def all(self, listing: Listing) -> list[Record]:
        """All items of a list."""
        found, cursor = self.do(listing.page(None))
        while cursor is not None:
            more, cursor = self.do(listing.page(cursor))
            found += more
        return found

    def events(self, kinds: Iterable[str] | None, after: str | None) -> Iterator[Event]:
        """Events as they come, for ever; a connection that breaks is made again and goes on where it was."""
        parser = Parser(after)
        while True:
            try:
                with self._http.stream(
                    "GET", "/events", params=_kinds(kinds), headers=parser.resume(), timeout=STREAM_TIMEOUT_S
                ) as answer:
                    if answer.is_error:
                        answer.read()
                        check(answer)
                    for line in answer.iter_lines():
                        yield from parser.feed(line)
            except self._errors as error:
                if not parser.connected:
                    raise _unreachable(self.url, error) from error
            time.sleep(parser.pause_s())

    def close(self) -> None:
        """Close the connection."""
        self._http.close()


class AsyncWire:
    """The same for asyncio."""

    def __init__(self, url: str | None, token: str | None) -> None:
        import httpx  # noqa: PLC0415 - see above

        self.url, token = account.resolve(url, token)
        self._errors = httpx.RequestError
        self._http = _client(httpx.AsyncClient, self.url, token)

    async def do(self, call: Call[T]) -> T:
        """The answer to a call."""
        for left in range(RETRIES, -1, -1):
            try:
                answer = await self._http.request(call.method, call.path, **_request(call))
            except self._errors as error:
                raise _unreachable(self.url, error) from error
            wait_s = _wait_s(answer, left)
            if wait_s is None:
                break
            await asyncio.sleep(wait_s)
        check(answer)
        return call.read(answer)

    async def all(self, listing: Listing) -> list[Record]:
        """All items of a list."""
        found, cursor = await self.do(listing.page(None))
        while cursor is not None:
            more, cursor = await self.do(listing.page(cursor))
            found += more
        return found

    async def events(self, kinds: Iterable[str] | None, after: str | None) -> AsyncIterator[Event]:
        """Events as they come, for ever; a connection that breaks is made again and goes on where it was."""
        parser = Parser(after)
        while True:
            try:
                async with self._http.stream(
                    "GET", "/events", params=_kinds(kinds), headers=parser.resume(), timeout=STREAM_TIMEOUT_S
                ) as answer:
                    if answer.is_error:
                        await answer.aread()
                        check(answer)
                    async for line in answer.aiter_lines():
                        for event in parser.feed(line):
                            yield event
            except self._errors as error:
                if not parser.connected:
                    raise _unreachable(self.url, error) from error
            await asyncio.sleep(parser.pause_s())

    async def close(self) -> None:
        """Close the connection."""
        await self._http.aclose()


C = TypeVar("C", "httpx.Client", "httpx.AsyncClient")


def _client(kind: type[C], url: str, token: str | None) -> C:
    import httpx  # noqa: PLC0415 - see above

    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        return kind(base_url=f"{url}/api/v1", timeout=TIMEOUT_S, headers=headers)
    except httpx.InvalidURL as error:
        raise FleetError("unreachable", f"{url!r} is not the URL of a server: {error}") from error
    except UnicodeEncodeError as error:
        raise FleetError("bad_argument", "the token is not one of fedfleet token create") from error


def _request(call: Call[Any]) -> dict[str, Any]:
    return {"params": call.params, "json": call.body, "content": call.content, "headers": call.headers}


def _wait_s(answer: "httpx.Response", left: int) -> float | None:
    """Seconds after which to ask again, None not to."""
    wait = answer.headers.get("Retry-After", "")
    if answer.status_code != 429 or not left or not wait.isdigit():
        return None
    return min(float(wait), RETRY_S_MAX)


def _kinds(kinds: Iterable[str] | None) -> Query:
    return {} if kinds is None else {"kinds": ",".join(kinds)}


def _unreachable(url: str, error: Exception) -> FleetError:
    return FleetError("unreachable", f"no server at {url} ({error}); start one with: fedfleet up")
