"""Bodies of requests: read under a limit, decoded strictly; and how the OpenAPI document shows them."""

from typing import Any, TypeVar

import msgspec
from fastapi import Request

from aggregator.errors import RefusedError

T = TypeVar("T")


async def read(request: Request, bytes_max: int) -> bytes:
    """The whole body; raise RefusedError (`too_large`) as soon as it is over the limit."""
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced[:18]) > bytes_max:
        raise RefusedError("too_large", f"the body is over {bytes_max} B")
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > bytes_max:
            raise RefusedError("too_large", f"the body is over {bytes_max} B")
    return bytes(data)


def decode(data: bytes, kind: type[T]) -> T:
    """A JSON body of this form; raise RefusedError (`bad_request`) naming the field that is wrong."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RefusedError("bad_request", f"the body: {error}") from error


def binary_body(what: str) -> dict[str, Any]:
    """OpenAPI of a body of bytes."""
    schema = {"type": "string", "format": "binary", "description": what}
    return {"requestBody": {"required": True, "content": {"application/octet-stream": {"schema": schema}}}}


def json_body(kind: type[msgspec.Struct], example: dict[str, Any]) -> dict[str, Any]:
    """OpenAPI of a JSON body of this form."""
    (reference,), parts = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
    schema = {**reference, "$defs": parts}
    content = {"application/json": {"schema": schema, "example": example}}
    return {"requestBody": {"required": True, "content": content}}


def example(body: dict[str, Any], status: int = 200) -> dict[int | str, dict[str, Any]]:
    """OpenAPI of an answer, shown by an example."""
    return {status: {"content": {"application/json": {"example": body}}}}
