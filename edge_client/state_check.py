"""Looks at a device's state directory without changing it; works beside a running daemon."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from edge_client.finding import Finding, sha256
from edge_client.layout import STEPS
from edge_client.pull import PART
from edge_client.schema import NewerSchemaError, check
from edge_client.store import FILE
from edge_client.wire import frame
from edge_client.wire.errors import RemoteWireError
from edge_client.wire.messages import Evaluation, Offer, decode
from edge_client.wire.topics import Uid

PUT_ASIDE_SINCE = 2  # the layout that has a table of damaged rows
PAGES_SHOWN = 5  # problems of a damaged database: more say the same


def examine(folder: Path) -> list[Finding]:
    """Database, rows, blobs and models of a device; a device that never ran has nothing to be wrong."""
    if not folder.exists():
        return [Finding("state", ok=True, detail="none yet: the daemon has not run")]
    findings = []
    if (folder / FILE).exists():
        findings += _database(folder / FILE)
    findings += [
        Finding(
            f"file {path.name}",
            ok=True,
            detail="a damaged database that was put aside, only kept for a look: it may be deleted",
        )
        for path in sorted(folder.glob(f"{FILE}.damaged-[0-9]"))
    ]
    return [*findings, *_blobs(folder / "blobs"), *_models(folder / "jobs")]


def _database(path: Path) -> list[Finding]:
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            problems = [r[0] for r in connection.execute(f"PRAGMA integrity_check({PAGES_SHOWN})")]
            if problems != ["ok"]:
                return [Finding(FILE, ok=False, detail="; ".join(problems))]
            version = check(connection, len(STEPS))
            aside = []
            if version >= PUT_ASIDE_SINCE:
                aside = [
                    Finding(
                        f"row {source}", ok=True, detail=f"was damaged and put aside, only for a look: {why}"
                    )
                    for source, why in connection.execute("SELECT source, why FROM damaged ORDER BY rowid")
                ]
            return [Finding(FILE, ok=True, detail=f"schema {version}"), *_rows(connection), *aside]
    except NewerSchemaError as error:
        return [Finding(FILE, ok=False, detail=str(error))]
    except sqlite3.Error as error:
        return [Finding(FILE, ok=False, detail=f"cannot be read: {error}")]


def _rows(connection: sqlite3.Connection) -> Iterator[Finding]:
    """Each damaged row by name, and how many are sound."""
    sound = 0
    for uid, kind, body in connection.execute("SELECT uid, kind, body FROM outbox ORDER BY seq"):
        try:
            Uid.parse(uid)
            if kind == "update":
                frame.decode(body)
            else:
                decode(Evaluation, body)
            sound += 1
        except RemoteWireError as error:
            yield Finding(f"outbox row {uid}", ok=False, detail=str(error))
    yield Finding("outbox", ok=True, detail=f"{sound} sound rows")
    for job, offer in connection.execute("SELECT job, offer FROM jobs ORDER BY job"):
        try:
            decode(Offer, offer)
        except RemoteWireError as error:
            yield Finding(f"job {job}", ok=False, detail=str(error))


def _blobs(folder: Path) -> Iterator[Finding]:
    paths = [path for path in sorted(folder.glob("*")) if path.suffix != PART]
    for path in paths:
        try:
            if sha256(path) != path.name:
                yield Finding(
                    f"blob {path.name[:12]}",
                    ok=False,
                    detail=f"{path} does not have the digest it is named by",
                )
        except OSError as error:
            yield Finding(f"blob {path.name[:12]}", ok=False, detail=f"{path}: {error.strerror}")
    yield Finding("blobs", ok=True, detail=f"{len(paths)} looked at")


def _models(folder: Path) -> Iterator[Finding]:
    for path in sorted(folder.glob("*/*.grid")):
        what = f"model of job {path.parent.name}"
        try:
            frame.decode(path.read_bytes())
            yield Finding(what, ok=True, detail=f"{path.stat().st_size:,} B")
        except (RemoteWireError, OSError) as error:
            yield Finding(
                what, ok=False, detail=f"{path}: {error}; the next training starts from a key-frame"
            )
