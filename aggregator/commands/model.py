"""`fedfleet model`: get a trained model back."""

from pathlib import Path

import click

from aggregator.client import Api
from aggregator.commands.common import EXIT_CODES, asks_server, json_option, print_json


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
    help="Version to export.  [default: the newest; of a detector, with a threshold of its own]",
)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="File to write.")
@asks_server
@json_option
def export(job: str, kind: str, version: int | None, out: Path, *, api: Api, as_json: bool) -> None:
    """Write the model of JOB as an ordinary ONNX inference model.

    int8 stores weights as 8-bit integers with one scale per output channel; of a bundle built with --quantize
    int8 it is a QDQ model that rounds activations, too.
    """
    number, data = api.model(job, kind, version)
    part = out.with_name(f".{out.name}.part")
    try:
        part.write_bytes(data)
        part.replace(out)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise click.ClickException(f"{out}: {error.strerror}") from error
    if as_json:
        print_json({"job": job, "version": number, "format": kind, "file": str(out), "bytes": len(data)})
    else:
        click.echo(f"{out}: version {number} of {job}, {kind}, {len(data):,} B")
