"""Layouts of a SQLite file: every step is taken once, whole, and newer files are left alone."""

import sqlite3
import threading

import pytest

from edge_client.schema import NewerSchemaError, run, upgrade, version


def first(connection):
    run(connection, "CREATE TABLE rows (name TEXT);\nCREATE TABLE other (name TEXT);\n")


def second(connection):
    run(connection, "ALTER TABLE rows ADD COLUMN size INTEGER NOT NULL DEFAULT 0")


def broken(connection):
    run(connection, "ALTER TABLE rows ADD COLUMN colour TEXT;\nALTER TABLE nothing ADD COLUMN colour TEXT")


def opened(path):
    return sqlite3.connect(path, isolation_level=None, timeout=10)


def columns(connection):
    return [row[1] for row in connection.execute("PRAGMA table_info(rows)")]


@pytest.fixture
def connection(tmp_path):
    made = opened(tmp_path / "x.db")
    yield made
    made.close()


def test_a_file_of_an_earlier_layout_keeps_its_rows(connection):
    """What an earlier layout held is there in the newest."""
    upgrade(connection, [first])
    connection.execute("INSERT INTO rows VALUES ('a')")
    upgrade(connection, [first, second])
    upgrade(connection, [first, second])
    assert (version(connection), columns(connection)) == (2, ["name", "size"])
    assert connection.execute("SELECT * FROM rows").fetchall() == [("a", 0)]


def test_a_step_that_fails_leaves_the_layout_before(connection):
    """Half a step is none: the file is as it was, and the step is taken when it works."""
    upgrade(connection, [first])
    with pytest.raises(sqlite3.OperationalError, match="nothing"):
        upgrade(connection, [first, broken])
    assert (version(connection), columns(connection)) == (1, ["name"])
    assert not connection.in_transaction


def test_a_newer_file_is_refused_with_the_reason(connection):
    """A file of newer software is not touched."""
    upgrade(connection, [first, second])
    with pytest.raises(NewerSchemaError, match="schema 2 is of newer software, this one knows up to 1"):
        upgrade(connection, [first])
    assert version(connection) == 2


def test_two_processes_take_each_step_once(tmp_path):
    """Who comes second waits for the first and finds its work done."""
    errors = []

    def take():
        connection = opened(tmp_path / "x.db")
        try:
            upgrade(connection, [first, second])
        except sqlite3.Error as error:
            errors.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
