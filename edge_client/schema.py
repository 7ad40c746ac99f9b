"""Layouts of a SQLite file: numbered steps from nothing to the newest, counted in `PRAGMA user_version`."""

import sqlite3
from collections.abc import Callable, Sequence

Step = Callable[[sqlite3.Connection], None]


class NewerSchemaError(Exception):
    """The file was made by newer software; nothing was changed."""


def upgrade(connection: sqlite3.Connection, steps: Sequence[Step]) -> None:
    """Take the steps that a file has not had, each in a transaction of its own: a crash leaves a whole layout.

    `connection` must be in autocommit mode. Step n leads from layout n to n + 1; a step that was released is never
    changed, only followed by another. Raises NewerSchemaError and sqlite3.Error.
    """
    while (found := check(connection, len(steps))) < len(steps):
        connection.execute("BEGIN IMMEDIATE")
        try:
            if version(connection) == found:  # no other process has taken it meanwhile
                steps[found](connection)
                connection.execute(f"PRAGMA user_version = {found + 1}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def check(connection: sqlite3.Connection, newest: int) -> int:
    """The layout of a file, of which `newest` is the last that is known; raise NewerSchemaError."""
    found = version(connection)
    if found > newest:
        raise NewerSchemaError(
            f"schema {found} is of newer software, this one knows up to {newest}; update it"
        )
    return found


def version(connection: sqlite3.Connection) -> int:
    """The layout of a file; 0 is an empty one."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def run(connection: sqlite3.Connection, script: str) -> None:
    """Execute statements one by one; `executescript` would end the transaction."""
    for statement in script.split(";\n"):
        if statement.strip():
            connection.execute(statement)
