"""The fleet from Python: `Fleet` for notebooks and programs, `AsyncFleet` for asyncio. docs/sdk.md shows both."""

from aggregator.sdk.aio import AsyncFleet, AsyncJob
from aggregator.sdk.errors import FleetError
from aggregator.sdk.events import Event
from aggregator.sdk.fleet import Fleet
from aggregator.sdk.job import Job
from aggregator.sdk.local import Shard
from aggregator.sdk.models import Model

__all__ = ["AsyncFleet", "AsyncJob", "Event", "Fleet", "FleetError", "Job", "Model", "Shard"]
