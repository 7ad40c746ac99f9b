"""`fedfleet job`: start jobs, look at them, stop them."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import click
import msgspec
from rich.console import Console
from rich.live import Live
from rich.table import Table

from aggregator.audience import Mode
from aggregator.commands.common import (
    EXIT_CODES,
    asks_server,
    json_option,
    print_json,
    repeated,
    watch_option,
)
from aggregator.sdk import Fleet, FleetError
from aggregator.spec import EndSpec, TrainingSpec
from edge_client.wire.messages import CODECS

VERSIONS_SHOWN = 10


@click.group(epilog="Example: fedfleet job list\n\n" + EXIT_CODES)
def job() -> None:
    """Start, watch and stop training jobs."""


@job.command(
    epilog="Example: fedfleet job start --bundle exercise.bundle --name exercise --dataset wrist-imu "
    "--versions 50\n\n" + EXIT_CODES
)
@click.option("--bundle", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True)
@click.option("--name", required=True, help="Name of the job: a-z, 0-9 and '-'.")
@click.option("--dataset", required=True, help="Data set that devices must have declared.")
@click.option("--cohort", help="Devices that get the offer.  [default: all]")
@click.option("--strategy", help="How updates are aggregated.  [default: fedbuff]")
@click.option("--buffer-size", type=int, help="Updates a new version is made of.")
@click.option("--concurrency", type=int, help="Devices that train at the same time.")
@click.option("--max-wait", "max_wait_s", type=float, help="Commit a part-full buffer after so many seconds.")
@click.option("--staleness-max", type=int, help="Versions an update's base may be behind.")
@click.option("--steps", type=int, help="Local optimiser steps of one update.")
@click.option("--learning-rate", type=float, help="Local learning rate; the bundle's unless given.")
@click.option("--density", type=float, help="Share of parameters an update carries.")
@click.option("--codec", type=click.Choice(CODECS), help="How updates travel; ternary unless named.")
@click.option("--downlink-density", type=float, help="Share of parameters a version's delta carries.")
@click.option(
    "--fanout",
    type=click.Choice(get_args(Mode)),
    help="Whether the broker hands out deltas.  [default: auto]",
)
@click.option("--versions", "versions_max", type=int, help="End after so many versions.")
@click.option("--deadline", "deadline_s", type=float, help="End after so many seconds.")
@click.option("--target-accuracy", type=float, help="End at this accuracy on the devices' hold-outs.")
@click.option("--target-loss", type=float, help="End at this loss on the devices' hold-outs.")
@click.option("--patience", type=int,
              help="End after so many versions without a better hold-out accuracy, or a lower loss.")  # fmt: skip
@click.option(
    "--evaluate-on",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="An .npz with x (and y) on which the server evaluates versions; never seen by devices.",
)
@click.option(
    "--spec",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="JSON file of further fields of the job; options given here win over it.",
)
@asks_server
@json_option
def start(
    bundle: Path, evaluate_on: Path | None, spec: Path | None, *, fleet: Fleet, as_json: bool, **options: Any
) -> None:
    """Upload a bundle and start a job on it."""
    fields = _fields(spec, options)
    with _naming(bundle, "bad_bundle"):
        fields["bundle"] = fleet.upload(bundle.read_bytes())
    if evaluate_on is not None:
        with _naming(evaluate_on, "bad_testset"):
            fields["testset"] = fleet.upload_testset(evaluate_on.read_bytes())
    started = fleet.start(fields).facts
    if as_json:
        print_json(started)
    else:
        cohort = started["spec"]["cohort"]
        click.echo(
            f"job {started['name']} started: {started['parameters']:,} parameters, offered to {cohort}"
        )


@job.command("list", epilog="Example: fedfleet job list --json\n\n" + EXIT_CODES)
@watch_option
@asks_server
@json_option
def list_jobs(*, fleet: Fleet, watch: bool, as_json: bool) -> None:
    """List all jobs."""
    if as_json:
        print_json([job.facts for job in fleet.jobs()])
        return
    repeated(lambda: _all(fleet), watch=watch)


def _all(fleet: Fleet) -> Table | str:
    jobs = [job.facts for job in fleet.jobs()]
    damaged = fleet.health().get("damaged", [])  # a server with tokens tells it to those who have one
    if not jobs and not damaged:
        return "no jobs yet; start one with: fedfleet job start"
    table = Table("job", "state", "version", "hold-out", "updates", "training", "reason")
    for found in jobs:
        table.add_row(
            found["name"],
            found["state"],
            str(found["version"]),
            _figure(found),
            str(found["updates"]),
            str(found["training"]),
            found["reason"],
        )
    for name in damaged:
        table.add_row(name, "damaged", "", "", "", "", "cannot be loaded; fedfleet doctor says why")
    return table


@job.command(epilog="Example: fedfleet job show exercise\n\n" + EXIT_CODES)
@click.argument("name")
@asks_server
@json_option
def show(name: str, *, fleet: Fleet, as_json: bool) -> None:
    """Show one job and its newest versions."""
    job = fleet.job(name)
    if as_json:
        print_json({**job.facts, "versions": job.versions()})
        return
    console = Console()
    console.print(summary(job.facts))
    console.print(newest(job.newest(VERSIONS_SHOWN)))


@job.command(epilog="Example: fedfleet job watch exercise\n\n" + EXIT_CODES)
@click.argument("name")
@asks_server
def watch(name: str, *, fleet: Fleet) -> None:
    """Watch a job live until it ends."""
    job = fleet.job(name)
    with Live(console=Console(), refresh_per_second=4) as live:
        for facts in job.follow():
            grid = Table.grid()
            grid.add_row(summary(facts))
            grid.add_row(newest(job.newest(VERSIONS_SHOWN)))
            live.update(grid)


@job.command(epilog="Example: fedfleet job stop exercise\n\n" + EXIT_CODES)
@click.argument("name")
@asks_server
@json_option
def stop(name: str, *, fleet: Fleet, as_json: bool) -> None:
    """End a job; its devices remove the workspace."""
    stopped = fleet.job(name).stop()
    if as_json:
        print_json(stopped)
    else:
        click.echo(f"job {name} ended at version {stopped['version']}")


@job.command(epilog="Example: fedfleet job pause exercise\n\n" + EXIT_CODES)
@click.argument("name")
@asks_server
@json_option
def pause(name: str, *, fleet: Fleet, as_json: bool) -> None:
    """Assign no more devices; those that train finish."""
    _done(fleet.job(name).pause(), as_json=as_json)


@job.command(epilog="Example: fedfleet job resume exercise\n\n" + EXIT_CODES)
@click.argument("name")
@asks_server
@json_option
def resume(name: str, *, fleet: Fleet, as_json: bool) -> None:
    """Assign devices again."""
    _done(fleet.job(name).resume(), as_json=as_json)


@job.command(epilog="Example: fedfleet job delete exercise\n\n" + EXIT_CODES)
@click.argument("name")
@asks_server
def delete(name: str, *, fleet: Fleet) -> None:
    """Delete an ended job with all its versions; its name stays taken."""
    fleet.job(name).delete()
    click.echo(f"job {name} is deleted")


def _done(facts: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(facts)
    else:
        click.echo(f"job {facts['name']} is {facts['state']} at version {facts['version']}")


def summary(found: dict[str, Any]) -> Table:
    """A job's figures as a table."""
    table = Table.grid(padding=(0, 2))
    rejected = ", ".join(f"{n} {code}" for code, n in sorted(found["rejected"].items())) or "none"
    rows = (
        ("job", f"{found['name']} ({found['state']}{': ' if found['reason'] else ''}{found['reason']})"),
        ("version", f"{found['version']}, best {found['best_version']}{_rest(found)}"),
        ("strategy", f"{found['spec']['strategy']}, {found['spec']['buffer_size']} updates a version"),
        ("hold-out", _figure(found) + (_loss(found) and f", loss {_loss(found)}")),
        *(_on_testset(found)),
        ("updates", f"{found['updates']} folded, {found['buffered']} buffered, rejected: {rejected}"),
        ("staleness", f"{found['staleness_mean']:.2f} versions on average"),
        ("devices", f"{found['training']} training, {found['waiting']} waiting of {found['participants']}"),
        ("fairness", f"{found['participation_gini']:.2f} (Gini of participation, 0 is even)"),
        ("bytes up", f"{found['bytes_up']:,}{_price(found)}"),
        ("updates carry", _carried(found)),
        ("downlink", _downlink(found)),
    )
    for label, value in rows:
        table.add_row(f"[bold]{label}[/bold]", value)
    return table


