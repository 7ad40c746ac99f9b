"""A small client of the HTTP API for the commands and the demo."""

from typing import Any, Self
from urllib.parse import quote

import httpx

DEFAULT_URL = "http://127.0.0.1:8080"
PAGE = 1000  # items of one answer, the most there are
TIMEOUT_S = 30.0  # an export of a large model is the slowest call


class ApiError(Exception):
    """The server refused, or there is none; `code` is the server's, or `unreachable`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Api:
    """Calls to one server; raise ApiError with the server's own words."""

    def __init__(self, url: str = DEFAULT_URL, token: str | None = None) -> None:
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            self._http = httpx.Client(base_url=f"{self.url}/api/v1", timeout=TIMEOUT_S, headers=headers)
        except httpx.InvalidURL as error:
            raise ApiError("unreachable", f"{url!r} is not the URL of a server: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def health(self) -> dict[str, Any]:
        """Whether the server works, and its bridge's counters."""
        return self._json("GET", "/health")

    def upload(self, bundle: bytes) -> str:
        """Store a bundle; its digest."""
        return str(self._json("POST", "/bundles", content=bundle)["digest"])

    def upload_testset(self, data: bytes) -> str:
        """Store a data set for evaluation on the server; its digest."""
        return str(self._json("POST", "/testsets", content=data)["digest"])

    def participation(self, name: str) -> dict[str, Any]:
        """Who contributed to a job, and how evenly."""
        return self._json("GET", f"/jobs/{_segment(name)}/participation")

    def start(self, spec: dict[str, Any]) -> dict[str, Any]:
        """Start a job."""
        return self._json("POST", "/jobs", json=spec)

    def jobs(self) -> list[dict[str, Any]]:
        """All jobs."""
        return self._all("/jobs", "jobs")

    def job(self, name: str) -> dict[str, Any]:
        """One job."""
        return self._json("GET", f"/jobs/{_segment(name)}")

    def stop(self, name: str) -> dict[str, Any]:
        """End a job."""
        return self._json("POST", f"/jobs/{_segment(name)}/stop")

    def versions(self, name: str) -> list[dict[str, Any]]:
        """All versions of a job, oldest first."""
        return self._all(f"/jobs/{_segment(name)}/versions", "versions")

    def devices(self) -> list[dict[str, Any]]:
        """All devices."""
        return self._all("/devices", "devices")

    def model(self, name: str, kind: str, version: int | None = None) -> tuple[int, bytes]:
        """(version, ONNX bytes) of a model; `kind` is fp32 or int8."""
        query: dict[str, str | int] = {"format": kind}
        if version is not None:
            query["version"] = version
        response = self._call("GET", f"/jobs/{_segment(name)}/model", params=query)
        return int(response.headers["X-Fedfleet-Version"]), response.content

    def _all(self, path: str, field: str) -> list[dict[str, Any]]:
        """A list's items, page by page."""
        found: list[dict[str, Any]] = []
        query: dict[str, str | int] = {"limit": PAGE}
        while True:
            page = self._json("GET", path, params=query)
            found += page[field]
            if page["next"] is None:
                return found
            query["cursor"] = page["next"]

    def _json(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        response = self._call(method, path, **arguments)
        try:
            body: dict[str, Any] = response.json()
        except ValueError as error:
            raise ApiError("http", f"what answers at {self.url} is not a fedfleet server") from error
        return body

    def _call(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **arguments)
        except httpx.RequestError as error:
            raise ApiError(
                "unreachable", f"no server at {self.url} ({error}); start one with: fedfleet up"
            ) from error
        if response.is_error:
            raise _refusal(response)
        return response


def _segment(name: str) -> str:
    """A name as one segment of a path, whatever is in it."""
    return "%2E" * len(name) if name in {".", ".."} else quote(name, safe="")


def _refusal(response: httpx.Response) -> ApiError:
    if response.headers.get("content-type", "").startswith("application/problem+json"):
        problem = response.json()
        return ApiError(problem["code"], problem["detail"])
    return ApiError("http", f"the server answered {response.status_code}: {response.text[:500]}")
