"""ETags of what people change: a change made on an old view of a thing is refused.

An ETag names the revision of what people set (a job's record, a device's tags), not of its figures, which
change all the time and conflict with nobody.
"""

from fastapi import Request, Response

from aggregator.errors import RefusedError


def mark(response: Response, revision: int) -> None:
    """Name the revision in an answer."""
    response.headers["ETag"] = _tag(revision)


def match(request: Request, revision: int) -> None:
    """Go on when `If-Match` is absent, `*` or names this revision; raise RefusedError (`stale_etag`)."""
    wanted = request.headers.get("if-match")
    if wanted is None:
        return
    tags = [tag.strip() for tag in wanted.split(",")]
    if "*" not in tags and _tag(revision) not in tags:
        raise RefusedError(
            "stale_etag",
            f"this was changed since you read it: its ETag is {_tag(revision)} by now; read it again, then decide",
        )


def _tag(revision: int) -> str:
    return f'"{revision}"'
