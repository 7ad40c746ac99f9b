"""`fedfleet token`: who may ask a server what."""

import asyncio
import getpass
import re
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import click
from rich.console import Console
from rich.table import Table

from aggregator.audit import AuditEntry, AuditLog
from aggregator.callers import ROLES, Role
from aggregator.commands.common import EXIT_CODES, json_option, print_json
from aggregator.errors import AggregatorError
from aggregator.tokens import Token, Tokens
from broker_bridge.ports import Heads, PortError
from broker_bridge.ports.open import open_ports

T = TypeVar("T")
UNITS_S = {"m": 60, "h": 3600, "d": 86400}

state_dir_option = click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("fedfleet-state"),
    show_default=True,
    help="State directory of the server; it may be running.",
)


@click.group(epilog="Example: fedfleet token list\n\n" + EXIT_CODES)
def token() -> None:
    """Create and revoke tokens of the HTTP API.

    As soon as there is one the server asks for it. Whoever can write the state directory may make tokens.
    """


@token.command(
    short_help="Create a token and print it, once.",
    epilog="Example: fedfleet token create --name ci --role operator --expires 90d\n\n" + EXIT_CODES,
)
@click.option("--name", required=True, help="Who has it; the audit log names it.")
@click.option(
    "--role",
    type=click.Choice(ROLES),
    default="viewer",
    show_default=True,
    help="viewer reads, operator also changes, admin also deletes and reads the audit log.",
)
@click.option("--expires", help="Time until it ends, as 30m, 12h or 90d.  [default: never]")
@state_dir_option
@json_option
def create(name: str, role: Role, expires: str | None, state_dir: Path, *, as_json: bool) -> None:
    """Create a token and print it; it is shown this once, because only its hash is stored."""
    lifetime_s = None if expires is None else _seconds(expires)
    state_dir.mkdir(parents=True, exist_ok=True)
    made, text = _on(
        state_dir,
        lambda tokens: tokens.create(name, role, lifetime_s=lifetime_s, now=time.time()),
        "create_token",
        name,
    )
    if as_json:
        print_json({**_view(made), "token": text})
    else:
        click.echo(text)
        click.echo(f"{name} is {role}; give it to commands as FEDFLEET_TOKEN or --token", err=True)


@token.command("list", epilog="Example: fedfleet token list --json\n\n" + EXIT_CODES)
@state_dir_option
@json_option
def list_tokens(state_dir: Path, *, as_json: bool) -> None:
    """List tokens: who has them, not the tokens themselves."""
    found = _on(state_dir, lambda tokens: tokens.all())
    if as_json:
        print_json([_view(one) for one in found])
        return
    table = Table("id", "name", "role", "created", "expires")
    for one in found:
        table.add_row(one.id, one.name, one.role, _date(one.created_at), _expiry(one))
    Console().print(table if found else "no tokens yet; create one with: fedfleet token create")


@token.command(
    short_help="Revoke a token by its name or id.",
    epilog="Example: fedfleet token revoke ci\n\n" + EXIT_CODES,
)
@click.argument("name")
@state_dir_option
@json_option
def revoke(name: str, state_dir: Path, *, as_json: bool) -> None:
    """Revoke a token by its name or id; a running server refuses it at once."""
    gone = _on(state_dir, lambda tokens: tokens.revoke(name), "revoke_token", name)
    if as_json:
        print_json(_view(gone))
    else:
        click.echo(f"token {gone.name} is revoked")


def _on(state_dir: Path, body: Callable[[Tokens], Awaitable[T]], action: str = "", name: str = "") -> T:
    """The result of `body` with the tokens of a state directory; a change is noted in the audit log."""
    url = f"sqlite:///{state_dir.resolve() / 'fleet.db'}"

    async def main() -> T:
        ports = open_ports(url)
        try:
            result = await body(Tokens(ports.heads))
            if action:
                await _note(ports.heads, action, name)
            return result
        finally:
            await ports.close()

    if not state_dir.is_dir():
        raise click.ClickException(
            f"{state_dir} is not a state directory; name the server's with --state-dir"
        )
    try:
        return asyncio.run(main())
    except (AggregatorError, PortError) as error:
        raise click.ClickException(str(error)) from error


async def _note(heads: Heads, action: str, name: str) -> None:
    log = AuditLog(heads)
    await log.load()
    await log.add(AuditEntry(0, time.time(), getpass.getuser(), "admin", action, "command", name, 0))


def _seconds(text: str) -> float:
    found = re.fullmatch(r"([1-9][0-9]{0,4})([mhd])", text)
    if found is None:
        raise click.BadParameter(f"{text!r} is not like 30m, 12h or 90d", param_hint="--expires")
    return int(found[1]) * UNITS_S[found[2]]


def _view(one: Token) -> dict[str, object]:
    return {
        "id": one.id,
        "name": one.name,
        "role": one.role,
        "created_at": one.created_at,
        "expires_at": one.expires_at,
    }


def _expiry(one: Token) -> str:
    if one.expires_at is None:
        return "never"
    return f"{_date(one.expires_at)}{' (over)' if one.expired(time.time()) else ''}"


def _date(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")
