"""The aggregator process: engine and HTTP API on one event loop. `fedfleet up` starts it."""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import structlog
import uvicorn

from aggregator.api.app import create_app
from aggregator.engine import Engine
from aggregator.errors import AggregatorError
from aggregator.evaluator import Evaluator
from aggregator.tokens import Tokens, is_loopback, no_tokens
from broker_bridge.claim import claimed
from broker_bridge.ports import PortError
from broker_bridge.ports.open import open_ports
from edge_client.logs import unfailing

DRAIN_S = 3  # how long a request under way may hold up the end

log = structlog.get_logger()


@click.command()
@click.option("--ports", required=True, help="Engine URL, e.g. sqlite:///state/fleet.db.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address of the HTTP API.")
@click.option("--port", default=8080, show_default=True, help="Port of the HTTP API.")
@click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory for copies of bundles, which may be deleted at any time; a temporary one unless given.",
)
def main(ports: str, host: str, port: int, cache: Path | None) -> None:
    """Run the aggregator until SIGTERM. Exit codes: 0 stopped, 1 could not go on (the log says why)."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(unfailing(sys.stdout)),
    )
    try:
        with claimed(ports, "aggregator"), _directory(cache) as bundles:
            asyncio.run(_serve(ports, host, port, bundles))
    except (AggregatorError, PortError, OSError) as error:
        log.error("aggregator.failed", error=str(error))  # noqa: TRY400 - the message says it; a person reads this
        sys.exit(1)


@contextlib.contextmanager
def _directory(cache: Path | None) -> Iterator[Path]:
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
        yield cache
        return
    with tempfile.TemporaryDirectory(prefix="fedfleet-bundles-") as temporary:
        yield Path(temporary)


async def _serve(url: str, host: str, port: int, bundles: Path) -> None:
    with _claim(host, port) as listener:
        ports = open_ports(url)
        try:
            if not is_loopback(host) and not await Tokens(ports.heads).any():
                raise AggregatorError(no_tokens(host))
            await _run(Engine(ports, bundles), listener, loopback=is_loopback(host))
        finally:
            await ports.close()


async def _run(engine: Engine, listener: socket.socket, *, loopback: bool) -> None:
    """Load, then answer requests until a signal comes or the engine cannot go on; raise what stopped it."""
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(engine, loopback=loopback),
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=DRAIN_S,
        )
    )
    # uvicorn takes signals while it serves and raises them again after; ours make them harmless before and then.
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, engine.stop)
    work = asyncio.create_task(engine.run())
    work.add_done_callback(lambda _: setattr(server, "should_exit", True))
    looking = asyncio.create_task(Evaluator(engine).run())
    looking.add_done_callback(_report)
    ready = asyncio.create_task(engine.ready.wait())
    await asyncio.wait({work, ready}, return_when=asyncio.FIRST_COMPLETED)
    try:
        if ready.done():
            host, port = listener.getsockname()[:2]
            log.info("aggregator.up", url=f"http://{host}:{port}")
            await server.serve(sockets=[listener])
    finally:
        ready.cancel()
        looking.cancel()
        engine.stop()
        await work


def _report(task: asyncio.Task[None]) -> None:
    """Say why a task beside the engine ended; the engine goes on without it."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("evaluator.failed", error=f"{type(error).__name__}: {error}")


def _claim(host: str, port: int) -> socket.socket:
    """Bind the API's port before anything is loaded; uvicorn would end the process without a word of why."""
    # Where the protocol is named asyncio switches Nagle's algorithm off; else each answer waits 40 ms for an ACK.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise AggregatorError(
            f"port {port} on {host} is not free ({error.strerror}); stop what uses it, or choose another --port"
        ) from error
    return listener


if __name__ == "__main__":
    main()
