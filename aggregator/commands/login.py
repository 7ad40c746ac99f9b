"""`fedfleet login` and `logout`: which server the other commands and the SDK mean when none is named."""

import sys

import click

from aggregator.commands.common import EXIT_CODES, json_option, print_json
from aggregator.sdk import Fleet, FleetError, account


@click.command(epilog="Example: fedfleet login --server https://fleet.example\n\n" + EXIT_CODES)
@click.option("--server", default=account.DEFAULT_URL, show_default=True, envvar="FEDFLEET_SERVER",
              help="URL of the HTTP API.")  # fmt: skip
@click.option("--token", envvar="FEDFLEET_TOKEN", help="Its token; asked for in a terminal unless given.")
@json_option
def login(server: str, token: str | None, *, as_json: bool) -> None:
    """Keep a server and a token for the other commands and the SDK, once the server has taken them."""
    if token is None and sys.stdin.isatty():
        token = click.prompt(
            "Token (empty where none is needed)", default="", hide_input=True, show_default=False
        )
    kept = account.Account(server.rstrip("/"), token or None)
    try:
        with Fleet(kept.url, token=kept.token or "") as fleet:  # what is kept is what was tried
            jobs = len(fleet.jobs())
        path = account.save(kept)
    except FleetError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        print_json({"server": kept.url, "file": str(path), "jobs": jobs})
    else:
        click.echo(f"logged in to {kept.url}, which has {jobs} jobs; kept in {path}")


@click.command(epilog="Example: fedfleet logout\n\n" + EXIT_CODES)
@json_option
def logout(*, as_json: bool) -> None:
    """Forget the server and token of fedfleet login; the token stays valid until it is revoked."""
    gone = account.drop()
    if as_json:
        print_json({"removed": gone})
    else:
        click.echo("logged out" if gone else "nobody was logged in")
