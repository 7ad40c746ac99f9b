"""What can be asked of a server, without asking: each call says how it is sent and how its answer is read. Pure.

The synchronous and the asynchronous client send the same calls.
"""

import math
import re
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar
from urllib.parse import quote

from aggregator.sdk.errors import FleetError
from aggregator.sdk.events import Event

T = TypeVar("T")
Record = dict[str, Any]
Query = dict[str, str | int]
PAGE = 1000  # items of one answer, the most there are
EXCERPTED = 4000  # characters of a stranger's answer that are looked at, and
EXCERPT = 80  # that are shown, without markup
_MARKUP = re.compile(r"<(script|style)\b.*?</\1>|<[^>]*>", re.DOTALL | re.IGNORECASE)


class Answer(Protocol):
    """What a call needs of an HTTP answer."""

    @property
    def status_code(self) -> int: ...  # noqa: D102

    @property
    def headers(self) -> Any: ...  # noqa: D102

    @property
    def content(self) -> bytes: ...  # noqa: D102

    @property
    def text(self) -> str: ...  # noqa: D102

    def json(self) -> Any: ...  # noqa: D102


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request and how to read its answer."""

    method: str
    path: str
    read: Callable[[Answer], T]
    params: Query = field(default_factory=dict)
    body: Any = None
    content: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Listing:
    """A list that comes in pages."""

    path: str
    items: str  # the answer's field that holds them
    params: Query = field(default_factory=dict)

    def page(self, cursor: str | None) -> Call[tuple[list[Record], str | None]]:
        """The page after `cursor`; its items and the next cursor."""
        params = {**self.params, "limit": PAGE, **({} if cursor is None else {"cursor": cursor})}
        return Call("GET", self.path, self._read, params)

    def _read(self, answer: Answer) -> tuple[list[Record], str | None]:
        page = record(answer)
        if not {self.items, "next"} <= page.keys():
            raise _stranger(answer)
        return page[self.items], page["next"]


def record(answer: Answer) -> Record:
    """A JSON object."""
    try:
        found = answer.json()
    except ValueError as error:
        raise _stranger(answer) from error
    if not isinstance(found, dict):
        raise _stranger(answer)
    return found


def check(answer: Answer) -> None:
    """Raise FleetError for what is not a success."""
    if answer.status_code < 300:
        return
    if answer.headers.get("content-type", "").startswith("application/problem+json"):
        problem = record(answer)
        if {"code", "detail"} <= problem.keys():
            raise FleetError(problem["code"], problem["detail"], answer.status_code)
    raise _stranger(answer)


def get(path: str) -> Call[Record]:
    """Read one thing."""
    return Call("GET", path, record)


def post(path: str, body: Any = None, *, etag: str | None = None) -> Call[Record]:
    """Change something; sent again after a lost answer it has the effect of once."""
    body = plain(body)
    headers = {"Idempotency-Key": uuid.uuid4().hex} | ({} if etag is None else {"If-Match": etag})
    return Call("POST", path, record, body=body, headers=headers)


def plain(value: Any, where: str = "the request") -> Any:
    """A value as JSON has it, numbers of numpy as numbers; raise FleetError (`bad_argument`) for what it cannot say."""
    if isinstance(value, Mapping):
        return {str(key): plain(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, where) for item in value]
    if isinstance(value, str | int | None):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if hasattr(value, "dtype") and getattr(value, "ndim", 1) == 0:
        return plain(value.item(), where)
    raise FleetError(
        "bad_argument", f"{where} is {value!r:.80}; give a finite number, a text, a list or a dict"
    )


def delete(path: str) -> Call[None]:
    """Delete something."""
    return Call("DELETE", path, lambda _: None)


def upload(path: str, data: bytes) -> Call[str]:
    """Store bytes; their digest."""
    return Call("POST", path, lambda answer: str(record(answer)["digest"]), content=data)


def tag(device: str, tags: list[str]) -> Call[Record]:
    """Replace a device's tags."""
    return Call("PUT", f"{device_path(device)}/tags", record, body={"tags": tags})


def why(device: str) -> Call[list[Record]]:
    """Why a device trains or does not."""
    return Call("GET", f"/fleet/why/{segment(device)}", lambda answer: list(record(answer)["because"]))


def order(device: str, what: str) -> Call[Record]:
    """Pause, resume or forget a device."""
    return post(f"{device_path(device)}/{what}")


def model(job: str, kind: str, version: int | None) -> Call[tuple[int, bytes]]:
    """A model: its version and ONNX bytes."""
    params: Query = {"format": kind} | ({} if version is None else {"version": version})

    def read(answer: Answer) -> tuple[int, bytes]:
        return int(answer.headers["X-Fedfleet-Version"]), answer.content

    return Call("GET", f"{job_path(job)}/model", read, params)


def newest(job: str, count: int) -> Call[list[Record]]:
    """The newest versions of the job at this path, newest first."""
    params: Query = {"order": "newest", "limit": count}
    return Call("GET", f"{job}/versions", lambda answer: list(record(answer)["versions"]), params)


def devices(
    state: str | None, cohort: str | None, tag: str | None, q: str | None, *, paused: bool | None
) -> Listing:
    """Devices that all filters let through."""
    flag = None if paused is None else str(paused).lower()
    return Listing("/devices", "devices", given(state=state, cohort=cohort, tag=tag, q=q, paused=flag))


def updates(verdict: str | None, job: str | None) -> Listing:
    """Verdicts on updates."""
    return Listing("/updates", "updates", given(verdict=verdict, job=job))


def recent_events(kinds: Iterable[str], limit: int) -> Call[list[Event]]:
    """The newest events, oldest first."""
    params: Query = {"kinds": ",".join(kinds), "limit": limit}

    def read(answer: Answer) -> list[Event]:
        return [Event(e["kind"], e["data"], e["id"]) for e in reversed(record(answer)["events"])]

    return Call("GET", "/events/recent", read, params)


def device_path(device: str) -> str:
    """The path of a device."""
    return f"/devices/{segment(device)}"


def job_path(name: str) -> str:
    """The path of a job."""
    return f"/jobs/{segment(name)}"


def given(**params: str | None) -> Query:
    """Those of the query's parameters that are not None."""
    return {name: value for name, value in params.items() if value is not None}


def segment(name: str) -> str:
    """A name as one segment of a path; raise FleetError for what would be more, or less, than one."""
    if "/" in name or name in {"", ".", ".."}:
        raise FleetError("bad_argument", f"nothing is named {name!r}: names are 1 to 64 of a-z, 0-9 and '-'")
    return quote(name, safe="")


def _stranger(answer: Answer) -> FleetError:
    """For an answer that no fedfleet server gives; its beginning may tell what does answer there."""
    words = " ".join(_MARKUP.sub(" ", answer.text[:EXCERPTED]).split())
    said = f": {words[:EXCERPT]}" if words.isprintable() and words else ""
    return FleetError(
        "http",
        f"what answers there is not a fedfleet server (status {answer.status_code}{said}); give the URL of one, "
        "as http://127.0.0.1:8080",
        answer.status_code,
    )
