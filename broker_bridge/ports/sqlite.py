"""The embedded engine: one SQLite file that several processes use at once, with blobs as files beside it.

Writes of a process go through one writer thread with group commit, reads through a reader thread, so the event
loop never touches the disk. A third thread looks for commits of other processes while anybody waits.
"""

import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path

from broker_bridge.ports.bell import HEADS, Bell, log_topic
from broker_bridge.ports.files import FileBlobs, storage_error
from broker_bridge.ports.lane import Lane, connect, translate
from broker_bridge.ports.types import (
    FORGOTTEN,
    REMEMBERED,
    Change,
    Conflict,
    Entry,
    Kind,
    Mark,
    Ports,
    StorageError,
    split,
)
from edge_client.schema import NewerSchemaError, run, upgrade

SCHEMA = 1  # number of steps to the newest layout
POLL_S = 0.025  # how late another process's commit may be noticed; one look costs a few microseconds
TOMBSTONES_MAX = 100_000  # revisions for which a dropped cell is remembered, for watchers that were away
_OFFSET_BITS = 44  # an entry's rowid is its partition above its offset, so that a partition is one range

_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE tails (partition INTEGER PRIMARY KEY, newest INTEGER NOT NULL);
CREATE TABLE entries (
    place INTEGER PRIMARY KEY, uid TEXT NOT NULL, kind INTEGER NOT NULL, body BLOB NOT NULL);
CREATE TABLE marks (
    partition INTEGER, stream TEXT, number INTEGER, offset INTEGER NOT NULL, kind INTEGER NOT NULL,
    mark BLOB NOT NULL, PRIMARY KEY (partition, stream, number)) WITHOUT ROWID;
CREATE TABLE heads (key TEXT PRIMARY KEY, revision INTEGER NOT NULL, value BLOB);
CREATE UNIQUE INDEX heads_by_revision ON heads (revision);
"""


def open_sqlite(path: Path, partitions: int) -> Ports:
    """Open the engine in `path`, or make it with this many partitions; raises StorageError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(path, error) from error
    partitions = _prepare(path, partitions)
    bell = Bell()
    blobs = FileBlobs(path.parent / "blobs")
    writer = Lane(path, writes=True, bell=bell)
    reader = Lane(path, writes=False, bell=bell)
    lookout = _Lookout(path, bell)

    async def close() -> None:
        await lookout.close()
        await writer.close()
        await reader.close()

    return Ports(
        SqliteLog(writer, reader, bell, partitions),
        SqliteHeads(writer, reader, bell),
        blobs,
        partitions,
        close,
    )


def _prepare(path: Path, partitions: int) -> int:
    """Bring the file to the newest layout and return the stored number of partitions."""
    connection = connect(path)
    try:
        upgrade(connection, [lambda c: _create(c, partitions)])
        connection.execute(
            "DELETE FROM heads WHERE value IS NULL AND revision < (SELECT max(revision) FROM heads) - ?",
            (TOMBSTONES_MAX,),
        )
        return int(connection.execute("SELECT value FROM meta WHERE key = 'partitions'").fetchone()[0])
    except NewerSchemaError as error:
        raise StorageError(f"{path}: {error}") from error
    except sqlite3.Error as error:
        raise translate(path, error) from error
    finally:
        connection.close()


def _create(connection: sqlite3.Connection, partitions: int) -> None:
    run(connection, _TABLES)
    connection.execute("INSERT INTO meta VALUES ('partitions', ?)", (partitions,))
    connection.executemany("INSERT INTO tails VALUES (?, 0)", [(p,) for p in range(partitions)])


class _Lookout:
    """Rings when any connection, most of all another process's, has committed since the last look."""

    def __init__(self, path: Path, bell: Bell) -> None:
        self._bell = bell
        self._connection = connect(path)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sqlite-lookout", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        self._ended.set()
        self._thread.join()  # at most POLL_S

    def _run(self) -> None:
        seen = None
        while not self._ended.wait(POLL_S):
            if self._bell.waited_for():
                (version,) = self._connection.execute("PRAGMA data_version").fetchone()
                if version != seen:
                    seen = version
                    self._bell.ring_all()
        self._connection.close()


