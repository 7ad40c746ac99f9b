"""The embedded engine as it lies on disk, read without changing anything: for looking after damage."""

import contextlib
import hashlib
import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from broker_bridge.ports.files import DAMAGED, blob_path, names
from broker_bridge.ports.sqlite import SCHEMA
from broker_bridge.ports.types import CorruptBlob, Digest, MissingBlob
from edge_client.schema import NewerSchemaError, check

PROBLEMS_SHOWN = 5  # of a damaged database: more say the same
DATABASE = "fleet.db"


class StoredBlobs:
    """Blobs that are only read: a damaged one stays where it is."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def get(self, digest: Digest) -> bytes:
        """As in Blobs."""
        path = blob_path(self._directory, digest)
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise MissingBlob(f"no blob {digest}") from error
        except OSError as error:
            raise CorruptBlob(f"{path}: {error.strerror}") from error
        if hashlib.sha256(data).hexdigest() != digest:
            raise CorruptBlob(f"{path} does not have the digest it is named by")
        return data

    async def put(self, data: bytes) -> Digest:
        """Nothing is put: only the digest is returned."""
        return Digest(hashlib.sha256(data).hexdigest())

    async def delete(self, digest: Digest) -> None:
        """Nothing is deleted."""

    def put_aside(self) -> list[Path]:
        """Blobs that were found damaged before."""
        return sorted((self._directory / DAMAGED).glob("*"))

    async def list(self) -> AsyncIterator[Digest]:
        """As in Blobs."""
        for digest in names(self._directory):
            yield digest


@contextlib.contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that cannot write; raises sqlite3.Error."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        yield connection


def problems(connection: sqlite3.Connection) -> list[str]:
    """What SQLite itself finds wrong with the file, and a schema that is not this program's."""
    found = [r[0] for r in connection.execute(f"PRAGMA integrity_check({PROBLEMS_SHOWN})")]
    if found != ["ok"]:
        return found
    try:
        check(connection, SCHEMA)
    except NewerSchemaError as error:
        return [str(error)]
    return []


def heads(connection: sqlite3.Connection) -> dict[str, bytes]:
    """Every cell by its key."""
    return dict(connection.execute("SELECT key, value FROM heads WHERE value IS NOT NULL ORDER BY key"))


def entries(connection: sqlite3.Connection) -> Iterator[tuple[str, int, bytes]]:
    """Uid, kind and body of every entry of the log."""
    return iter(connection.execute("SELECT uid, kind, body FROM entries ORDER BY place"))
