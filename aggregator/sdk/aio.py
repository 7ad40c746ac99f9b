"""The same fleet for asyncio: every method that asks the server is awaited."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from types import TracebackType
from typing import Any, Self

from aggregator.sdk import calls
from aggregator.sdk.calls import Listing, Record
from aggregator.sdk.events import Event
from aggregator.sdk.job import WATCH_S
from aggregator.sdk.models import Model, bundle_of, fields_of
from aggregator.sdk.wire import AsyncWire


class AsyncFleet:
    """As `Fleet`; use it with `async with`, or `await close()`."""

    def __init__(self, url: str | None = None, *, token: str | None = None) -> None:
        self._wire = AsyncWire(url, token)
        self.url = self._wire.url

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        await self._wire.close()

    async def federate(
        self,
        model: Any,
        *,
        name: str,
        dataset: str,
        loss: str | None = None,
        strategy: str = "fedbuff",
        target: Record | None = None,
        example: Any = None,
        compile_options: Record | None = None,
        testset: bytes | None = None,
        **spec: Any,
    ) -> "AsyncJob":
        """As `Fleet.federate`; the model is compiled in a thread."""
        fields = fields_of(
            {"name": name, "dataset": dataset, "strategy": strategy, **spec}, target, compile_options
        )
        options = compile_options or {}
        bundle = await asyncio.to_thread(
            bundle_of, model, name=name, loss=loss, example=example, options=options
        )
        if testset is not None:
            fields["testset"] = await self._wire.do(calls.upload("/testsets", testset))
        return await self.start({**fields, "bundle": await self.upload(bundle)})

    async def start(self, spec: Record) -> "AsyncJob":
        """Start a job from a spec that names a stored bundle."""
        return AsyncJob(self._wire, await self._wire.do(calls.post("/jobs", spec)))

    async def jobs(self) -> "list[AsyncJob]":
        """All jobs, by name."""
        return [AsyncJob(self._wire, facts) for facts in await self._wire.all(Listing("/jobs", "jobs"))]

    async def job(self, name: str) -> "AsyncJob":
        """The job of this name."""
        return AsyncJob(self._wire, await self._wire.do(calls.get(calls.job_path(name))))

    async def upload(self, bundle: bytes) -> str:
        """Store a bundle; its digest."""
        return await self._wire.do(calls.upload("/bundles", bundle))

    async def devices(
        self,
        *,
        state: str | None = None,
        cohort: str | None = None,
        tag: str | None = None,
        q: str | None = None,
        paused: bool | None = None,
    ) -> list[Record]:
        """As `Fleet.devices`."""
        return await self._wire.all(calls.devices(state, cohort, tag, q, paused=paused))

    async def device(self, device: str) -> Record:
        """One device with its timeline."""
        return await self._wire.do(calls.get(calls.device_path(device)))

    async def why(self, device: str) -> list[Record]:
        """Why it trains or does not: of each job that has not ended `job`, `training` and a sentence, `text`."""
        return await self._wire.do(calls.why(device))

    async def tag(self, device: str, tags: Iterable[str]) -> Record:
        """Replace a device's tags."""
        return await self._wire.do(calls.tag(device, list(tags)))

    async def pause(self, device: str) -> Record:
        """Give a device no more work; what it trains now it may finish."""
        return await self._wire.do(calls.order(device, "pause"))

    async def resume(self, device: str) -> Record:
        """Let a device work again."""
        return await self._wire.do(calls.order(device, "resume"))

    async def forget(self, device: str) -> Record:
        """Remove what is known of a device that is not connected; what was known of it. Its updates stay folded."""
        return await self._wire.do(calls.order(device, "forget"))

    async def summary(self) -> Record:
        """The fleet at one look: devices by state and by what they do, update rate, bytes, alerts."""
        return await self._wire.do(calls.get("/fleet"))

    async def updates(self, *, verdict: str | None = None, job: str | None = None) -> list[Record]:
        """Verdicts on the newest updates, newest first."""
        return await self._wire.all(calls.updates(verdict, job))

    def events(self, kinds: Iterable[str] | None = None, *, after: str | None = None) -> AsyncIterator[Event]:
        """What happens (after the event of this id), for ever; a `reset` says that some events were lost."""
        return self._wire.events(kinds, after)

    async def health(self) -> Record:
        """Whether the server works, and its bridge's counters."""
        return await self._wire.do(calls.get("/health"))


class AsyncJob:
    """As `Job`; `facts` is what the server said of it last."""

    def __init__(self, wire: AsyncWire, facts: Record) -> None:
        self._wire = wire
        self._path = calls.job_path(facts["name"])
        self.name: str = facts["name"]
        self.facts = facts

    async def refresh(self) -> Record:
        """Ask for the facts again."""
        return await self._facts(calls.get(self._path))

    async def versions(self) -> list[Record]:
        """All versions, oldest first."""
        return await self._wire.all(Listing(f"{self._path}/versions", "versions"))

    async def model(self, kind: str = "fp32", version: int | None = None) -> Model:
        """As `Job.model`."""
        number, data = await self._wire.do(calls.model(self.name, kind, version))
        return Model(data, number, kind)

    async def promote(self, version: int) -> Record:
        """Have this version given by default; the version."""
        return await self._wire.do(calls.post(f"{self._path}/versions/{version}/promote"))

    async def unpromote(self) -> Record:
        """Have the newest version given again; the job's facts."""
        return await self._facts(calls.post(f"{self._path}/unpromote"))

    async def pause(self) -> Record:
        """Assign no more devices."""
        return await self._facts(calls.post(f"{self._path}/pause"))

    async def resume(self) -> Record:
        """Assign devices again."""
        return await self._facts(calls.post(f"{self._path}/resume"))

    async def stop(self) -> Record:
        """End the job."""
        return await self._facts(calls.post(f"{self._path}/stop"))

    async def delete(self) -> None:
        """Delete the job, which has ended."""
        await self._wire.do(calls.delete(self._path))

    async def follow(self, *, interval_s: float = WATCH_S) -> AsyncIterator[Record]:
        """The facts, again and again until the job has ended."""
        while (await self.refresh())["state"] != "ended":
            yield self.facts
            await asyncio.sleep(interval_s)
        yield self.facts

    async def _facts(self, call: calls.Call[Record]) -> Record:
        self.facts = await self._wire.do(call)
        return self.facts
