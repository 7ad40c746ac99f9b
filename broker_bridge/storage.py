"""Patience with storage: what could not be written is tried again, because its message is not acknowledged.

A full disk thus stops the bridge from taking messages, the broker's window fills, and devices keep their
updates; nothing is lost and nothing has to be restarted once there is space.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from broker_bridge.ports import StorageError

RETRY_MIN_S = 0.1
RETRY_MAX_S = 5.0

T = TypeVar("T")
log = structlog.get_logger()


async def persistently(call: Callable[[], Awaitable[T]], what: str) -> T:
    """The result of `call`, called again with growing pauses for as long as it raises StorageError."""
    pause = RETRY_MIN_S
    while True:
        try:
            return await call()
        except StorageError as error:
            log.error("storage_failed", what=what, error=str(error), retry_s=pause)  # noqa: TRY400
        await asyncio.sleep(pause)
        pause = min(2 * pause, RETRY_MAX_S)
