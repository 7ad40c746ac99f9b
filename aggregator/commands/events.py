"""`fedfleet events`: what happens in a fleet."""

import json
from collections.abc import Iterable
from typing import Any

import click

from aggregator.commands.common import EXIT_CODES, asks_server, local_time
from aggregator.sdk import Fleet

KINDS = ("job", "version", "device", "update", "rejection", "audit")


@click.command(epilog="Example: fedfleet events --follow --kind job --kind version\n\n" + EXIT_CODES)
@click.option("--follow", is_flag=True, help="Go on with what happens, until Ctrl+C.")
@click.option("--kind", "kinds", type=click.Choice(KINDS), multiple=True, help="Only these; repeatable.")
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="The newest so many."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@asks_server
def events(kinds: tuple[str, ...], limit: int, *, follow: bool, as_json: bool, fleet: Fleet) -> None:
    """Print the newest events, and with --follow those to come."""
    chosen: Iterable[str] = kinds or KINDS
    recent = fleet.recent_events(chosen, limit)
    for event in recent:
        _say(event.kind, event.data, event.id, as_json=as_json)
    if not follow:
        return
    for event in fleet.events(chosen, after=recent[-1].id if recent else None):
        _say(event.kind, event.data, event.id, as_json=as_json)


def _say(kind: str, data: dict[str, Any], number: str, *, as_json: bool) -> None:
    """One line; JSON escapes what a device may have put into its words."""
    if as_json:
        click.echo(json.dumps({"id": number, "kind": kind, **({} if not data else {"data": data})}))
        return
    words = " ".join(
        f"{name}={local_time(value) if name == 'at' else json.dumps(value)}"
        for name, value in data.items()
        if value not in ("", None, {})
    )
    click.echo(f"{kind:10}{words}")
