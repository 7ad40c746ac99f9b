"""Reads a device's training data and deals it out: load, check, hold out, mini-batches.

Only the trainer child imports this. The server is told the error messages: none carries a value of the data (I8),
nor where it lies on the device.
"""

import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_client.target import DTYPES, FORMS, Targets, form, in_range
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
    """`x` float32 [n, *shape], `y` as `schema` says or None; `train` and `holdout` are disjoint row numbers."""

    x: npt.NDArray[np.float32]
    y: Targets | None
    train: Indices
    holdout: Indices
    schema: DataSchema

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.x)


def load(source: DataSource) -> Samples:
    """Read a data source and split it; raise DataError (`bad_data`) when it is not of the declared form.

    One target a sample may be stored as [n] or [n, 1]. The number of classes is the largest label plus one.
    """
    arrays = _read(Path(source.path))
    x = _array(arrays, "x", np.float32, source)
    y = None if source.target == "none" else _labels(arrays, source)
    if x.ndim < 2:
        raise DataError("bad_data", f"x is {form(x)}; a sample needs an axis after [n]")
    n = len(x)
    if n == 0:
        raise DataError("bad_data", "the file holds no samples")
    if y is not None and len(y) != n:
        raise DataError("bad_data", f"x {list(x.shape)} and y {list(y.shape)} do not go together")
    segment = _array(arrays, "segment", np.int64, source) if "segment" in arrays else np.zeros(n, np.int64)
    if segment.shape != (n,):
        raise DataError("bad_data", f"segment {list(segment.shape)} does not fit {n} samples")
    if not np.isfinite(x).all():
        raise DataError("bad_data", "x holds values that are not finite")
    train, holdout = split(segment, source.holdout, source.gap)
    return Samples(x, y, train, holdout, _described(x, y, source))


def check(samples: Samples, schema: DataSchema) -> None:
    """Raise DataError (`schema_mismatch`) naming the first axis, or the labels, that the job does not fit."""
    have, want = samples.schema, schema
    if len(have.shape) != len(want.shape):
        raise DataError(
            "schema_mismatch", f"samples are {list(have.shape)} in the data, {list(want.shape)} in the job"
        )
    for i, (extent, wanted) in enumerate(zip(have.shape, want.shape, strict=True)):
        if extent != wanted:
            name = f" ({want.axes[i]})" if i < len(want.axes) else ""
            raise DataError("schema_mismatch", f"axis {i}{name} is {extent} in the data, {wanted} in the job")
    if want.target == "none":
        return
    if (
        have.target == want.target == "class"
    ):  # a file need not hold every class, and its largest is a value of it
        if have.n_classes > want.n_classes:
            raise DataError("schema_mismatch", f"a label is beyond the job's {want.n_classes} classes")
        return
    ours, theirs = ((s.target, s.n_classes, s.target_shape) for s in (have, want))
    if ours != theirs:
        found = "classes" if have.target == "class" else have.labelling
        raise DataError("schema_mismatch", f"samples have {found} in the data, {want.labelling} in the job")


def _labels(arrays: dict[str, npt.NDArray[np.generic]], source: DataSource) -> Targets:
    """Array y of the declared kind, checked but for its length."""
    y: Targets = _array(arrays, "y", DTYPES[source.target], source)
    if source.target != "class" and y.ndim == 1:
        y = y[:, None]
    if source.target == "values" and y.ndim and not np.isfinite(y).all():
        raise DataError("bad_data", "y holds values that are not finite")
    ranks = {"class": y.ndim == 1, "labels": y.ndim == 2, "values": y.ndim > 1}
    if not ranks[source.target]:
        raise DataError("bad_data", f"y is {form(y)}, which is not {FORMS[source.target]}")
    if source.target == "class" and (y < 0).any():
        raise DataError("bad_data", "y holds a negative label; number classes from 0 on")
    if source.target == "labels" and not in_range(DataSchema((), y.shape[1], (), "labels"), y):
        raise DataError("bad_data", "y holds a label that is neither 0 nor 1")
    return y


def _described(x: npt.NDArray[np.float32], y: Targets | None, source: DataSource) -> DataSchema:
    shape = tuple(x.shape[1:])
    if y is None:
        return DataSchema(shape, 0, (), "none")
    if source.target == "values":
        return DataSchema(shape, 0, (), "values", tuple(y.shape[1:]))
    return DataSchema(shape, int(y.max()) + 1 if source.target == "class" else y.shape[1], (), source.target)


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
            raise DataError("bad_data", f"the file has {size} B unpacked; {DATA_BYTES_MAX} B is the most")
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in ("x", "y", "segment") if name in archive.files}
    except OSError as error:
        raise DataError(
            "bad_data", f"the file cannot be read: {error.strerror or type(error).__name__}"
        ) from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            "bad_data", f"the file is not a readable .npz file ({type(error).__name__})"
        ) from error


def _array(
    arrays: dict[str, npt.NDArray[np.generic]], name: str, kind: type, source: DataSource
) -> npt.NDArray[Any]:
    if name not in arrays:
        raise DataError("bad_data", f"the file holds no array {name!r}")
    if arrays[name].dtype != kind:
        use = f"; a target of kind {source.target} is {FORMS[source.target]}" if name == "y" else ""
        raise DataError("bad_data", f"{name} is {arrays[name].dtype}, not {np.dtype(kind).name}{use}")
    return arrays[name]
