"""Everything the device must not lose, in one SQLite database: outbox, residuals, jobs, counters (I4, I12).

Each public method that changes something is one transaction, durable when it returns (WAL, synchronous=FULL).
What to send when is decided by the session; this module neither sends nor trains.
"""

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

import structlog

from edge_client.events import JobRow, Kind, Row, Stored
from edge_client.layout import RUN_BITS, STEPS
from edge_client.link import Link
from edge_client.schema import NewerSchemaError, upgrade
from edge_client.storage import passing
from edge_client.wire.errors import RemoteWireError
from edge_client.wire.messages import KEEP_MASS_CODES, Offer, decode, encode
from edge_client.wire.topics import Uid

FILE = "state.db"
EVALUATION_ROWS_MAX = 64  # unsent evaluations; one a participation, so days offline with hourly training
EVALUATION_BYTES_MAX = 256 * 1024  # of their bodies; one is about 250 B
DAMAGED_ROWS_MAX = 100  # rows that could not be read, kept for a look
QUARANTINE_MAX = 3  # damaged databases kept for a look; a card that keeps damaging them must not fill up

_LINK_KEYS = ("link_bytes", "link_seconds")

_log = structlog.get_logger("fedfleet.store")


class Report(TypedDict):
    """What `fedfleet device status` shows; no sample, no parameter."""

    epoch: str
    next_seq: int
    uplink_bytes_s: float | None
    outbox: list[dict[str, Any]]
    jobs: list[dict[str, Any]]


class StoreError(Exception):
    """The state cannot be read or written; nothing was changed."""


class StoreBusyError(StoreError):
    """It cannot for now: full, read-only, an I/O error. The same call may work later."""


@dataclass(frozen=True, slots=True)
class NewUpdate:
    """What one training leaves to be sent, and the two residuals of which the verdict picks one."""

    uid: Uid
    frame: bytes
    evaluation: bytes
    version: int
    residual_accepted: bytes
    residual_kept: bytes


