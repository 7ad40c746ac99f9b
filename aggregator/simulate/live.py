"""Progress of the runs: a table that moves on a terminal, plain lines elsewhere."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from aggregator.simulate.run import Progress

REDRAW_S = 0.25
LINE_S = 10.0  # between lines where there is no terminal to redraw
COLUMNS = ("virtual s", "version", "uploads", "accuracy", "MB up", "MB down")


class Watch:
    """Shows where each run is; call it with every step of a run."""

    def __init__(self, console: Console, runs: list[tuple[str, int]]) -> None:
        self._console = console
        self._at: dict[tuple[str, int], Progress | str] = dict.fromkeys(runs, "waiting")
        self._live = (
            Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        )
        self._due = 0.0

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, label: str, seed: int, progress: Progress | None) -> None:
        """A run moved; None says that it was finished in an earlier call."""
        self._at[label, seed] = progress or "done before"
        now = time.monotonic()
        if now < self._due and progress is not None and not progress.done:
            return
        if self._live is not None:
            self._due = now + REDRAW_S
            self._live.update(self.table(), refresh=True)
            return
        if progress is not None:
            self._due = now + LINE_S
        cells = zip(COLUMNS, _cells(progress), strict=True) if progress else [("", "done before")]
        text = ", ".join(f"{cell} {column}".strip() for column, cell in cells)
        self._console.print(f"{label} seed {seed}: {text}", highlight=False, soft_wrap=True)

    def table(self) -> Table:
        """A row for each run."""
        table = Table("strategy", "seed", *COLUMNS)
        for (label, seed), at in self._at.items():
            table.add_row(label, str(seed), *(_cells(at) if isinstance(at, Progress) else (at,)))
        return table


def _cells(progress: Progress) -> tuple[str, ...]:
    accuracy = "-" if progress.accuracy is None else f"{100 * progress.accuracy:.1f} %"
    counts = f"{progress.version:,}", f"{progress.uploads:,}", accuracy
    return (
        f"{progress.seconds:,.1f}",
        *counts,
        f"{progress.bytes_up / 1e6:,.1f}",
        f"{progress.bytes_down / 1e6:,.1f}",
    )
