"""`fedfleet bundle`: build a training bundle from a model, and look into one.

The shell around compiler.py and inspect.py: options in, text out. Exit codes: 0 done, 1 refused with a reason,
2 wrong usage.
"""

import importlib.util
import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click
import msgspec

if TYPE_CHECKING:
    from edge_client.bundle import Manifest, OptimizerSpec
    from firmware_tools.inspect import Report

P = ParamSpec("P")
R = TypeVar("R")
Normalize = tuple[list[float], list[float]]
EXIT_CODES = "Exit codes: 0 done, 1 refused (the message says why), 2 wrong usage."


def _reported(command: Callable[P, R]) -> Callable[P, R]:
    """Turn the errors of the tools into one line and exit code 1."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        missing = [m for m in ("onnx", "rich") if importlib.util.find_spec(m) is None]
        if missing:
            raise click.ClickException(
                f"this command needs: pip install 'fedfleet[tools]' ({', '.join(missing)} is not installed)"
            )
        from edge_client.bundle import BundleError  # noqa: PLC0415 - keeps --help fast
        from firmware_tools.errors import ToolError  # noqa: PLC0415

        try:
            return command(*args, **kwargs)
        except (ToolError, BundleError, OSError) as error:
            # Reasons from onnx span lines and show its stack; one line is what a script can log.
            raise click.ClickException(" ".join(str(error).split())) from error

    return run


def _normalize(_ctx: click.Context, _param: click.Parameter, value: str | None) -> Normalize | None:
    """Parse `m1,m2;s1,s2` or read a JSON file with `mean` and `std`."""
    if value is None:
        return None
    try:
        if value.endswith(".json"):
            data = json.loads(Path(value).read_text(encoding="utf-8"))
            return [float(v) for v in data["mean"]], [float(v) for v in data["std"]]
        mean, std = value.split(";")
        return [float(v) for v in mean.split(",")], [float(v) for v in std.split(",")]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise click.BadParameter(f"{value!r} is neither 'm1,m2;s1,s2' nor a JSON file: {error}") from error


def _names(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",") if part.strip())


def _numbers(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in value.split(",") if part)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not a list of numbers such as 1,2.5") from error


def _shape(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in value.split(",") if part)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not a list of extents such as 1,28,28") from error


@click.group(epilog="Example: fedfleet bundle inspect har.bundle\n\n" + EXIT_CODES)
def bundle() -> None:
    """Build training bundles and look into them."""


@bundle.command(epilog=EXIT_CODES)
@click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Bundle to write."
)
@click.option("--name", default="", help="Name of the model; the graph's own name by default.")
@click.option("--output", help="The output to train where the model has several.")
@click.option("--shape", default="", callback=_shape, metavar="N,…",
              help="Extents of a sample where the model leaves some open.")  # fmt: skip
@click.option("--loss", type=click.Choice(["cross_entropy", "bce_with_logits", "mse", "reconstruction"]),
              default="cross_entropy", show_default=True,
              help="One class a sample, any labels, float32 values, or the sample itself.")  # fmt: skip
@click.option("--class-weights", default="", callback=_numbers, metavar="W,…",
              help="Weight of each class, or of each label's 1s, in the loss.")  # fmt: skip
@click.option("--threshold-share", type=float,
              help="Share of samples under the threshold of a reconstruction error.  [default: 0.95]")  # fmt: skip
@click.option("--optimizer", type=click.Choice(["momentum", "sgd", "adam", "adamw"]),
              default="momentum", show_default=True)  # fmt: skip
@click.option("--momentum", type=float, default=0.9, show_default=True,
              help="Decay of the averaged gradient; beta 1 of adam and adamw.")  # fmt: skip
@click.option("--weight-decay", type=float, help="Of adamw, not on biases.  [default: 0.01]")
@click.option("--proximal", type=float, default=0.0, metavar="MU",
              help="Pull towards the version a device began from (FedProx).  [default: none]")  # fmt: skip
@click.option("--clip-norm", type=float, default=0.0,
              help="Largest L2 norm of a step's gradient.  [default: none]")  # fmt: skip
@click.option("--learning-rate", type=float,
              help="Default step size of a job.  [default: 0.05; 0.001 for adam and adamw]")  # fmt: skip
@click.option("--batch-size", type=int, default=32, show_default=True, help="Default mini-batch of a job.")
@click.option("--trainable", multiple=True, default=("*",), show_default=True,
              help="Names to train (a glob), bias-only, or last:K layers; repeatable.")  # fmt: skip
@click.option("--quantize", type=click.Choice(["int8", "int8-weights", "none"]), default="int8-weights",
              show_default=True, help="Train with weights and activations, or weights, rounded to 8 bits.")  # fmt: skip
@click.option("--batch-norm", type=click.Choice(["train", "frozen"]), default="train", show_default=True,
              help="Normalise by each batch and observe running statistics, or keep the model's own.")  # fmt: skip
@click.option(
    "--normalize",
    callback=_normalize,
    metavar="M,…;S,…|FILE",
    help="Means; standard deviations, one per channel, or a JSON file with `mean` and `std`.",
)
@click.option(
    "--axes",
    default="",
    callback=_names,
    help="Names of a sample's axes; devices that name theirs otherwise decline.",
)
@click.option("--json", "as_json", is_flag=True, help="Print facts as JSON.")
@_reported
def build(model: Path, out: Path, as_json: bool, **options: Any) -> None:
    """Compile an ONNX inference MODEL into a training bundle.

    \b
    Example:
      fedfleet bundle build har.onnx --out har.bundle --axes channel,time \\
          --normalize '0.1,0.0;1.2,0.9' --trainable 'dense.*' --trainable 'conv3.*'
    """  # noqa: D301 - \b is click's mark for a verbatim paragraph
    from firmware_tools.compiler import compile_training  # noqa: PLC0415 - onnx is heavy, --help is not

    compiled = compile_training(model, **options)
    compiled.save(out)
    for note in compiled.notes:
        click.echo(f"note: {note}", err=True)
    manifest, size = compiled.manifest, out.stat().st_size
    if as_json:
        facts = {"bundle": str(out), "name": manifest.name, "parameters": manifest.parameters, "bytes": size}
        facts |= {"tensors": len(manifest.tensors), "pruning": msgspec.to_builtins(compiled.pruning)}
        click.echo(json.dumps(facts))
        return
    click.echo(
        f"{out}: {manifest.name}, {manifest.parameters:,} parameters in {len(manifest.tensors)} tensors, "
        f"{size:,} B\n{compiled.pruning}"
    )


@bundle.command("inspect", short_help="Verify a BUNDLE and show what is in it.", epilog=EXIT_CODES)
@click.argument("path", metavar="BUNDLE", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@_reported
def inspect_command(path: Path, as_json: bool) -> None:
    """Verify a BUNDLE and show its tensors, graphs, digests and memory need.

    \b
    Example:
      fedfleet bundle inspect har.bundle
      fedfleet bundle inspect har.bundle --json | jq .manifest.tensors
    """  # noqa: D301 - \b is click's mark for a verbatim paragraph
    from firmware_tools.inspect import inspect  # noqa: PLC0415 - onnx is heavy, --help is not

    report = inspect(path)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(report)))
    else:
        _show(path, report)


def _settings(optimizer: "OptimizerSpec") -> str:
    """The optimiser's kind and what is not zero of its settings."""
    settings = {k: v for k, v in msgspec.structs.asdict(optimizer).items() if k != "kind" and v}
    return ", ".join([optimizer.kind, *(f"{k.replace('_', ' ')} {v:g}" for k, v in settings.items())])


