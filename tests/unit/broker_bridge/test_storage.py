"""Patience with storage."""

import asyncio

import pytest

from broker_bridge import storage
from broker_bridge.ports import Conflict, StorageFull


def test_full_storage_is_tried_again_until_it_works(monkeypatch):
    """I1: a call that fails because the disk is full is made again, and its result is the caller's."""
    monkeypatch.setattr(storage, "RETRY_MIN_S", 0.001)
    attempts = []

    async def call():
        attempts.append(1)
        if len(attempts) < 4:
            raise StorageFull("fleet.db: disk is full")
        return "stored"

    assert asyncio.run(storage.persistently(call, "test")) == "stored"
    assert len(attempts) == 4


def test_lost_races_are_the_callers_matter():
    """A Conflict is not a failure of the storage and is raised at once."""

    async def call():
        raise Conflict("k")

    with pytest.raises(Conflict):
        asyncio.run(storage.persistently(call, "test"))
