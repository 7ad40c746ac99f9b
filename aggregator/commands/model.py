"""`fedfleet model`: get a trained model back."""

from pathlib import Path

import click

from aggregator.commands.common import EXIT_CODES, asks_server, json_option, print_json
from aggregator.sdk import Fleet


@click.group(epilog="Example: fedfleet model export exercise --out exercise.onnx\n\n" + EXIT_CODES)
def model() -> None:
    """Get trained models."""


@model.command(
    epilog="Example: fedfleet model export exercise --format int8 --out exercise.onnx\n\n" + EXIT_CODES
)
@click.argument("job")
@click.option("--format", "kind", type=click.Choice(["fp32", "int8"]), default="fp32", show_default=True)
@click.option(
    "--version",
    type=int,
    help="Version to export.  [default: the promoted, else the newest; of a detector, with a threshold of its own]",
)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="File to write.")
@asks_server
@json_option
def export(job: str, kind: str, version: int | None, out: Path, *, fleet: Fleet, as_json: bool) -> None:
    """Write the model of JOB as an ordinary ONNX inference model.

    int8 stores weights as 8-bit integers with one scale per output channel; of a bundle built with --quantize
    int8 it is a QDQ model that rounds activations, too.
    """
    found = fleet.job(job).model(kind, version)
    try:
        found.save(out)
    except OSError as error:
        raise click.ClickException(f"{out}: {error.strerror}") from error
    if as_json:
        print_json(
            {"job": job, "version": found.version, "format": kind, "file": str(out), "bytes": len(found)}
        )
    else:
        click.echo(f"{out}: version {found.version} of {job}, {kind}, {len(found):,} B")
