"""The `fedfleet` command: finds the sub-commands of what is installed, imports only the one that is used.

Sub-commands are entry points of the group `fedfleet.commands`, so a device never loads server code and
`fedfleet --help` imports none of them. What a sub-command does is not known here.
"""

from importlib.metadata import EntryPoint, entry_points
from typing import Any

import click

GROUP = "fedfleet.commands"
# What `--help` says of each command; asking the commands themselves would import the server on a device.
SUMMARIES = {
    "bundle": "Compile a model to a training bundle, and look into bundles.",
    "completion": "Print the completion script of a shell.",
    "demo": "Federate sixteen devices on this machine and compare.",
    "device": "Run and check the device daemon; see a server's devices.",
    "device forget": "Remove what a server knows of a device.",
    "device list": "List the devices of a server.",
    "device pause": "Give a device no more work.",
    "device resume": "Let a paused device work again.",
    "device show": "Show what a server knows of a device.",
    "doctor": "Find what is damaged in the state of a device or a server.",
    "events": "Print what happens in a fleet.",
    "inspect": "Take a frame or log entry apart, byte by byte.",
    "job": "Start, list, watch and stop jobs.",
    "login": "Keep a server and its token for the other commands.",
    "logout": "Forget the server and the token of login.",
    "model": "Export trained models.",
    "simulate": "Compare strategies on a simulated fleet.",
    "token": "Create and revoke tokens of the HTTP API.",
    "version": "List the versions of a job, promote one.",
    "up": "Run broker, bridge and aggregator.",
}
EXTRAS = {"aggregator": "server", "broker_bridge": "server", "firmware_tools": "tools"}


class LazyGroup(click.Group):
    """A group to which entry points of `entry_group` add commands; one is imported when it is invoked."""

    def __init__(self, *args: Any, entry_group: str = GROUP, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.entry_group = entry_group

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the installed commands."""
        return sorted({*super().list_commands(ctx), *entry_points(group=self.entry_group).names})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command; raise ClickException naming the extra to install when it cannot be."""
        known = super().get_command(ctx, cmd_name)
        if known is not None:
            return known
        found = entry_points(group=self.entry_group, name=cmd_name)
        return _load(next(iter(found))) if found else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        prefix = self.entry_group.removeprefix(GROUP).removeprefix(".")
        rows = []
        for name in self.list_commands(ctx):
            known = self.commands.get(name)
            text = (
                SUMMARIES.get(f"{prefix} {name}".strip(), "") if known is None else known.get_short_help_str()
            )
            rows.append((name, text))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _load(entry: EntryPoint) -> click.Command:
    try:
        command = entry.load()
    except ModuleNotFoundError as error:
        extra = EXTRAS.get(entry.module.partition(".")[0])
        # A module of our own that is missing is a broken installation, not a missing extra.
        if extra is None or (error.name or "").partition(".")[0] in {*EXTRAS, "edge_client"}:
            raise
        raise click.ClickException(
            f"this command needs: pip install 'fedfleet[{extra}]' ({error.name} is not installed)"
        ) from error
    if not isinstance(command, click.Command):
        raise click.ClickException(f"{entry.value} is not a command")
    return command


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fedfleet", prog_name="fedfleet")
def main() -> None:
    """Federated learning for fleets of small devices.

    Example: fedfleet device run --config device.toml

    Exit codes: 0 done, 1 refused or not well (the message says why), 2 wrong usage.
    """
