"""Result files: a header with the whole spec, a line for each evaluation, a summary. JSON lines, no clock in them.

A file's name holds the beginning of its spec's hash, so a changed configuration never overwrites another's results,
and a finished file is not made again.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from aggregator.simulate.errors import SimulationError

FORMAT = 1  # of the files; another number is another hash
HASH_CHARACTERS = 8  # of the hash, in file names

Line = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Result:
    """A finished run: its points by uploads, and what it came to."""

    label: str
    seed: int
    header: Line
    points: list[Line]
    summary: Line

    def reached(self, target: float) -> Line | None:
        """The first evaluation with at least this accuracy."""
        found = (p for p in self.points if p["accuracy"] is not None and p["accuracy"] >= target)
        return next(found, None)


def header(spec: Line) -> Line:
    """The first line of a run's file."""
    data = json.dumps({"format": FORMAT, **spec}, sort_keys=True).encode()
    return {"kind": "run", "hash": hashlib.sha256(data).hexdigest(), "format": FORMAT, "spec": spec}


def path(folder: Path, head: Line) -> Path:
    """The file of a run."""
    spec = head["spec"]
    return folder / f"{spec['strategy']}-seed{spec['seed']}-{head['hash'][:HASH_CHARACTERS]}.jsonl"


def read(file: Path, head: Line) -> Result | None:
    """A finished run of this header; None when there is none, or only the beginning of one.

    Raises SimulationError when the file is of another origin, which nothing here would overwrite unasked.
    """
    if not file.exists():
        return None
    try:
        first, *rest = file.read_text().splitlines()
        known = json.loads(first) == head
    except (OSError, ValueError) as error:
        raise SimulationError(f"{file}: not a result file ({error}); delete it, or use --fresh") from error
    if not known:
        raise SimulationError(f"{file}: not this run's result file; delete it, or use --fresh")
    try:
        lines = [json.loads(line) for line in rest]
    except json.JSONDecodeError:
        return None  # cut short in the middle of a line
    if not lines or lines[-1]["kind"] != "summary":
        return None
    return Result(head["spec"]["strategy"], head["spec"]["seed"], head, lines[:-1], lines[-1])


class Writer:
    """Lines of one run, written as they come; the last one finishes it."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self.lines: list[Line] = []

    def line(self, line: Line) -> None:
        """Add a line."""
        self.lines.append(line)
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


@contextmanager
def writing(file: Path, head: Line) -> Iterator[Writer]:
    """A new file with this header. A run that is cut short leaves no summary, so the next one begins it again."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as opened:
        writer = Writer(opened)
        writer.line(head)
        yield writer
