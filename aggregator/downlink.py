"""What the aggregator wants said to devices: cells under `down/` that the bridge publishes."""

import contextlib
from collections.abc import Iterable

import msgspec

from broker_bridge import cells
from broker_bridge.ports import Conflict, Heads
from edge_client.wire import topics
from edge_client.wire.messages import Message, encode


class Downlink:
    """Sets and drops the cells of topics.

    A cell holds a topic's newest payload, so what a restarted bridge has not published yet is not lost.
    """

    def __init__(self, heads: Heads) -> None:
        self._heads = heads
        self._revisions: dict[str, int] = {}

    async def say(self, topic: str, message: Message) -> None:
        """Have `message` published to `topic`."""
        await self._set(cells.down_key(topic), encode(message))

    async def clear(self, *retained: str) -> None:
        """Have retained topics cleared."""
        for topic in retained:
            await self._set(cells.down_key(topic), b"")

    async def drop(self, topic: str) -> None:
        """Forget what was said to a topic; nothing is published on a topic that is not retained."""
        await self._drop(cells.down_key(topic))

    async def erase(self, cohort: str, job: str) -> None:
        """Clear what the broker retains of a job that has ended."""
        await self.clear(topics.version(cohort, job), topics.job_state(job))

    async def forget(self, device: str, jobs: Iterable[str]) -> None:
        """Take back what was said to a device about these jobs, and clear what the broker retains of it."""
        for job in jobs:
            await self.drop(topics.end(device, job))
            await self.drop(topics.assign(device, job))
        # The cells stay: a bridge that has published nothing yet is not told of drops.
        await self.clear(topics.state(device), topics.info(device))

    async def fan(self, job: str, delta: cells.FanCell | None) -> None:
        """Have a job's newest delta published once; None: it has no more."""
        if delta is None:
            await self._drop(cells.fan_key(job))
        else:
            await self._set(cells.fan_key(job), msgspec.json.encode(delta))

    async def _drop(self, key: str) -> None:
        self._revisions.pop(key, None)
        while (revision := (await self._heads.load(key))[0]) != 0:
            with contextlib.suppress(Conflict):  # something newer was said meanwhile: that goes too
                await self._heads.drop(key, revision)

    async def _set(self, key: str, value: bytes) -> None:
        # The newest word to a topic wins, whoever says it: unlike a version, it builds on nothing.
        while True:
            expected = self._revisions.get(key)
            if expected is None:
                expected, _ = await self._heads.load(key)
            try:
                self._revisions[key] = await self._heads.swing(key, expected, value)
            except Conflict:
                self._revisions.pop(key, None)
            else:
                return
