"""`python -m broker_bridge --ports URL --broker HOST:PORT`: run the bridge until SIGTERM or SIGINT.

Exit codes: 0 stopped as asked, 1 the engine cannot be opened or failed, 2 wrong usage. A broker that cannot
be reached is no reason to end: the bridge tries again and logs it.
"""

import asyncio
import logging
import signal
import sys

import click
import structlog

from broker_bridge.bridge import Bridge
from broker_bridge.claim import claimed
from broker_bridge.ports import PortError, open_ports
from edge_client.logs import unfailing

log = structlog.get_logger()


@click.command()
@click.option("--ports", "url", required=True, help="Engine: memory: or sqlite:///path/fleet.db")
@click.option("--broker", required=True, help="MQTT broker as HOST:PORT")
@click.option(
    "--name", default="main", show_default=True, help="Name of this bridge: its session and counters"
)
@click.option("--log-level", default="info", show_default=True, help="debug, info, warning or error")
def main(url: str, broker: str, name: str, log_level: str) -> None:
    """Carry messages between an MQTT broker and the ports."""
    host, _, port = broker.rpartition(":")
    if not host or not port.isdigit():
        raise click.BadParameter("give HOST:PORT", param_hint="--broker")
    level = logging.getLevelNamesMapping().get(log_level.upper())
    if level is None:
        raise click.BadParameter("give debug, info, warning or error", param_hint="--log-level")
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(unfailing(sys.stderr)),
    )
    try:
        with claimed(url, f"bridge-{name}"):
            asyncio.run(_run(url, host, int(port), name))
    except PortError as error:
        log.error("bridge_failed", error=str(error))  # noqa: TRY400 - the message names the file
        sys.exit(1)


async def _run(url: str, host: str, port: int, name: str) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    ports = open_ports(url)
    try:
        log.info("bridge_started", broker=f"{host}:{port}", partitions=ports.partitions)
        await Bridge(ports, host, port, name).run(stop)
    finally:
        await ports.close()


if __name__ == "__main__":
    main()
