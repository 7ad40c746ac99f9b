"""CSV files of measured devices: a header, then numbers."""

import csv
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from aggregator.simulate.errors import SimulationError
from edge_client.storage import without_path

ROWS_MAX = 10_000_000


def read(path: str, columns: Sequence[str]) -> npt.NDArray[np.float64]:
    """These columns of a file, float64 [rows, columns], all finite and not negative; raise SimulationError."""
    rows: list[list[float]] = []
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            table = csv.DictReader(file)
            missing = [c for c in columns if c not in (table.fieldnames or ())]
            if missing:
                raise SimulationError(
                    f"{path}: no column {missing[0]!r}; the first line is to name {', '.join(columns)}"
                )
            for row in table:
                if len(rows) >= ROWS_MAX:
                    raise SimulationError(f"{path}: more than {ROWS_MAX} rows")
                rows.append([_number(row[c], f"{path}: line {table.line_num}: {c}") for c in columns])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SimulationError(f"{path}: cannot be read: {without_path(error)}") from error
    if not rows:
        raise SimulationError(f"{path}: holds no rows")
    return np.array(rows)


def digest(path: str) -> str:
    """SHA-256 of a file, in hex; raise SimulationError."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise SimulationError(f"{path}: cannot be read: {error.strerror}; it is to be a CSV file") from error


def _number(text: str | None, where: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise SimulationError(f"{where} is {text!r}, not a number from 0 on")
    return value
