"""The tables of a device's state database, and the steps that lead there (schema.py)."""

import secrets
import sqlite3
import time

from edge_client.schema import run

RUN_BITS = 27  # numbers of one run: a status a second for four years; with minutes since 1970 below 2^53

_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value NOT NULL);
CREATE TABLE jobs (
    job TEXT PRIMARY KEY, offer BLOB NOT NULL, held INTEGER, ask INTEGER NOT NULL,
    verdict TEXT NOT NULL DEFAULT '', verdict_at REAL
);
CREATE TABLE residuals (job TEXT PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE outbox (
    seq INTEGER PRIMARY KEY, uid TEXT NOT NULL UNIQUE, job TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('update', 'evaluation')),
    body BLOB NOT NULL, published INTEGER NOT NULL DEFAULT 0,
    residual_accepted BLOB, residual_kept BLOB
);
CREATE UNIQUE INDEX one_unreceipted_update ON outbox (job) WHERE kind = 'update';
"""


def _create(connection: sqlite3.Connection) -> None:
    # A server remembers the numbers of a database that was lost, and takes lower ones for old news. Minutes are
    # above them, unless the device has no clock: then its words count only once they have caught up.
    runs = int(time.time() / 60)
    facts = {"epoch": secrets.token_hex(8), "runs": runs, "seq": 1, "ask": runs << RUN_BITS}
    run(connection, _TABLES)
    connection.executemany("INSERT INTO meta (key, value) VALUES (?, ?)", facts.items())


def _add_damaged(connection: sqlite3.Connection) -> None:
    run(
        connection,
        "CREATE TABLE damaged (at REAL NOT NULL, source TEXT NOT NULL, why TEXT NOT NULL, body BLOB)",
    )


STEPS = (_create, _add_damaged)  # how a database came to its layout
