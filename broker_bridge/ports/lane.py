"""A thread with one SQLite connection that runs jobs for coroutines, many to a transaction.

While one transaction is being synced to the disk the next jobs queue up, and all of them share the next
sync: the more load, the larger the groups (group commit).
"""

import asyncio
import contextlib
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from broker_bridge.ports.bell import Bell
from broker_bridge.ports.types import CorruptStorage, PortError, StorageError, StorageFull

GROUP_MAX = 512  # jobs of one transaction: a megabyte of updates, and a bound on how long a reader sees none
BUSY_S = 10.0  # how long to wait for another process's transaction; ours last milliseconds

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], Any]


class _Job(NamedTuple):
    work: Work
    topic: str  # rung after the commit; "" rings nothing
    future: asyncio.Future[Any]


class _Outcome(NamedTuple):
    job: _Job
    result: Any
    error: Exception | None


class Lane:
    """Runs jobs in order on its own connection; a writing lane wraps each group in one transaction."""

    def __init__(self, path: Path, *, writes: bool, bell: Bell) -> None:
        self._path = path
        self._writes = writes
        self._bell = bell
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closed = False
        self._connection = connect(path)
        name = "sqlite-write" if writes else "sqlite-read"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    async def run(self, work: Callable[[sqlite3.Connection], T], topic: str = "") -> T:
        """The result of `work` after its commit; raises what `work` raises, or StorageError.

        A caller that is cancelled meanwhile does not cancel the work.
        """
        if self._closed:
            raise PortError(f"{self._path} is closed")
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._jobs.put(_Job(work, topic, future))
        return await future

    async def close(self) -> None:
        """Finish the queued jobs and close the connection."""
        self._closed = True
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        ending = False
        while not ending:
            group = [self._jobs.get()]
            while len(group) < GROUP_MAX and not self._jobs.empty():
                group.append(self._jobs.get())
            jobs = [job for job in group if job is not None]
            ending = len(jobs) < len(group)
            if jobs:
                _hand_over(self._perform(jobs))
        self._connection.close()

    def _perform(self, jobs: list[_Job]) -> list[_Outcome]:
        outcomes = []
        try:
            if self._writes:
                self._connection.execute("BEGIN IMMEDIATE")
            for job in jobs:
                try:
                    outcomes.append(_Outcome(job, job.work(self._connection), None))
                except PortError as error:  # raised before anything was written: the others go on
                    outcomes.append(_Outcome(job, None, error))
            if self._writes:
                self._connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - every caller gets it; this thread must live on
            # When the disk fails SQLite may have rolled back already; the first error is the one that tells.
            with contextlib.suppress(sqlite3.Error):
                self._connection.rollback()
            return [_Outcome(job, None, translate(self._path, error)) for job in jobs]
        topics = {outcome.job.topic for outcome in outcomes if outcome.error is None} - {""}
        if topics:
            self._bell.ring(topics)
        return outcomes


def connect(path: Path) -> sqlite3.Connection:
    """A connection whose commits survive a power cut; raises StorageError."""
    try:
        connection = sqlite3.connect(
            path, timeout=BUSY_S, isolation_level=None, check_same_thread=False, cached_statements=64
        )
    except sqlite3.Error as error:
        raise translate(path, error) from error
    try:
        _use_wal(connection)
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA journal_size_limit=67108864")
    except sqlite3.Error as error:
        connection.close()
        raise translate(path, error) from error
    return connection


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switch to write-ahead logging; the busy timeout does not cover two processes that do so at once."""
    deadline = time.monotonic() + BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def translate(path: Path, error: Exception) -> Exception:
    """The port error that tells of a failure of the database; other errors, which are bugs, as they are."""
    if not isinstance(error, sqlite3.Error):
        return error
    code = getattr(error, "sqlite_errorcode", None)
    if code == sqlite3.SQLITE_FULL:
        return StorageFull(f"{path}: {error}")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return CorruptStorage(f"{path}: {error}")
    return StorageError(f"{path}: {error}")


def _hand_over(outcomes: list[_Outcome]) -> None:
    """Resolve the futures, with one call into each event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Outcome]] = {}
    for outcome in outcomes:
        by_loop.setdefault(outcome.job.future.get_loop(), []).append(outcome)
    for loop, group in by_loop.items():
        if not loop.is_closed():  # a loop that ended has nobody left who waits
            loop.call_soon_threadsafe(_resolve, group)


def _resolve(outcomes: list[_Outcome]) -> None:
    for job, result, error in outcomes:
        if job.future.done():
            continue
        if error is None:
            job.future.set_result(result)
        else:
            job.future.set_exception(error)
