"""`fedfleet simulate`: strategies compared on a simulated fleet."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console

from aggregator.commands.common import print_json

EPILOG = """Example: fedfleet simulate examples/simulate/quick.toml --out results

Exit codes: 0 done, 1 it cannot run (the message says why), 2 wrong usage."""


@click.command(epilog=EPILOG)
@click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", type=click.Path(file_okay=False, path_type=Path),
              help="Where result files and plots go  [default: simulated/NAME of the configuration].")  # fmt: skip
@click.option("--state", type=click.Path(file_okay=False, path_type=Path),
              help="Where data and residuals lie while it runs  [default: where temporary files go].")  # fmt: skip
@click.option("--workers", type=click.IntRange(1, 1024), default=None,
              help="Processes that train  [default: one a core].")  # fmt: skip
@click.option("--fresh", is_flag=True, help="Run what is finished already, too.")
@click.option("--plots/--no-plots", default=False, show_default=True, help="Draw the results.")
@click.option("--plot-format", type=click.Choice(["svg", "png"]), default="svg", show_default=True)
@click.option(
    "--json", "as_json", is_flag=True, help="Print the comparison as JSON, and nothing else, on stdout."
)
def simulate(  # noqa: PLR0917 - the options of the command
    config: Path,
    out: Path | None,
    state: Path | None,
    workers: int | None,
    fresh: bool,
    plots: bool,
    plot_format: str,
    as_json: bool,
) -> None:
    """Simulate the fleet that the TOML file CONFIG describes, and compare its strategies.

    Devices, network and time are simulated; training, codec, admission and aggregation are those of the real system.
    A finished run is not run again unless CONFIG changed what it depends on: after Ctrl+C the same command goes on.
    """
    # Loading these takes longer than --help should.
    from aggregator.simulate import config as configuration  # noqa: PLC0415
    from aggregator.simulate.errors import SimulationError  # noqa: PLC0415
    from aggregator.simulate.live import Watch  # noqa: PLC0415
    from aggregator.simulate.plots import check, draw  # noqa: PLC0415
    from aggregator.simulate.simulation import Simulation, state_directory  # noqa: PLC0415
    from aggregator.simulate.table import compare, tables  # noqa: PLC0415

    console = Console(stderr=as_json)
    folder = out or Path("simulated") / config.stem
    try:
        if plots:
            check()
        settings = configuration.load(config)
        with _terminable(), state_directory(state) as scratch:
            simulation = Simulation(settings, scratch)
            with Watch(
                console, [(label, seed) for label in settings.labels for seed in settings.seeds]
            ) as watch:
                results = simulation.run(folder, workers or os.cpu_count() or 1, watch, fresh=fresh)
        files = draw(results, folder, plot_format) if plots else []
    except (SimulationError, OSError) as error:  # of the disk, which the message names
        raise click.ClickException(str(error)) from error
    rows = compare(results, settings.evaluate.targets)
    if as_json:
        print_json({"out": str(folder), "plots": [str(file) for file in files], "comparison": rows})
        return
    for table in tables(rows):
        console.print(table)
    console.print(f"results: {folder}", highlight=False, soft_wrap=True)


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the program in order, so that scratch data is removed."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
