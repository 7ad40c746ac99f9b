"""One job of a fleet."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aggregator.sdk import calls, view
from aggregator.sdk.calls import Listing, Record
from aggregator.sdk.errors import FleetError
from aggregator.sdk.models import Model
from aggregator.sdk.wire import Wire

WATCH_S = 1.0


class Job:
    """A job; `facts` is what the server said of it last (docs/api.md lists the fields)."""

    def __init__(self, wire: Wire, facts: Record) -> None:
        self._wire = wire
        self._path = calls.job_path(facts["name"])
        self.name: str = facts["name"]
        self.facts = facts

    def __repr__(self) -> str:
        return f"<Job {self.name}: {self.facts['state']}, version {self.facts['version']}>"

    def refresh(self) -> Record:
        """Ask for the facts again."""
        return self._facts(calls.get(self._path))

    def history(self) -> Any:
        """All versions, oldest first: a pandas DataFrame by version when pandas is there, else a list of records."""
        records = self.versions()
        try:
            import pandas as pd  # noqa: PLC0415 - slow to load, and not everybody has it
        except ModuleNotFoundError:
            return records
        return pd.DataFrame.from_records(records).set_index("version")

    def versions(self) -> list[Record]:
        """All versions as records, oldest first."""
        return self._wire.all(Listing(f"{self._path}/versions", "versions"))

    def newest(self, count: int = view.SHOWN) -> list[Record]:
        """The newest versions, oldest first."""
        found = self._wire.do(calls.newest(self._path, count))
        return found[::-1]

    def participation(self) -> Record:
        """Who contributed, and how evenly."""
        return self._wire.do(calls.get(f"{self._path}/participation"))

    def model(self, kind: str = "fp32", version: int | None = None) -> Model:
        """The trained model as ONNX, `kind` fp32 or int8: the promoted version, else the newest, or the one named."""
        number, data = self._wire.do(calls.model(self.name, kind, version))
        return Model(data, number, kind)

    def save(self, path: str | Path, kind: str = "fp32", version: int | None = None) -> Path:
        """Write the trained model to an ONNX file."""
        return self.model(kind, version).save(path)

    def promote(self, version: int) -> Record:
        """Have this version given by default; the version."""
        return self._wire.do(calls.post(f"{self._path}/versions/{version}/promote"))

    def unpromote(self) -> Record:
        """Have the newest version given again; the job's facts."""
        return self._facts(calls.post(f"{self._path}/unpromote"))

    def pause(self) -> Record:
        """Assign no more devices."""
        return self._facts(calls.post(f"{self._path}/pause"))

    def resume(self) -> Record:
        """Assign devices again."""
        return self._facts(calls.post(f"{self._path}/resume"))

    def stop(self) -> Record:
        """End the job; its devices remove what they hold for it."""
        return self._facts(calls.post(f"{self._path}/stop"))

    def delete(self) -> None:
        """Delete the job, which has ended, with all its versions."""
        self._wire.do(calls.delete(self._path))

    def follow(self, *, interval_s: float = WATCH_S) -> Iterator[Record]:
        """The facts, again and again until the job has ended."""
        while self.refresh()["state"] != "ended":
            yield self.facts
            time.sleep(interval_s)
        yield self.facts

    def wait(self, timeout_s: float | None = None) -> Record:
        """The facts once the job has ended; raise FleetError (`timeout`)."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        for _ in self.follow():
            if deadline is not None and time.monotonic() > deadline and self.facts["state"] != "ended":
                raise FleetError("timeout", f"job {self.name} has not ended within {timeout_s:g} s")
        return self.facts

    def watch(self) -> None:
        """Show the job live until it has ended: HTML in a notebook, else a table.

        Interrupting stops the watching alone.
        """
        show = _notebook() if view.in_notebook() else None
        try:
            if show is None:
                self._watch_terminal()
                return
            for facts in self.follow():
                show(view.html(facts, self.versions()))
        except KeyboardInterrupt:
            return

    def _watch_terminal(self) -> None:
        from rich.console import Console  # noqa: PLC0415 - slow to load
        from rich.live import Live  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415

        with Live(console=Console(), refresh_per_second=4) as live:
            for facts in self.follow():
                grid, newest = (
                    Table.grid(padding=(0, 2)),
                    Table("version", "updates", "accuracy", "loss", box=None),
                )
                for line in view.facts(facts):
                    grid.add_row(*line)
                for row in view.rows(self.newest()):
                    newest.add_row(*row)
                both = Table.grid()
                both.add_row(grid)
                both.add_row(newest)
                live.update(both)

    def _repr_html_(self) -> str:
        return view.html(self.facts, self.versions())

    def _facts(self, call: calls.Call[Record]) -> Record:
        self.facts = self._wire.do(call)
        return self.facts


def _notebook() -> Any:
    """A function that shows HTML in the place of what it showed before."""
    from IPython.display import HTML, display  # noqa: PLC0415 - there only in a notebook

    handle = display(HTML(""), display_id=True)
    return lambda text: handle.update(HTML(text))
