"""The aggregator process: engine and HTTP API on one event loop. `fedfleet up` starts it."""

import asyncio
import logging
import sys
import tempfile
from pathlib import Path

import click
import structlog
import uvicorn

from aggregator.api.app import create_app
from aggregator.engine import Engine
from aggregator.errors import AggregatorError
from broker_bridge.ports import PortError
from broker_bridge.ports.open import open_ports

log = structlog.get_logger()


@click.command()
@click.option("--ports", required=True, help="Engine URL, e.g. sqlite:///state/fleet.db.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address of the HTTP API.")
@click.option("--port", default=8080, show_default=True, help="Port of the HTTP API.")
def main(ports: str, host: str, port: int) -> None:
    """Run the aggregator until SIGTERM. Exit codes: 0 stopped, 1 could not go on (the log says why)."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
    try:
        asyncio.run(_serve(ports, host, port))
    except (AggregatorError, PortError, OSError) as error:
        log.error("aggregator.failed", error=str(error))  # noqa: TRY400 - the message says it; a person reads this
        sys.exit(1)


async def _serve(url: str, host: str, port: int) -> None:
    ports = open_ports(url)
    with tempfile.TemporaryDirectory(prefix="fedfleet-bundles-") as cache:
        engine = Engine(ports, Path(cache))
        server = uvicorn.Server(
            uvicorn.Config(create_app(engine), host=host, port=port, log_level="warning", access_log=False)
        )
        try:
            async with asyncio.TaskGroup() as group:
                work = group.create_task(engine.run())
                work.add_done_callback(lambda _: setattr(server, "should_exit", True))
                await engine.ready.wait()
                log.info("aggregator.up", url=f"http://{host}:{port}")
                await server.serve()
                engine.stop()
        except* (AggregatorError, PortError, OSError) as group_error:
            raise group_error.exceptions[0] from group_error
        finally:
            await ports.close()


if __name__ == "__main__":
    main()
