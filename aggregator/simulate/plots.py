"""Plots of results: accuracy against what it took, and how stale updates were. matplotlib is loaded only here."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aggregator.simulate.errors import SimulationError
from aggregator.simulate.results import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AXES = {"time": "virtual seconds", "version": "versions", "bytes_up": "bytes up", "bytes_down": "bytes down"}
MISSING = "plots need matplotlib: pip install 'fedfleet[simulate]', or use --no-plots"


def check() -> None:
    """Raise SimulationError when there is no matplotlib: better before the runs than after them."""
    _figure()


def draw(results: Sequence[Result], folder: Path, form: str) -> list[Path]:
    """Write the plots as `form` (svg or png) and return their files; raise SimulationError without matplotlib."""
    figure_class = _figure()
    labels = list(dict.fromkeys(r.label for r in results))
    measure = "loss" if results[0].points[-1]["accuracy"] is None else "accuracy"
    files = []
    for name, words in AXES.items():
        figure = figure_class(figsize=(6.4, 4.0), layout="constrained")
        axes: Axes = figure.subplots()
        for number, label in enumerate(labels):
            for index, result in enumerate(r for r in results if r.label == label):
                points = result.points
                axes.plot(
                    [p[name] for p in points],
                    [p[measure] for p in points],
                    color=f"C{number % 10}",
                    label=label if index == 0 else None,
                    linewidth=1,
                )
        axes.set_xlabel(words)
        axes.set_ylabel(measure)
        axes.grid(visible=True, alpha=0.3)
        axes.legend()
        files.append(_saved(figure, folder / f"{measure}-by-{name.replace('_', '-')}.{form}"))
    figure = figure_class(figsize=(6.4, 4.0), layout="constrained")
    _staleness(figure.subplots(), results, labels)
    return [*files, _saved(figure, folder / f"staleness.{form}")]


def _staleness(axes: "Axes", results: Sequence[Result], labels: Sequence[str]) -> None:
    """The share of updates by how many versions they were behind, all seeds together."""
    for number, label in enumerate(labels):
        counts: dict[int, int] = {}
        for result in (r for r in results if r.label == label):
            for tau, updates in result.summary["staleness"].items():
                counts[int(tau)] = counts.get(int(tau), 0) + updates
        taus, total = sorted(counts), max(1, sum(counts.values()))
        axes.plot(
            taus, [counts[t] / total for t in taus], "o-", color=f"C{number % 10}", label=label, markersize=3
        )
    axes.set_xlabel("versions behind")
    axes.set_ylabel("share of updates")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()


def _figure() -> Any:
    try:
        from matplotlib import rcParams  # noqa: PLC0415 - an extra that only plots need
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise SimulationError(MISSING) from error
    rcParams["svg.hashsalt"] = "fedfleet"  # the same results give the same file
    return Figure


def _saved(figure: Any, file: Path) -> Path:
    metadata = {"Date": None} if file.suffix == ".svg" else {}
    figure.savefig(file, metadata=metadata)
    return file
