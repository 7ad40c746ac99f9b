"""What a look at something found: the words of `device check` and `doctor`."""

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edge_client.storage import write_whole

FREE_BYTES_MIN = 64 * 1024 * 1024  # a bundle of the largest size, or a day of a small fleet's log
BLOCK_BYTES = 1024 * 1024
PROBE = "doctor-probe"


class NothingThereError(Exception):
    """There is no state to look at; the message says where, and what to name instead."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    ok: bool
    detail: str


def room(folder: Path) -> Finding:
    """Whether a folder can be written, by writing to it, and how much room there is."""
    what = f"directory {folder}"
    try:
        write_whole(folder / PROBE, b"x")
        (folder / PROBE).unlink()
        disk = os.statvfs(folder)
    except OSError as error:
        return Finding(what, ok=False, detail=f"cannot be written: {error.strerror}")
    free = disk.f_bavail * disk.f_frsize
    return Finding(what, ok=free >= FREE_BYTES_MIN, detail=f"{free / 1e6:,.0f} MB free")


def room_for(folder: Path) -> Finding:
    """As `room`, of a folder that need not be there yet: what is missing is made for the look and removed again."""
    missing: list[Path] = []
    try:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        return room(folder)
    except OSError as error:
        return Finding(f"directory {folder}", ok=False, detail=f"cannot be made: {error.strerror}")
    finally:
        for path in missing:
            with suppress(OSError):  # the daemon may have been started meanwhile
                path.rmdir()


def sha256(path: Path) -> str:
    """The SHA-256 of a file in hex, read in blocks; raises OSError."""
    whole = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            whole.update(block)
    return whole.hexdigest()
