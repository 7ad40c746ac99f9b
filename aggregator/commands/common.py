"""What the commands share: the server's address, JSON output, and errors without tracebacks."""

import contextlib
import functools
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import click
from rich.console import Console, RenderableType
from rich.live import Live

from aggregator.sdk import Fleet, FleetError
from aggregator.sdk.account import DEFAULT_URL

WATCH_S = 2.0
EXIT_CODES = "Exit codes: 0 done, 1 refused or unreachable (the message says why), 2 wrong usage."

json_option = click.option("--json", "as_json", is_flag=True, help="Print facts as JSON.")


watch_option = click.option("--watch", is_flag=True, help="Show it anew every two seconds, until Ctrl+C.")


def repeated(look: Callable[[], RenderableType], *, watch: bool) -> None:
    """Print what `look` gives, once or again and again in the same place."""
    console = Console()
    if not watch:
        console.print(look())
        return
    with Live(look(), console=console, auto_refresh=False) as live, contextlib.suppress(KeyboardInterrupt):
        while True:
            time.sleep(WATCH_S)
            live.update(look(), refresh=True)


def asks_server(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command `--server` and `--token`, and as `fleet` a client; a refusal is a message and exit code 1."""

    @click.option(
        "--server",
        envvar="FEDFLEET_SERVER",
        help=f"URL of the HTTP API.  [default: that of fedfleet login, else {DEFAULT_URL}]",
    )
    @click.option(
        "--token",
        envvar="FEDFLEET_TOKEN",
        help="Token of the HTTP API; better given by the variable FEDFLEET_TOKEN, which no process list shows.",
    )
    @functools.wraps(command)
    def run(*args: Any, server: str | None, token: str | None, **kwargs: Any) -> None:
        try:
            with Fleet(server, token=token) as fleet:
                command(*args, fleet=fleet, **kwargs)
        except FleetError as error:
            raise click.ClickException(str(error)) from error

    return run


def local_time(at: float) -> str:
    """A time in Unix seconds as people read it, in their own zone."""
    return datetime.fromtimestamp(at, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    click.echo(json.dumps(value, indent=2))