def newest(versions: list[dict[str, Any]]) -> Table:
    """The newest versions as a table."""
    columns = ("version", "updates", "τ:n", "hold-out", "loss", "b/param", "residual", "delta", "lag")
    table = Table(*columns, box=None, padding=(0, 2, 0, 0))  # fits 80 columns
    for version in versions:
        staleness = " ".join(f"{tau}:{n}" for tau, n in version["staleness"].items())
        table.add_row(
            str(version["version"]),
            str(version["updates"]),
            staleness,
            _figure(version),
            _loss(version),
            _short(version["bits_per_parameter"]),
            _short(version["residual_norm"]),
            f"{version['bytes_delta']:,} B",
            f"{version['lag_norm']:.2g}",
        )
    return table


def _rest(found: dict[str, Any]) -> str:
    """Why there is a version beyond the last that was asked for."""
    last = found["spec"]["end"]["versions_max"]
    if last is None or found["version"] <= last:
        return ""
    return f"; {found['version']} has what was buffered, or left out of deltas, at the end"


def _on_testset(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The newest figures on the server's test set, where the job has one."""
    measured = found["testset"]
    if measured is None:
        return []
    return [("test set", f"{_figure(measured)}, loss {_loss(measured)} (version {measured['version']})")]


def _price(found: dict[str, Any]) -> str:
    """What an update takes, beside the bytes."""
    if found["bits_per_parameter"] is None:
        return ""
    over = found["bytes_to_bound"]
    bound = f", {over:.2f} x the entropy bound" if over is not None else ""
    return f" ({found['bits_per_parameter']:.3f} bits a parameter{bound})"


def _carried(found: dict[str, Any]) -> str:
    """How dense the newest updates are, what they left out, and the uplinks they were measured for."""
    if found["density"] is None:
        return "no device has reported yet"
    rate = found["uplink_bytes_s"]
    uplink = "" if rate is None else f", over {rate:,.0f} B/s"
    return f"{100 * found['density']:.3g} % of the weights, residual {found['residual_norm']:.3g}{uplink}"


def _downlink(found: dict[str, Any]) -> str:
    """What goes down: how much deltas carry, what they left out so far, and their bytes."""
    share = f"deltas of {100 * found['spec']['downlink_density']:.3g} % of the weights"
    mean = found["bytes_per_version"]
    per_version = "" if mean is None else f", {mean:,.0f} B a version"
    way = "handed out by the broker" if found["fans_out"] else "pulled"
    return f"{found['downlink_mode']}, {share}, lag {found['lag_norm']:.3g}{per_version}, {way}"


def _figure(found: dict[str, Any]) -> str:
    """What is known of how good it is, beside the loss."""
    if found["accuracy"] is not None:
        return f"{100 * found['accuracy']:.1f} %"
    if found["error"] is not None:
        return f"error {found['error']:.4g}"
    return "" if found["threshold"] is None else f"threshold {found['threshold']:.4g}"


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


def _loss(found: dict[str, Any]) -> str:
    return "" if found["loss"] is None else f"{found['loss']:.4g}"


@contextlib.contextmanager
def _naming(path: Path, code: str) -> Iterator[None]:
    """Name the file in a refusal of what is in it."""
    try:
        yield
    except FleetError as error:
        raise FleetError(error.code, f"{path}: {error}" if error.code == code else str(error)) from error


def _fields(spec: Path | None, options: dict[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if spec is not None:
        try:
            fields = msgspec.json.decode(spec.read_bytes(), type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise click.BadParameter(f"{spec}: {error}", param_hint="--spec") from error
    for name, value in options.items():
        if value is None:
            continue
        if name in TrainingSpec.__struct_fields__:
            _within(fields, "training")[name] = value
        elif name in EndSpec.__struct_fields__:
            _within(fields, "end")[name] = value
        else:
            fields[name] = value
    return fields


def _within(fields: dict[str, Any], part: str) -> dict[str, Any]:
    inner = fields.setdefault(part, {})
    if not isinstance(inner, dict):
        raise click.BadParameter(f"{part} is not an object", param_hint="--spec")
    return inner
