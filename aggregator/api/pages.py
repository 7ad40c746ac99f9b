"""Long lists in pages: `limit` items after `cursor`, which an answer gives as `next` until there is no more."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

from fastapi import Query

from aggregator.errors import RefusedError

LIMIT_DEFAULT = 100
LIMIT_MAX = 1000  # items of one answer: about a megabyte of devices
CURSOR_LENGTH_MAX = 200

Limit = Annotated[int, Query(ge=1, le=LIMIT_MAX, description="Items of this page.")]
Cursor = Annotated[str | None, Query(max_length=CURSOR_LENGTH_MAX, description="`next` of the page before.")]
T = TypeVar("T")


def page_by_name(
    items: Sequence[T], name: Callable[[T], str], limit: int, cursor: str | None
) -> tuple[list[T], str | None]:
    """The page of `items`, sorted by `name`, that come after the name `cursor`; and the next cursor."""
    start = 0 if cursor is None else bisect_right(items, cursor, key=name)
    shown = list(items[start : start + limit])
    return shown, name(shown[-1]) if len(items) > start + limit else None


def page_by_number(
    items: Sequence[T], number: Callable[[T], int], limit: int, cursor: str | None, *, newest_first: bool
) -> tuple[list[T], str | None]:
    """The page of `items`, oldest first, that come after the number `cursor` in the order asked for."""
    first, last = 0, len(items)
    if cursor is not None:
        if not cursor.isascii() or not cursor.isdigit() or len(cursor) > 18:
            raise RefusedError("bad_request", f"cursor {cursor[:40]!r} is not one this list has given")
        if newest_first:
            last = bisect_left(items, int(cursor), key=number)
        else:
            first = bisect_right(items, int(cursor), key=number)
    shown = (
        list(items[max(first, last - limit) : last])[::-1]
        if newest_first
        else list(items[first : first + limit])
    )
    return shown, str(number(shown[-1])) if last - first > limit else None


def answer(field: str, items: Sequence[Any], cursor: str | None, total: int) -> dict[str, Any]:
    """A page as it is answered; `total` counts what the filters let through."""
    return {field: list(items), "next": cursor, "total": total}
