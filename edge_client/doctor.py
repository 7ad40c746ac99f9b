"""`fedfleet doctor`: find and name what is wrong with the stored state of a device or a server; changes nothing.

What can be said of a server's state comes from its package by an entry point, so a device never loads it.
"""

from importlib.metadata import entry_points
from pathlib import Path

import click

from edge_client.commands import Unusable, load, show
from edge_client.finding import NothingThereError

GROUP = "fedfleet.doctors"


@click.command()
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A device's TOML file: its state, data sets and broker are looked at.",
)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="A server's state directory (fedfleet up --state-dir).",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def doctor(config: Path | None, state_dir: Path | None, *, as_json: bool) -> None:
    """Look for damage in what a device or a server has stored, and name each.

    It changes nothing and works beside a running daemon or server; versions that are made meanwhile may be missed.

    Exit codes: 0 all well, 1 something is not, 2 wrong usage, or no server has run in that directory.

    Example: fedfleet doctor --state-dir ./fleet
    """
    if (config is None) == (state_dir is None):
        raise click.UsageError("give --config of a device, or --state-dir of a server")
    if config is not None:
        from edge_client import checkup, state_check  # noqa: PLC0415 - `--help` does not pay for MQTT

        loaded = load(config)
        show([*state_check.examine(loaded.state_dir), *checkup.examine(loaded)], as_json=as_json)
        return
    found = entry_points(group=GROUP, name="server")
    if not found:
        raise Unusable("looking at a server needs: pip install 'fedfleet[server]'")
    try:
        findings = next(iter(found)).load()(state_dir)
    except NothingThereError as error:
        raise Unusable(str(error)) from error
    show(findings, as_json=as_json)
