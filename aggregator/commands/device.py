"""`fedfleet device list`, `show`, `pause`, `resume` and `forget`: what a server knows of its devices."""

from collections.abc import Iterable
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aggregator.commands.common import (
    EXIT_CODES,
    asks_server,
    json_option,
    local_time,
    print_json,
    repeated,
    watch_option,
)
from aggregator.sdk import Fleet

NOBODY = "no device has connected yet; on one run: fedfleet device run --config device.toml (docs/device.md)"


@click.command("list", epilog="Example: fedfleet device list --state ready --tag lab\n\n" + EXIT_CODES)
@click.option("--state", type=click.Choice(["ready", "disconnected", "lost", "unknown"]), help="Only these.")
@click.option("--cohort", help="Only devices of this cohort.")
@click.option("--tag", help="Only devices with this tag.")
@click.option("--paused/--not-paused", default=None, help="Only devices that are paused, or are not.")
@click.option(
    "--search", "q", help="Only those with this text in id, cohort, tags, software, data sets or reasons."
)
@watch_option
@asks_server
@json_option
def list_devices(*, fleet: Fleet, watch: bool, as_json: bool, **filters: Any) -> None:
    """List the devices that ever spoke to a server."""
    if as_json:
        print_json(fleet.devices(**filters))
        return
    nobody = NOBODY if all(value is None for value in filters.values()) else "no such devices"
    repeated(lambda: _table(fleet.devices(**filters), nobody), watch=watch)


@click.command("show", epilog="Example: fedfleet device show watch-7\n\n" + EXIT_CODES)
@click.argument("device")
@asks_server
@json_option
def show_device(device: str, *, fleet: Fleet, as_json: bool) -> None:
    """Show one device: what it is, why it trains or does not, and what it lately did."""
    found, because = fleet.device(device), fleet.why(device)
    if as_json:
        print_json({**found, "because": because})
        return
    console = Console()
    info = found["info"] or {}
    facts = Table.grid(padding=(0, 2))
    for label, value in (
        ("device", f"{found['device']} ({found['state']})"),
        ("seen", local_time(found["seen"])),
        ("paused", _paused(found) or "no"),
        *(("why", f"{b['job']}: {b['text']}" if b["job"] else b["text"]) for b in because),
        ("cohort", found["cohort"]),
        ("tags", ", ".join(found["tags"]) or "none"),
        ("software", f"{info.get('software', 'unknown')} {info.get('arch', '')}"),
        ("data sets", ", ".join(data["name"] for data in info.get("datasets", ())) or "none"),
    ):
        facts.add_row(label, _plain(value))
    console.print(facts)
    console.print(_rows(("job", "task", "reason", "accepted", "rejected"), _tasks(found)))
    timeline = ((local_time(m["at"]), m["kind"], m["job"], m["what"], m["detail"]) for m in found["timeline"])
    console.print(_rows(("when", "what", "job", "", ""), timeline))


@click.command("pause", epilog="Example: fedfleet device pause watch-7\n\n" + EXIT_CODES)
@click.argument("device")
@asks_server
@json_option
def pause_device(device: str, *, fleet: Fleet, as_json: bool) -> None:
    """Give DEVICE no more work until it is resumed; what it trains now it may finish."""
    _say(fleet.pause(device), f"{device} is paused; it gets no more work", as_json=as_json)


@click.command("resume", epilog="Example: fedfleet device resume watch-7\n\n" + EXIT_CODES)
@click.argument("device")
@asks_server
@json_option
def resume_device(device: str, *, fleet: Fleet, as_json: bool) -> None:
    """Let DEVICE work again: it gets a place after its next ask."""
    _say(fleet.resume(device), f"{device} may work again", as_json=as_json)


@click.command("forget", epilog="Example: fedfleet device forget watch-7\n\n" + EXIT_CODES)
@click.argument("device")
@asks_server
@json_option
def forget_device(device: str, *, fleet: Fleet, as_json: bool) -> None:
    """Remove what the server knows of DEVICE, which must not be connected. Its updates stay in the versions.

    Should it come back it is a new device.
    """
    _say(fleet.forget(device), f"{device} is forgotten", as_json=as_json)


def _say(found: dict[str, Any], text: str, *, as_json: bool) -> None:
    if as_json:
        print_json(found)
    else:
        click.echo(text)


def _table(devices: list[dict[str, Any]], nobody: str) -> Table | str:
    if not devices:
        return nobody
    rows = (
        (d["device"], d["state"], d["cohort"], ", ".join(d["tags"]), local_time(d["seen"]), _doing(d))
        for d in devices
    )
    return _rows(("device", "state", "cohort", "tags", "seen", "doing"), rows)


def _tasks(found: dict[str, Any]) -> Iterable[tuple[str, ...]]:
    for job, task in sorted(found["tasks"].items()):
        status = task["status"] or {"state": "", "reason": ""}
        rejected = ", ".join(f"{n} {code}" for code, n in sorted(task["rejected"].items()))
        yield job, status["state"], status["reason"], str(task["accepted"]), rejected


def _doing(found: dict[str, Any]) -> str:
    """Who paused it, and its last word on each job, with the reason where there is one."""
    words = [_paused(found)] if found["paused"] else []
    for job, task in sorted(found["tasks"].items()):
        if task["status"] is not None:
            reason = f" ({task['status']['reason']})" if task["status"]["reason"] else ""
            words.append(f"{job}: {task['status']['state']}{reason}")
    return "; ".join(words)


def _paused(found: dict[str, Any]) -> str:
    """Why it gets no work, "" when it may."""
    pause = found["paused"]
    return f"paused by {pause['by']} {local_time(pause['at'])}" if pause else ""


def _rows(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Table:
    table = Table(*columns, box=None, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*(_plain(cell) for cell in row))
    return table


def _plain(text: str) -> Text:
    """A device's own words: neither markup nor control characters reach the terminal."""
    return Text("".join(c if c.isprintable() else "�" for c in text))