class SqliteLog:
    """UpdateLog in two tables: entries, which are trimmed, and marks, of which each stream keeps its newest."""

    def __init__(self, writer: Lane, reader: Lane, bell: Bell, partitions: int) -> None:
        self._writer = writer
        self._reader = reader
        self._bell = bell
        self._partitions = partitions

    async def append(
        self, partition: int, uid: str, kind: Kind, body: bytes, mark: bytes | None = None
    ) -> int:
        """As in UpdateLog; returns after the commit is on the disk. Raises StorageError."""
        self._check(partition)
        name = None if mark is None else (partition, *split(uid))

        def work(connection: sqlite3.Connection) -> int:
            known = None if name is None else _remembered(connection, name)
            if known is not None:
                return known.offset
            (offset,) = connection.execute(
                "UPDATE tails SET newest = newest + 1 WHERE partition = ? RETURNING newest", (partition,)
            ).fetchone()
            connection.execute(
                "INSERT INTO entries VALUES (?, ?, ?, ?)", (_place(partition, offset), uid, kind, body)
            )
            if name is not None:
                connection.execute("INSERT INTO marks VALUES (?, ?, ?, ?, ?, ?)", (*name, offset, kind, mark))
                of_kind = (*name[:2], kind)
                connection.execute(
                    "DELETE FROM marks WHERE partition = ? AND stream = ? AND kind = ? AND number <= ("
                    " SELECT number FROM marks WHERE partition = ? AND stream = ? AND kind = ?"
                    " ORDER BY number DESC LIMIT 1 OFFSET ?)",
                    (*of_kind, *of_kind, REMEMBERED),
                )
            return int(offset)

        return await self._writer.run(work, log_topic(partition))

    async def find(self, partition: int, uid: str) -> Mark | None:
        """As in UpdateLog."""
        self._check(partition)
        name = (partition, *split(uid))

        def work(connection: sqlite3.Connection) -> Mark | None:
            known = _remembered(connection, name)
            if known is not None:
                return known
            later = connection.execute(
                "SELECT 1 FROM marks WHERE partition = ? AND stream = ? AND number > ? AND kind = ?"
                " LIMIT 1 OFFSET ?",
                (*name, Kind.UPDATE, REMEMBERED - 1),
            ).fetchone()
            return None if later is None else FORGOTTEN

        return await self._reader.run(work)

    async def read(self, partition: int, after: int, limit: int) -> list[Entry]:
        """As in UpdateLog."""
        self._check(partition)

        def work(connection: sqlite3.Connection) -> list[Entry]:
            rows = connection.execute(
                "SELECT place, uid, kind, body FROM entries WHERE place > ? AND place < ?"
                " ORDER BY place LIMIT ?",
                (_place(partition, after), _place(partition + 1, 0), limit),
            )
            return [Entry(p - _place(partition, 0), uid, Kind(kind), body) for p, uid, kind, body in rows]

        return await self._reader.run(work)

    async def wait(self, partition: int, after: int) -> None:
        """As in UpdateLog."""
        self._check(partition)

        def newest(connection: sqlite3.Connection) -> int:
            row = connection.execute("SELECT newest FROM tails WHERE partition = ?", (partition,)).fetchone()
            return int(row[0])

        while True:
            ticket = self._bell.ticket(log_topic(partition))
            if await self._reader.run(newest) > after:
                return
            await ticket

    async def trim(self, partition: int, below: int) -> None:
        """As in UpdateLog."""
        self._check(partition)

        def work(connection: sqlite3.Connection) -> None:
            connection.execute(
                "DELETE FROM entries WHERE place > ? AND place < ?",
                (_place(partition, 0), _place(partition, below)),
            )

        await self._writer.run(work)

    def _check(self, partition: int) -> None:
        if not 0 <= partition < self._partitions:
            raise ValueError(f"partition {partition} of {self._partitions}")


class SqliteHeads:
    """Heads in one table; a dropped cell stays as a row without a value, so that watchers hear of it."""

    def __init__(self, writer: Lane, reader: Lane, bell: Bell) -> None:
        self._writer = writer
        self._reader = reader
        self._bell = bell

    async def load(self, key: str) -> tuple[int, bytes]:
        """As in Heads."""
        return await self._reader.run(lambda connection: _load(connection, key))

    async def swing(self, key: str, expected: int, value: bytes) -> int:
        """As in Heads; returns after the commit is on the disk. Also raises StorageError."""
        return await self._writer.run(lambda connection: _set(connection, key, expected, value), HEADS)

    async def drop(self, key: str, expected: int) -> None:
        """As in Heads."""
        await self._writer.run(lambda connection: _set(connection, key, expected, None), HEADS)

    async def list(self, prefix: str) -> list[Change]:
        """As in Heads."""

        def work(connection: sqlite3.Connection) -> list[Change]:
            rows = connection.execute(
                "SELECT key, revision, value FROM heads"
                " WHERE key >= ? AND key < ? AND value IS NOT NULL ORDER BY key",
                (prefix, prefix + chr(0x10FFFF)),
            )
            return [Change(*row) for row in rows]

        return await self._reader.run(work)

    async def watch(self, prefix: str, after: int = 0) -> AsyncIterator[Change]:
        """As in Heads."""

        def work(connection: sqlite3.Connection) -> list[Change]:
            # The unary plus keeps the search on the index of revisions: changes are few, keys may be many.
            rows = connection.execute(
                "SELECT key, revision, value FROM heads WHERE revision > ? AND +key >= ? AND +key < ?"
                " AND (? OR value IS NOT NULL) ORDER BY revision",
                (after, prefix, prefix + chr(0x10FFFF), after > 0),
            )
            return [Change(*row) for row in rows]

        while True:
            ticket = self._bell.ticket(HEADS)
            changes = await self._reader.run(work)
            if not changes:
                await ticket
            for change in changes:
                after = change.revision
                yield change


def _remembered(connection: sqlite3.Connection, name: tuple[int, str, int]) -> Mark | None:
    row = connection.execute(
        "SELECT offset, kind, mark FROM marks WHERE partition = ? AND stream = ? AND number = ?", name
    ).fetchone()
    return None if row is None else Mark(row[0], Kind(row[1]), row[2])


def _place(partition: int, offset: int) -> int:
    return (partition << _OFFSET_BITS) + offset


def _load(connection: sqlite3.Connection, key: str) -> tuple[int, bytes]:
    row = connection.execute(
        "SELECT revision, value FROM heads WHERE key = ? AND value IS NOT NULL", (key,)
    ).fetchone()
    return (0, b"") if row is None else (int(row[0]), bytes(row[1]))


def _set(connection: sqlite3.Connection, key: str, expected: int, value: bytes | None) -> int:
    actual, _ = _load(connection, key)
    if actual != expected:
        raise Conflict(f"{key} is at revision {actual}, not {expected}")
    if value is None and expected == 0:
        return 0
    (revision,) = connection.execute("SELECT coalesce(max(revision), 0) + 1 FROM heads").fetchone()
    connection.execute(
        "INSERT INTO heads VALUES (?, ?, ?)"
        " ON CONFLICT (key) DO UPDATE SET revision = excluded.revision, value = excluded.value",
        (key, revision, value),
    )
    return int(revision)
