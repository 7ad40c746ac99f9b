"""`fedfleet device …`: run the daemon, check its configuration, show its state. No logic of its own.

The daemon's modules are imported by the command that needs them, so `--help` and `status` stay light.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import click

from edge_client import config as configuration
from edge_client import store
from edge_client.cli import GROUP, LazyGroup
from edge_client.finding import Finding

CONFIG = click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The device's TOML file (docs/device.md).",
)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


class Unusable(click.ClickException):
    """The configuration or the state cannot be used."""

    exit_code = 2


@click.group(cls=LazyGroup, entry_group=f"{GROUP}.device")
def device() -> None:
    """Run the device daemon, check its configuration, show its state.

    \b
    Exit codes of all sub-commands:
      0  done, everything is well
      1  ran, but something it looked at is not well
      2  the command line, the configuration or the state cannot be used

    Example: fedfleet device check --config device.toml
    """  # noqa: D301 - \b is click's mark for a paragraph to keep as it is


@device.command(short_help="Run the daemon until SIGTERM or Ctrl-C.")
@CONFIG
@click.option("--log-json", is_flag=True, help="Log JSON lines instead of key=value.")
def run(path: Path, *, log_json: bool) -> None:
    """Run the daemon in the foreground until SIGTERM or Ctrl-C.

    Exit codes: 0 stopped on request, 1 stopped by an error, 2 the configuration or state cannot be used.

    Example: fedfleet device run --config /etc/fedfleet/device.toml
    """
    from edge_client import process  # noqa: PLC0415 - other commands do not pay for MQTT

    loaded = load(path)
    try:
        process.run(loaded, log_json=log_json)
    except (configuration.ConfigError, store.StoreError) as error:
        raise Unusable(str(error)) from error


@device.command(short_help="Try configuration, data sets and broker.")
@CONFIG
@AS_JSON
def check(path: Path, *, as_json: bool) -> None:
    """Check the configuration and the state's directory, read the data sets, and try the broker.

    Exit codes: 0 all well, 1 the directory, a data set or the broker is not, 2 the configuration cannot be used.

    Example: fedfleet device check --config device.toml --json
    """
    from edge_client import checkup  # noqa: PLC0415 - other commands do not pay for MQTT

    show(checkup.examine(load(path)), as_json=as_json)


@device.command(short_help="Show unsent results, jobs and last receipts.")
@CONFIG
@AS_JSON
def status(path: Path, *, as_json: bool) -> None:
    """Show what the state database holds: unsent results, jobs, last receipts.

    Exit codes: 0 shown, 2 the configuration or state cannot be used.

    Example: fedfleet device status --config device.toml
    """
    try:
        report = store.read_report(load(path).state_dir)
    except store.StoreError as error:
        raise Unusable(str(error)) from error
    click.echo(json.dumps(report, indent=2) if as_json else _table(report))


def show(findings: Sequence[Finding], *, as_json: bool) -> None:
    """Print findings, and end with code 1 when one of them is a problem."""
    if as_json:
        click.echo(json.dumps([{"what": f.what, "ok": f.ok, "detail": f.detail} for f in findings], indent=2))
    else:
        for finding in findings:
            click.echo(f"{'ok     ' if finding.ok else 'PROBLEM'}  {finding.what}: {finding.detail}")
    if not all(finding.ok for finding in findings):
        click.get_current_context().exit(1)


def load(path: Path) -> configuration.DeviceConfig:
    """The configuration; raise Unusable."""
    try:
        return configuration.load(path)
    except configuration.ConfigError as error:
        raise Unusable(str(error)) from error


def _table(report: store.Report) -> str:

    def held(version: int | None) -> str:
        return "needs a key-frame" if version is None else f"holds version {version}"

    rate = report["uplink_bytes_s"]
    uplink = "not measured yet" if rate is None else f"{rate:,.0f} B/s"
    lines = [f"epoch {report['epoch']}, next seq {report['next_seq']}", f"uplink: {uplink}"]
    lines.append(f"jobs: {len(report['jobs'])}")
    lines += [
        f"  {job['job']}: {held(job['held'])}, last receipt {job['receipt'] or 'none'}"
        for job in report["jobs"]
    ]
    lines.append(f"waiting for a receipt: {len(report['outbox'])}")
    lines += [
        f"  {row['uid']}: {row['kind']}, {row['bytes']} B, {'sent' if row['published'] else 'not sent yet'}"
        for row in report["outbox"]
    ]
    return "\n".join(lines)
