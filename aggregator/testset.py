"""A data set of the server's own, on which versions of a job are evaluated: an `.npz` with x, and y if labelled.

It is a person's to give and has nothing to do with the devices' data, of which nothing comes here (I8).
"""

import io
import zipfile
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aggregator.errors import RefusedError
from edge_client.target import Targets, check_batch
from edge_client.wire.messages import DataSchema

UNPACKED_BYTES_MAX = 1 << 30  # of the arrays in memory


@dataclass(frozen=True, slots=True)
class TestSet:
    """`x` float32 [n, *shape] and the targets that the bundle's loss wants, None where it wants none."""

    __test__ = False  # not a test, whatever pytest reads in its name

    x: npt.NDArray[np.float32]
    y: Targets | None


def read(data: bytes) -> TestSet:
    """Read an `.npz`; raise RefusedError (`bad_testset`) naming what is wrong."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > UNPACKED_BYTES_MAX:
            raise RefusedError("bad_testset", f"{unpacked} B unpacked; {UNPACKED_BYTES_MAX} B is the most")
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in ("x", "y") if name in archive.files}
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise RefusedError("bad_testset", f"not a readable .npz file ({error})") from error
    if "x" not in arrays:
        raise RefusedError(
            "bad_testset", "the file holds no array 'x'; save it with np.savez(file, x=…, y=…)"
        )
    if not len(arrays["x"]):
        raise RefusedError("bad_testset", "the file holds no samples")
    return TestSet(arrays["x"], arrays.get("y"))


def fit(found: TestSet, schema: DataSchema) -> TestSet:
    """The part of a test set that a bundle evaluates on; raise RefusedError (`bad_testset`) when it does not fit."""
    y = None if schema.target == "none" else found.y
    if y is not None and schema.target != "class" and y.ndim == 1:
        y = y[:, None]
    try:
        check_batch(schema, found.x, y)
    except ValueError as error:
        raise RefusedError("bad_testset", f"the test set does not fit the bundle: {error}") from error
    return TestSet(found.x, y)
