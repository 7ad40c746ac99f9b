"""The smartwatch recordings as shards, one per person and arm.

Source: the package seglearn 1.2.5 (BSD-3) ships recordings of ten people doing seven shoulder exercises with
each arm, accelerometer (g) and gyroscope (rad/s) at 50 Hz (Burns et al. 2018, arXiv:1802.01489). The file is
read where it was installed, its package is never imported.
"""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import numpy.typing as npt

DATASET = "wrist-imu"
FILE = "seglearn/data/watch_dataset.npy"
SHA256 = "eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537"
CLASSES = 7
AXES = ("channel", "time")
WINDOW = 100  # samples: 2 s at 50 Hz
HOP = 50  # samples: windows overlap by half, so a hold-out needs a gap of one window
UNSEEN_SUBJECTS = (9, 10)  # the last two by number: never on a device, looked at for the report alone
# Fixed by the sensors' units rather than by anybody's data: 1 g, and 2 rad/s of a moving arm.
MEAN = (0.0,) * 6
DEVIATION = (1.0, 1.0, 1.0, 2.0, 2.0, 2.0)


class DataError(Exception):
    """The recordings are missing or not the ones this demo was made for."""


@dataclass(frozen=True)
class Shard:
    """Windows of one person's arm: x float32 [n, 6, 100], y int64 [n], segment int64 [n] (one a recording)."""

    name: str
    x: npt.NDArray[np.float32]
    y: npt.NDArray[np.int64]
    segment: npt.NDArray[np.int64]

    def save(self, path: Path) -> None:
        """Write the shard as the `.npz` that a device reads."""
        np.savez(path, x=self.x, y=self.y, segment=self.segment)


def load(
    file: Path | None = None, unseen_subjects: Collection[int] = UNSEEN_SUBJECTS
) -> tuple[list[Shard], Shard]:
    """The devices' shards, and the windows of the unseen subjects, numbered from 1; raise DataError."""
    recordings = _recordings(file or _installed())
    shards: list[Shard] = []
    unseen: list[Shard] = []
    for subject in sorted(set(recordings["subject"].tolist())):
        for side, arm in ((0, "left"), (1, "right")):
            mine = np.flatnonzero((recordings["subject"] == subject) & (recordings["side"] == side))
            shard = _shard(f"subject-{subject}-{arm}", recordings, mine)
            (unseen if subject in unseen_subjects else shards).append(shard)
    together = Shard(
        "unseen",
        np.concatenate([s.x for s in unseen]),
        np.concatenate([s.y for s in unseen]),
        np.concatenate([s.segment + 100 * i for i, s in enumerate(unseen)]),
    )
    return shards, together


def _installed() -> Path:
    try:
        return Path(str(distribution("seglearn").locate_file(FILE)))
    except PackageNotFoundError as error:
        raise DataError("the package seglearn 1.2.5 is missing: pip install 'fedfleet[demo]'") from error


def _recordings(path: Path) -> dict[str, npt.NDArray[np.generic]]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; install seglearn 1.2.5 again") from error
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise DataError(f"{path} is not the file of seglearn 1.2.5: its SHA-256 differs")
    # The one pickle this project opens, and only after its digest was checked (I6).
    recordings: dict[str, npt.NDArray[np.generic]] = np.load(path, allow_pickle=True).item()
    return recordings


def _shard(name: str, recordings: dict[str, npt.NDArray[np.generic]], mine: npt.NDArray[np.intp]) -> Shard:
    windows, labels, segments = [], [], []
    for segment, index in enumerate(mine):
        series = np.asarray(recordings["X"][index], dtype=np.float32)
        for start in range(0, len(series) - WINDOW + 1, HOP):
            windows.append(series[start : start + WINDOW].T)
            labels.append(recordings["y"][index])
            segments.append(segment)
    return Shard(
        name,
        np.stack(windows),
        np.array(labels, dtype=np.int64),
        np.array(segments, dtype=np.int64),
    )
