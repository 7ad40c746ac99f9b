"""Storage that cannot be written for now: what counts as that, how long to wait, and files written whole.

A full disk, a card that the kernel made read-only and an I/O error look the same to the daemon: nothing it wanted
to keep is kept, and the same write may work later. It waits and says so; what was not written is not acted on.
"""

import errno
import fcntl
import os
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import IO

RETRY_MIN_S = 1.0  # first pause; doubles
RETRY_MAX_S = 60.0  # room made by a person is noticed within a minute
_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})
_CODES = frozenset(
    {
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_BUSY,
    }
)


class HeldError(Exception):
    """Another process holds a lock; `pid` is 0 when it has not said which."""

    def __init__(self, path: Path, pid: int) -> None:
        super().__init__(f"{path}: held by process {pid or 'unknown'}")
        self.pid = pid


def passing(error: Exception) -> bool:
    """Whether a write that failed this way may work later, without anybody changing the configuration."""
    if isinstance(error, sqlite3.Error):
        return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF in _CODES
    return isinstance(error, OSError) and error.errno in _ERRNOS


def without_path(error: Exception) -> str:
    """What an error says but for its number and its path, which the sentence around it names, or is not to name."""
    return getattr(error, "strerror", None) or str(error)


class Patience:
    """Waits that double while storage fails; `reason` is "" while all is well. Times are monotonic seconds."""

    def __init__(self) -> None:
        self.reason = ""
        self.until = 0.0
        self._pause = 0.0

    def failed(self, reason: str, now: float) -> None:
        """A write failed: nothing is tried until `until`."""
        self._pause = min(max(RETRY_MIN_S, 2 * self._pause), RETRY_MAX_S)
        self.reason = reason
        self.until = now + self._pause

    def worked(self) -> bool:
        """A whole turn went well; True when that ends a wait."""
        over = bool(self.reason)
        self.reason, self.until, self._pause = "", 0.0, 0.0
        return over


def write_whole(path: Path, data: bytes) -> None:
    """Replace a file so that a crash at any point leaves the old content or the new; raises OSError."""
    temporary = path.with_name(path.name + ".part")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with suppress(OSError):  # the first error is the one that tells
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make names in a folder durable; raises OSError."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def hold(path: Path) -> IO[str]:
    """Lock a file for as long as it stays open, and write this process's id in it; raises HeldError, OSError."""
    lock = path.open("a+")  # not "w": who comes second must not wipe the first one's id
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
    except BlockingIOError as error:
        lock.seek(0)
        text = lock.read(20)
        lock.close()
        raise HeldError(path, int(text) if text.isdigit() else 0) from error
    except OSError:
        with suppress(OSError):  # what could not be written above is tried again by close
            lock.close()
        raise
    return lock