def _loss(manifest: "Manifest") -> str:
    """The loss with its options."""
    weights = ", ".join(f"{w:g}" for w in manifest.class_weights)
    text = f"{manifest.loss} weighted {weights}" if weights else manifest.loss
    share = manifest.threshold_share
    return text if share is None else f"{text}, threshold over {share:.4g} of the samples"


def _show(path: Path, report: "Report") -> None:
    from rich.console import Console  # noqa: PLC0415 - only this view needs it
    from rich.table import Table  # noqa: PLC0415

    console, manifest = Console(), report.manifest
    axes = f" ({', '.join(manifest.data.axes)})" if manifest.data.axes else ""
    console.print(f"[bold]{manifest.name}[/bold]  {path}", highlight=False)
    console.print(
        f"samples {list(manifest.data.shape)}{axes} with {manifest.data.labelling}, opset {manifest.opset}"
    )
    console.print(
        f"{_loss(manifest)}, {_settings(manifest.optimizer)}, learning rate "
        f"{manifest.learning_rate:g}, batch {manifest.batch_size}, quantize {manifest.quantize}"
    )
    tensors = Table("tensor", "shape", "values", "step", title=f"{report.parameters:,} parameters")
    for t in manifest.tensors:
        tensors.add_row(t.name, str(list(t.shape)), f"{t.size:,}", f"2^{t.step_exp}")
    console.print(tensors)
    if manifest.statistics:
        observed = Table("statistic", "shape", "values", "step", title="observed in training")
        for t in manifest.statistics:
            observed.add_row(t.name, str(list(t.shape)), f"{t.size:,}", f"2^{t.step_exp}")
        console.print(observed)
    graphs = Table("graph", "bytes", "nodes", "operators", title="graphs")
    for g in report.graphs:
        operators = ", ".join(f"{name} {count}" for name, count in g.operators.items())
        graphs.add_row(g.name, f"{g.size:,}", str(g.nodes), operators)
    console.print(graphs)
    files = Table("member", "bytes", "SHA-256", title="files")
    for name, spec in report.digests.items():
        files.add_row(name, f"{spec.size:,}", spec.sha256)
    console.print(files)
    memory = report.memory
    console.print(
        f"memory of a training step of {manifest.batch_size} samples: {memory.state_bytes / 1e6:.1f} MB for "
        f"parameters and optimiser; less than {memory.activations_bytes / 1e6:.1f} MB for all that it computes, "
        "most of which is let go early; about 70 MB for Python and the runtime"
    )
    if report.pruning:
        console.print(str(report.pruning), highlight=False)
