"""Errors that a healthy server never has, as the API answers them."""

import asyncio

import httpx
import pytest
from fastapi import FastAPI

from aggregator.api.problems import answer_with_problems
from aggregator.errors import CorruptStateError
from broker_bridge.ports import Conflict, CorruptStorage, StorageFull

SECRET = "/var/lib/secret.db"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (Conflict(SECRET), 503, "busy"),
        (StorageFull(SECRET), 507, "storage_full"),
        (CorruptStorage(SECRET), 500, "internal"),
        (CorruptStateError(SECRET), 500, "internal"),
        (ZeroDivisionError(SECRET), 500, "internal"),
    ],
)
def test_a_failure_is_a_problem_without_insides(error, status, code):
    """What goes wrong inside is answered with its status and a remedy, never with paths or tracebacks."""
    app = FastAPI()
    answer_with_problems(app)

    @app.get("/")
    async def fail():
        raise error

    async def call():
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
            return await client.get("/")

    response = asyncio.run(call())

    assert response.headers["content-type"] == "application/problem+json"
    assert (response.status_code, response.json()["status"], response.json()["code"]) == (
        status,
        status,
        code,
    )
    assert SECRET not in response.text
    assert type(error).__name__ not in response.text
