"""What the commands share: the server's address, JSON output, and errors without tracebacks."""

import functools
import json
from collections.abc import Callable
from typing import Any, ParamSpec

import click

from aggregator.client import DEFAULT_URL, ApiError

P = ParamSpec("P")

EXIT_CODES = "Exit codes: 0 done, 1 refused or unreachable (the message says why), 2 wrong usage."

server_option = click.option(
    "--server", default=DEFAULT_URL, show_default=True, envvar="FEDFLEET_SERVER", help="URL of the HTTP API."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print facts as JSON.")


def shows_refusals(command: Callable[P, None]) -> Callable[P, None]:
    """Turn ApiError into a message and exit code 1."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except ApiError as error:
            raise click.ClickException(str(error)) from error

    return run


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    click.echo(json.dumps(value, indent=2))
