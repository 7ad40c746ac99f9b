"""The FastAPI application around one engine: a router a noun, behind one gate."""

from typing import Any

from fastapi import FastAPI

from aggregator.api import bundles, devices, events, fleet, jobs, metrics, service, site, updates, versions
from aggregator.api.gate import Gate
from aggregator.api.idempotency import Answers
from aggregator.api.problems import PROBLEMS, answer_with_problems
from aggregator.api.rate import Rates
from aggregator.engine import Engine
from aggregator.tokens import Tokens

PREFIX = "/api/v1"


def create_app(engine: Engine, *, loopback: bool = True, rates: Rates | None = None) -> FastAPI:
    """Build the application; `engine` must be running on the same event loop.

    On `loopback` nobody needs a token until there is one.
    """
    # FastAPI's documentation pages load their scripts from a CDN, which a closed network does not reach.
    app = FastAPI(
        title="fedfleet",
        version="1",
        docs_url=None,
        redoc_url=None,
        openapi_url=f"{PREFIX}/openapi.json",
        responses=PROBLEMS,
    )
    app.state.answers = Answers()
    answer_with_problems(app)
    for part in (service, fleet, bundles, devices, jobs, versions, updates, events):
        app.include_router(part.routes(engine), prefix=PREFIX)
    app.include_router(metrics.routes(engine))
    app.include_router(site.routes())
    gate: Any = Gate
    app.add_middleware(
        gate, engine=engine, tokens=Tokens(engine.ports.heads), loopback=loopback, rates=rates or Rates()
    )
    return app
