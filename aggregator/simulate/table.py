"""What runs came to, strategy by strategy: means over seeds, spread, and ratios against the first strategy. Pure."""

import statistics
from collections.abc import Sequence

from rich.table import Table

from aggregator.simulate.results import Line, Result

MEGA = 1e6
_FORMS = {"time": ",.4g", "bytes_up": ",.3g", "bytes_down": ",.3g"}
# What it took to reach a target, by the name of the figure in a point.
COSTS = {
    "time": "time s",
    "version": "versions",
    "uploads": "uploads",
    "bytes_up": "MB up",
    "bytes_down": "MB down",
}


def compare(results: Sequence[Result], targets: Sequence[float]) -> list[Line]:
    """A row for each strategy and target, and one a strategy with target None for how it ended.

    `ratio` says how many times as much as the first strategy it took, over the seeds in which both got there.
    """
    rows = []
    labels = list(dict.fromkeys(r.label for r in results))
    for target in (*targets, None):
        first = _points(results, labels[0], target)
        for label in labels:
            points = _points(results, label, target)
            row: Line = {"strategy": label, "target": target, "seeds": len(points), "reached": _count(points)}
            names = [*COSTS, *(("accuracy", "loss", "bytes_up_payload", "gini") if target is None else ())]
            for name in names:
                row[name] = _spread(
                    [p[name] for p in points.values() if p is not None and p[name] is not None]
                )
            row["ratio"] = {name: _ratio(points, first, name) for name in COSTS}
            rows.append(row)
    return rows


def _points(results: Sequence[Result], label: str, target: float | None) -> dict[int, Line | None]:
    mine = [r for r in results if r.label == label]
    return {r.seed: r.points[-1] if target is None else r.reached(target) for r in mine}


def _count(points: dict[int, Line | None]) -> int:
    return sum(point is not None for point in points.values())


def _spread(values: Sequence[float]) -> Line | None:
    if not values:
        return None
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "deviation": deviation}


def _ratio(points: dict[int, Line | None], first: dict[int, Line | None], name: str) -> float | None:
    both = [
        (p[name], f[name]) for seed, p in points.items() if p is not None and (f := first[seed]) is not None
    ]
    total = sum(f for _, f in both)
    return sum(p for p, _ in both) / total if total else None


def tables(rows: Sequence[Line]) -> list[Table]:
    """The comparison for people: one table a target, and one of how the runs ended."""
    shown = []
    for target in dict.fromkeys(row["target"] for row in rows):
        title = "at the end" if target is None else f"to {100 * target:g} % accuracy"
        table = Table(title=title, title_justify="left")
        table.add_column("strategy", no_wrap=True)
        if target is None:
            table.add_column("acc. %", justify="right")
            table.add_column("loss", justify="right")
        else:
            table.add_column("reached", justify="right")
        for words in COSTS.values():
            table.add_column(words, justify="right")
        for row in (r for r in rows if r["target"] == target):
            table.add_row(*_cells(row))
        shown.append(table)
    return shown


def _cells(row: Line) -> list[str]:
    if row["target"] is None:
        own = [_text(row["accuracy"], 100, ".2f"), _text(row["loss"], 1, ".3f")]
    else:
        own = [f"{row['reached']} of {row['seeds']}"]
    costs = []
    for name in COSTS:
        text = _text(row[name], 1 / MEGA if name.startswith("bytes") else 1, _FORMS.get(name, ",.0f"))
        ratio = row["ratio"][name]
        costs.append(text if ratio is None else f"{text}\n{ratio:.3g}x")
    return [row["strategy"], *own, *costs]


def _text(spread: Line | None, factor: float, form: str) -> str:
    if spread is None:
        return "-"
    mean, deviation = factor * spread["mean"], factor * spread["deviation"]
    return f"{mean:{form}} ± {deviation:{form}}" if deviation else f"{mean:{form}}"
