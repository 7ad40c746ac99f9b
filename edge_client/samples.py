"""Reads a device's training data and deals it out: load, check, hold out, mini-batches.

Only the trainer child imports this. No error message carries a value of the data (I8).
"""

import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_client.trainer_protocol import DataSource
from edge_client.wire.messages import DataSchema

DATA_BYTES_MAX = 512 * 1024 * 1024  # unpacked size of one data set: half the memory of a 1 GB Pi

Indices = npt.NDArray[np.int64]


class DataError(Exception):
    """The data cannot be used; `code` is `bad_data` or `schema_mismatch` (trainer_protocol.Failed)."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Samples:
    """`x` float32 [n, *shape], `y` int64 [n]; `train` and `holdout` are disjoint row numbers."""

    x: npt.NDArray[np.float32]
    y: npt.NDArray[np.int64]
    train: Indices
    holdout: Indices

    @property
    def schema(self) -> DataSchema:
        """Shape of a sample; the number of classes is the largest label plus one."""
        return DataSchema(shape=tuple(self.x.shape[1:]), n_classes=int(self.y.max()) + 1)


def load(source: DataSource) -> Samples:
    """Read a data source and split it; raise DataError (`bad_data`) when it is not of the declared form."""
    arrays = _read(Path(source.path))
    x, y = _array(arrays, "x", np.float32, source), _array(arrays, "y", np.int64, source)
    n = len(y) if y.ndim == 1 else -1
    if n == 0:
        raise DataError("bad_data", f"{source.path}: holds no samples")
    if x.ndim < 2 or len(x) != n:
        raise DataError(
            "bad_data", f"{source.path}: x {list(x.shape)} and y {list(y.shape)} do not go together"
        )
    segment = _array(arrays, "segment", np.int64, source) if "segment" in arrays else np.zeros(n, np.int64)
    if segment.shape != (n,):
        raise DataError("bad_data", f"{source.path}: segment {list(segment.shape)} does not fit {n} samples")
    if int(y.min()) < 0:
        raise DataError("bad_data", f"{source.path}: y holds a negative label")
    if not np.isfinite(x).all():
        raise DataError("bad_data", f"{source.path}: x holds values that are not finite")
    train, holdout = split(segment, source.holdout, source.gap)
    return Samples(x, y, train, holdout)


def check(samples: Samples, schema: DataSchema) -> None:
    """Raise DataError (`schema_mismatch`) naming the first axis, or the labels, that the job does not fit."""
    have, want = samples.schema, schema
    if len(have.shape) != len(want.shape):
        raise DataError(
            "schema_mismatch", f"samples are {list(have.shape)} in the data, {list(want.shape)} in the job"
        )
    for i, (ours, theirs) in enumerate(zip(have.shape, want.shape, strict=True)):
        if ours != theirs:
            name = f" ({want.axes[i]})" if i < len(want.axes) else ""
            raise DataError("schema_mismatch", f"axis {i}{name} is {ours} in the data, {theirs} in the job")
    if have.n_classes > want.n_classes:
        raise DataError(
            "schema_mismatch", f"labels go up to {have.n_classes} classes, the job has {want.n_classes}"
        )


def split(segment: Indices, holdout: float, gap: int) -> tuple[Indices, Indices]:
    """Row numbers to train on and to hold out: the last share of each segment, `gap` rows before it unused.

    `segment` int64 [n] tells which recording a row is of; rows of one recording keep their order.
    """
    train, held = [], []
    for name in np.unique(segment):
        rows = np.flatnonzero(segment == name).astype(np.int64)
        count = math.floor(len(rows) * holdout + 0.5)
        edge = len(rows) - count
        train.append(rows[: max(edge - gap, 0)] if count else rows)
        held.append(rows[edge:])
    return np.concatenate(train), np.concatenate(held)


def batches(rows: Indices, batch_size: int, rng: np.random.Generator) -> Iterator[Indices]:
    """Endless mini-batches of `rows`, each pass in a new order; a last, smaller batch of a pass is dropped.

    All batches have one size, min(batch_size, len(rows)), so that the runtime can reuse its memory plan.
    """
    size = min(batch_size, len(rows))
    while size:
        order = rng.permutation(rows)
        for start in range(0, len(order) - size + 1, size):
            yield order[start : start + size]


def _read(path: Path) -> dict[str, npt.NDArray[np.generic]]:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > DATA_BYTES_MAX:
            raise DataError("bad_data", f"{path}: {size} B unpacked; {DATA_BYTES_MAX} B is the most")
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in ("x", "y", "segment") if name in archive.files}
    except OSError as error:
        raise DataError(
            "bad_data", f"{path}: cannot be read: {error.strerror or type(error).__name__}"
        ) from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError("bad_data", f"{path}: not a readable .npz file ({type(error).__name__})") from error


def _array(
    arrays: dict[str, npt.NDArray[np.generic]], name: str, kind: type, source: DataSource
) -> npt.NDArray[Any]:
    if name not in arrays:
        raise DataError("bad_data", f"{source.path}: holds no array {name!r}")
    if arrays[name].dtype != kind:
        raise DataError(
            "bad_data", f"{source.path}: {name} is {arrays[name].dtype}, not {np.dtype(kind).name}"
        )
    return arrays[name]
