"""Writes one of the reference networks as an .onnx file."""

from pathlib import Path

import click
import onnx

from examples.models import MODELS


@click.command(epilog="Example: python -m examples.models ds-cnn --out ds-cnn.onnx")
@click.argument("name", type=click.Choice(list(MODELS)))
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="File to write.")
@click.option("--seed", default=0, show_default=True, help="Of the initial values.")
def main(name: str, out: Path, seed: int) -> None:
    """Write the network NAME, untrained, as an ordinary inference model."""
    onnx.save(MODELS[name](seed=seed), out)


if __name__ == "__main__":
    main()
