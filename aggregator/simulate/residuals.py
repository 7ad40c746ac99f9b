"""What each device's error feedback holds, in one sparse file: a device that never trained takes no disk."""

import os
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np


class Residuals:
    """Float16 residuals of a fixed size by device. The file is removed on exit.

    Read and written by offset and not mapped, so that what was touched does not count as this process's memory.
    """

    def __init__(self, path: Path, devices: int, size: int) -> None:
        """`size` is in bytes."""
        self._path, self._size = path, size
        self._held = np.zeros(devices, np.bool_)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        os.ftruncate(self._file, devices * size)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        os.close(self._file)
        self._path.unlink(missing_ok=True)

    def get(self, device: int) -> bytes | None:
        """The residual of a device; None is all zeros."""
        if not self._held[device]:
            return None
        return os.pread(self._file, self._size, device * self._size)

    def put(self, device: int, residual: bytes) -> None:
        """Keep a residual, which has the size of all others."""
        if len(residual) != self._size:
            raise ValueError(f"a residual of {len(residual)} B where each has {self._size} B")
        os.pwrite(self._file, residual, device * self._size)
        self._held[device] = True
