"""`fedfleet inspect`: takes a frame or an entry of the log apart, with a map of its bytes."""

from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.table import Table

from aggregator.commands.common import EXIT_CODES, json_option, print_json
from edge_client.bundle import BundleError, open_bundle

BYTES_SHOWN = 12  # of each part, in hex


@click.command(epilog="Example: fedfleet inspect update.bin --bundle exercise.bundle\n\n" + EXIT_CODES)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--bundle", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="The bundle of the model that the frame is of, for names, sizes and streams.")  # fmt: skip
@json_option
def inspect(file: Path, bundle: Path | None, *, as_json: bool) -> None:
    """Decode FILE, the bytes of an update, chunk, key-frame, delta or log entry.

    It shows what lies at which byte, and figures such as bits per parameter and bytes to the entropy bound. A
    damaged file is shown as far as it can be read, and exit code 1 says that it would be refused.
    """
    from broker_bridge.dissect import dissect  # noqa: PLC0415 - numpy is slow to load, --help is not

    data = file.read_bytes()
    try:
        manifest = open_bundle(bundle).manifest if bundle else None
    except BundleError as error:
        raise click.ClickException(str(error)) from error
    found = dissect(data, manifest)
    if as_json:
        facts = msgspec.to_builtins(found)
        print_json({**facts, "data": found.data.hex()})
    else:
        console = Console()
        table = Table("offset", "bytes", "", "what", "value", title=f"{found.kind}, {len(found.data):,} B")
        for part in found.parts:
            raw = found.data[part.offset : part.offset + min(part.size, BYTES_SHOWN)].hex(" ")
            more = " …" if part.size > BYTES_SHOWN else ""
            table.add_row(str(part.offset), str(part.size), raw + more, part.name, part.value)
        console.print(table)
        for name, value in found.figures.items():
            console.print(
                f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}", highlight=False
            )
    if found.error:
        raise click.ClickException(f"{file} would be refused: {found.error}")
