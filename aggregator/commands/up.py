"""`fedfleet up`: the whole server on one machine."""

import sys
import time
from pathlib import Path

import click
import structlog

from aggregator.commands.common import EXIT_CODES, json_option, print_json
from aggregator.ready import wait_ready
from aggregator.supervise import POLL_S, Supervisor, SupervisorError, until_signalled
from broker_bridge.broker import BrokerError
from edge_client.logs import unfailing

PORT = click.IntRange(0, 65535)


@click.command(epilog="Example: fedfleet up --state-dir ./fleet\n\n" + EXIT_CODES)
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("fedfleet-state"),
    show_default=True,
    help="Directory of everything that survives a restart.",
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address of the HTTP API; another than loopback needs a token (fedfleet token create).",
)
@click.option(
    "--port", type=PORT, default=8080, show_default=True, help="Port of the HTTP API; 0: a free one."
)
@click.option(
    "--mqtt-port",
    type=PORT,
    default=1883,
    show_default=True,
    help="Port of the MQTT broker, on loopback; 0: a free one.",
)
@click.option(
    "--broker",
    type=click.Choice(["auto", "mosquitto", "iotcore"]),
    default="auto",
    show_default=True,
    help="auto: mosquitto when it is installed, else iotcore.",
)
@json_option
def up(state_dir: Path, host: str, port: int, mqtt_port: int, broker: str, *, as_json: bool) -> None:
    """Run broker, bridge and aggregator with its API until Ctrl+C or SIGTERM.

    Stopping and starting again with the same --state-dir goes on where it was.
    """
    # What is said about the processes goes to stderr: with --json, stdout is one document.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(unfailing(sys.stderr)))
    with until_signalled() as signals:
        supervisor = Supervisor(state_dir, port, mqtt_port, broker, http_host=host)
        try:
            supervisor.start()
            health = wait_ready(supervisor, signals)
            if not signals:
                _say(supervisor, as_json=as_json)
            for name in health.get("damaged", []):
                doctor = f"fedfleet doctor --state-dir {state_dir}"
                click.echo(f"job {name} cannot be loaded; what is damaged, says: {doctor}", err=True)
            while not signals:
                supervisor.tend()
                time.sleep(POLL_S)
            click.echo("stopping", err=True)
        except (SupervisorError, BrokerError) as error:
            raise click.ClickException(str(error)) from error
        finally:
            supervisor.stop()


def _say(supervisor: Supervisor, *, as_json: bool) -> None:
    assert supervisor.broker is not None
    facts = {
        "dashboard": f"{supervisor.url}/",
        "api": f"{supervisor.url}/api/v1",
        "mqtt": f"127.0.0.1:{supervisor.broker.port}",
        "mqtt_v311": f"127.0.0.1:{supervisor.broker.port_v311}",
        "broker": supervisor.broker.kind,
        "state_dir": str(supervisor.state_dir),
    }
    if as_json:
        print_json(facts)
        return
    if facts["mqtt_v311"] == facts["mqtt"]:  # one port speaks both
        del facts["mqtt_v311"]
    for name, value in facts.items():
        click.echo(f"{name:10} {value}")
    click.echo("ready; Ctrl+C stops it")
