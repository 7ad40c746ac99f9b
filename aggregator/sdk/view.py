"""A job for the eyes: a table in a terminal, HTML in a notebook. Pure but for finding out which."""

import sys
from html import escape
from typing import Any

from aggregator.sdk.calls import Record

SHOWN = 8  # versions of the table
CURVE = (480, 120)  # pixels
_CELL = "padding:2px 12px 2px 0;text-align:left"


def in_notebook() -> bool:
    """Whether output is shown by a Jupyter kernel."""
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and shell.__class__.__name__ == "ZMQInteractiveShell"


def score(found: Record) -> float | None:
    """What is known of how good it is: accuracy, or without one the loss."""
    accuracy: float | None = found["accuracy"]
    loss: float | None = found["loss"]
    return loss if accuracy is None else accuracy


def facts(job: Record) -> list[tuple[str, str]]:
    """Lines about a job."""
    reason = f": {job['reason']}" if job["reason"] else ""
    return [
        ("job", f"{job['name']} ({job['state']}{reason})"),
        ("version", str(job["version"])),
        ("accuracy", "" if job["accuracy"] is None else f"{100 * job['accuracy']:.1f} %"),
        ("loss", "" if job["loss"] is None else f"{job['loss']:.4g}"),
        (
            "updates",
            f"{job['updates']} folded, {job['buffered']} buffered, {sum(job['rejected'].values())} rejected",
        ),
        ("devices", f"{job['training']} training, {job['waiting']} waiting of {job['participants']}"),
        ("bytes up", f"{job['bytes_up']:,}"),
    ]


def rows(versions: list[Record]) -> list[tuple[str, ...]]:
    """The newest versions: number, updates, accuracy, loss."""
    return [
        (
            str(v["version"]),
            str(v["updates"]),
            "" if v["accuracy"] is None else f"{100 * v['accuracy']:.1f} %",
            "" if v["loss"] is None else f"{v['loss']:.4g}",
        )
        for v in versions[-SHOWN:]
    ]


def html(job: Record, versions: list[Record]) -> str:
    """A job as HTML without scripts; all text of it is escaped."""
    lines = "".join(
        f"<tr><th style='{_CELL}'>{escape(a)}</th><td>{escape(b)}</td></tr>" for a, b in facts(job)
    )
    heads = "".join(f"<th style='{_CELL}'>{name}</th>" for name in ("version", "updates", "accuracy", "loss"))
    body = "".join(
        "<tr>" + "".join(f"<td style='{_CELL}'>{escape(cell)}</td>" for cell in row) + "</tr>"
        for row in rows(versions)
    )
    return f"<table>{lines}</table>{_curve(versions)}<table><tr>{heads}</tr>{body}</table>"


def _curve(versions: list[Record]) -> str:
    """The score over versions as a line."""
    points = [(v["version"], value) for v in versions if (value := score(v)) is not None]
    if len(points) < 2:
        return ""
    (width, height), low, high = CURVE, min(y for _, y in points), max(y for _, y in points)
    x0, x1 = points[0][0], points[-1][0]
    path = " ".join(
        f"{width * (x - x0) / (x1 - x0):.1f},{height - 4 - (height - 8) * (y - low) / ((high - low) or 1):.1f}"
        for x, y in points
    )
    return (
        f"<svg width='{width}' height='{height}' role='img' aria-label='score over versions, {low:.3g} to {high:.3g}'>"
        f"<polyline points='{path}' fill='none' stroke='currentColor' stroke-width='2'/></svg>"
    )