class Store:
    """The open database. Use from one thread; `close` it."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self.path = path
        self._db = connection
        self.epoch = str(self._meta("epoch"))

    # -- counters ------------------------------------------------------------------------------------

    def begin_run(self) -> int:
        """Count this start of the daemon and return a number above all of earlier starts.

        Connection numbers and status revisions grow from it, so that they cost no write each.
        """
        with self._change("count a start"):
            self._db.execute("UPDATE meta SET value = value + 1 WHERE key = 'runs'")
        return self._number("runs") << RUN_BITS

    @property
    def next_seq(self) -> int:
        """The sequence number of the next thing this device produces; only `add_update` consumes it."""
        return self._number("seq")

    @property
    def next_ask(self) -> int:
        """The number of the next new ask; never lower than any saved."""
        return self._number("ask")

    @property
    def link(self) -> Link:
        """The uplink as measured so far."""
        return Link(*(float(str(self._meta(key) or 0)) for key in _LINK_KEYS))

    def save_link(self, link: Link) -> None:
        """Keep a measurement of the uplink."""
        with self._change("keep a measurement"):
            values = zip(_LINK_KEYS, (link.sent_bytes, link.seconds), strict=True)
            self._db.executemany("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", values)

    # -- jobs ----------------------------------------------------------------------------------------

    def jobs(self) -> list[JobRow]:
        """Jobs whose workspaces are held."""
        jobs = []
        for job, offer, held, ask in self._read("SELECT job, offer, held, ask FROM jobs ORDER BY job"):
            try:
                jobs.append(JobRow(decode(Offer, offer), held, ask))
            except RemoteWireError as error:
                self._put_aside("jobs", "job", job, str(error))
        return jobs

    def save_job(self, row: JobRow) -> None:
        """Insert or change a job."""
        with self._change("save a job"):
            self._db.execute(
                "INSERT INTO jobs (job, offer, held, ask) VALUES (?, ?, ?, ?) ON CONFLICT (job) DO UPDATE"
                " SET offer = excluded.offer, held = excluded.held, ask = excluded.ask",
                (row.offer.job, encode(row.offer), row.held, row.ask),
            )
            self._raise_ask(row.ask)

    def remove_job(self, job: str) -> None:
        """Forget a job with its residual and everything unsent."""
        with self._change("remove a job"):
            for table in ("jobs", "residuals", "outbox"):
                self._db.execute(f"DELETE FROM {table} WHERE job = ?", (job,))  # noqa: S608 - fixed names

    def residual(self, job: str) -> bytes | None:
        """The error-feedback state that the next training starts from; None is all zeros."""
        found = self._read("SELECT body FROM residuals WHERE job = ?", (job,))
        return bytes(found[0][0]) if found else None

    # -- outbox --------------------------------------------------------------------------------------

    def add_update(self, new: NewUpdate) -> Stored:
        """Store a finished training: both outbox rows, pending residuals, seq, held version, next ask (I4).

        Raises StoreError when the job still has an update without a verdict, or its seq was used before.
        """
        uid = new.uid
        with self._change("store an update"):
            if uid.seq < self.next_seq or uid.epoch != self.epoch:
                raise StoreError(f"{uid} would reuse a name: the next seq is {self.next_seq}")
            self._insert(uid, "update", new.frame, (new.residual_accepted, new.residual_kept))
            evaluation = Uid(uid.device, uid.job, uid.epoch, uid.seq + 1)
            self._insert(evaluation, "evaluation", new.evaluation)
            self._db.execute("UPDATE meta SET value = ? WHERE key = 'seq'", (uid.seq + 2,))
            ask = self.next_ask
            self._db.execute("UPDATE jobs SET held = ?, ask = ? WHERE job = ?", (new.version, ask, uid.job))
            self._raise_ask(ask)
            self._drop_evaluations()
        rows = tuple(row for row in self.rows() if row.uid in (uid, evaluation))
        return Stored(uid.job, rows, new.version, ask)

    def rows(self) -> list[Row]:
        """The whole outbox, oldest first, without bodies: for people and tests."""
        return self._rows("1 ORDER BY seq")

    def updates(self) -> list[Row]:
        """The unreceipted updates: at most one a job."""
        return self._rows("kind = 'update' ORDER BY seq")

    def evaluations(self, after: int, limit: int) -> list[Row]:
        """The oldest evaluations whose seq is above `after`."""
        return self._rows("kind = 'evaluation' AND seq > ? ORDER BY seq LIMIT ?", (after, limit))

    def _rows(self, condition: str, values: tuple[object, ...] = ()) -> list[Row]:
        query = f"SELECT seq, uid, kind, length(body), published FROM outbox WHERE {condition}"  # noqa: S608 - fixed
        rows = []
        for seq, uid, kind, size, published in self._read(query, values):
            try:
                rows.append(Row(Uid.parse(uid), kind, size, bool(published)))
            except RemoteWireError as error:
                self._put_aside("outbox", "seq", seq, str(error))
        return rows

    def _put_aside(self, table: str, key: str, value: object, why: str) -> None:
        """Move a row that cannot be read out of the way, so that it blocks nothing; the newest few are kept."""
        _log.error("row_damaged", table=table, row=value, error=why)
        column = "offer" if table == "jobs" else "body"
        with self._change(f"put row {value} of {table} aside"):
            self._db.execute(
                f"INSERT INTO damaged SELECT ?, ?, ?, {column} FROM {table} WHERE {key} = ?",  # noqa: S608 - fixed
                (time.time(), f"{table} {value}", why, value),
            )
            self._db.execute(f"DELETE FROM {table} WHERE {key} = ?", (value,))  # noqa: S608 - fixed names
            self._db.execute(
                "DELETE FROM damaged WHERE rowid <= (SELECT max(rowid) FROM damaged) - ?", (DAMAGED_ROWS_MAX,)
            )

    def body(self, uid: Uid) -> bytes | None:
        """The bytes to send for a row; None when it is gone."""
        found = self._read("SELECT body FROM outbox WHERE uid = ?", (str(uid),))
        return bytes(found[0][0]) if found else None

    def mark_published(self, uid: Uid) -> None:
        """Record, before its first byte leaves, that only a verdict may remove this row (I4)."""
        with self._change("mark a row"):
            self._db.execute("UPDATE outbox SET published = 1 WHERE uid = ? AND NOT published", (str(uid),))

    def settle(self, uid: Uid, verdict: Literal["accepted", "rejected"], code: str, at: float) -> Row | None:
        """Remove a row on its verdict and install the residual it picks; None when there is no such row.

        `at` is Unix seconds, for people only.
        """
        with self._change("settle a row"):
            found = self._db.execute(
                "SELECT kind, length(body), published, residual_accepted, residual_kept"
                " FROM outbox WHERE uid = ?",
                (str(uid),),
            ).fetchone()
            if found is None:
                return None
            kind, size, published, accepted, kept = found
            self._db.execute("DELETE FROM outbox WHERE uid = ?", (str(uid),))
            if kind == "update":
                if verdict == "accepted":
                    self._install(uid.job, accepted)
                elif code in KEEP_MASS_CODES:
                    self._install(uid.job, kept)
                text = verdict if verdict == "accepted" else f"{verdict} {code}"
                self._db.execute(
                    "UPDATE jobs SET verdict = ?, verdict_at = ? WHERE job = ?", (text, at, uid.job)
                )
                if code == "resync":  # the held model is not the server's: ask for a key-frame
                    self._db.execute("UPDATE jobs SET held = NULL WHERE job = ?", (uid.job,))
        return Row(uid, kind, size, bool(published))

    def drop_unpublished(self, job: str) -> None:
        """Remove what nobody has seen yet of a job that is over."""
        with self._change("drop rows"):
            self._db.execute("DELETE FROM outbox WHERE job = ? AND NOT published", (job,))

    # -- inside --------------------------------------------------------------------------------------

    def report(self) -> Report:
        """Outbox, jobs and last receipts, for people."""
        jobs = self._read("SELECT job, held, ask, verdict, verdict_at FROM jobs ORDER BY job")
        return {
            "epoch": self.epoch,
            "next_seq": self.next_seq,
            "uplink_bytes_s": self.link.rate,
            "outbox": [
                {"uid": str(r.uid), "kind": r.kind, "bytes": r.size, "published": r.published}
                for r in self.rows()
            ],
            "jobs": [
                dict(zip(("job", "held", "ask", "receipt", "receipt_at"), r, strict=True)) for r in jobs
            ],
        }

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def _insert(
        self, uid: Uid, kind: Kind, body: bytes, residuals: tuple[bytes, bytes] | None = None
    ) -> None:
        accepted, kept = residuals or (None, None)
        self._db.execute(
            "INSERT INTO outbox (seq, uid, job, kind, body, residual_accepted, residual_kept)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (uid.seq, str(uid), uid.job, kind, body, accepted, kept),
        )

    def _install(self, job: str, residual: bytes) -> None:
        self._db.execute("INSERT OR REPLACE INTO residuals (job, body) VALUES (?, ?)", (job, residual))

    def _raise_ask(self, ask: int) -> None:
        self._db.execute("UPDATE meta SET value = max(value, ?) WHERE key = 'ask'", (ask + 1,))

    def _drop_evaluations(self) -> None:
        """Keep the newest evaluations within their bounds; updates are never dropped."""
        query = "SELECT seq, length(body) FROM outbox WHERE kind = 'evaluation' ORDER BY seq DESC"
        total = 0
        for position, (seq, size) in enumerate(self._db.execute(query).fetchall()):
            total += size
            if position >= EVALUATION_ROWS_MAX or total > EVALUATION_BYTES_MAX:
                self._db.execute("DELETE FROM outbox WHERE seq = ?", (seq,))

    def _meta(self, key: str) -> object:
        found = self._read("SELECT value FROM meta WHERE key = ?", (key,))
        return found[0][0] if found else None

    def _read(self, query: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise _failed(self.path, "be read", error) from error

    def _number(self, key: str) -> int:
        value = self._meta(key)
        assert isinstance(value, int)
        return value

    @contextlib.contextmanager
    def _change(self, what: str) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise _failed(self.path, what, error) from error


def open_store(folder: Path) -> Store:
    """Open or make the state database in `folder`; a damaged one is put aside and a new epoch begins (I12).

    Raises StoreBusyError when that cannot be done for now, StoreError when the folder is not permitted or the
    database was made by newer software.
    """
    path = folder / FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            return _open(path)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):  # locked, full or not permitted: not damage
                raise
            _log.error("state_damaged", file=str(path), error=str(error), aside=str(_quarantine(path)))
            return _open(path)
    except (OSError, sqlite3.Error) as error:
        raise _failed(path, "be opened", error) from error


def read_report(folder: Path) -> Report:
    """The report of a state database, without changing it; raise StoreError when there is none."""
    path = folder / FILE
    if not path.exists():
        raise StoreError(f"{path}: no state yet: the daemon has not run with this configuration")
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            return Store(connection, path).report()
    except (sqlite3.Error, TypeError) as error:
        raise StoreError(f"{path}: cannot be read: {error}") from error


def _failed(path: Path, what: str, error: Exception) -> StoreError:
    return (StoreBusyError if passing(error) else StoreError)(f"{path}: cannot {what}: {error}")


def _open(path: Path) -> Store:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        _check(connection, path)
        return Store(connection, path)
    except BaseException:
        connection.close()
        raise


def _check(connection: sqlite3.Connection, path: Path) -> None:
    problem = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if problem != "ok":
        raise sqlite3.DatabaseError(problem)
    try:
        upgrade(connection, STEPS)
    except NewerSchemaError as error:
        raise StoreError(f"{path}: {error}") from error


def _quarantine(path: Path) -> Path:
    """Move the database and its journals aside under the first free number; the last one is overwritten."""
    names = [f"{path.name}.damaged-{n}" for n in range(1, QUARANTINE_MAX + 1)]
    aside = next(
        (path.with_name(n) for n in names if not path.with_name(n).exists()), path.with_name(names[-1])
    )
    for suffix in ("-wal", "-shm"):
        journal = path.with_name(path.name + suffix)
        if journal.exists():
            journal.replace(aside.with_name(aside.name + suffix))
    path.replace(aside)
    return aside
