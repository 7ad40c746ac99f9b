"""Blobs as files, `<directory>/ab/<digest>`: the blob store of the embedded engine.

Files rather than rows: a model of megabytes would pass SQLite's write-ahead log and be written twice, would
make every commit of small updates wait for it, and would leave its pages behind when deleted.
"""

import asyncio
import errno
import hashlib
import os
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

from broker_bridge.ports.types import CorruptBlob, Digest, MissingBlob, StorageError, StorageFull

ABANDONED_S = 3600.0  # a temporary file this old belongs to a writer that crashed: no blob takes an hour
_DIGEST = re.compile(r"[0-9a-f]{64}")
_TEMPORARY = "tmp-"
DAMAGED = "damaged"  # directory of blobs that were found damaged


class FileBlobs:
    """Blobs in a directory that several processes may share; a name appears only with its whole content."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._synced: set[str] = set()  # directories of which the name is on the disk
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._sweep()
        except OSError as error:
            raise storage_error(directory, error) from error

    async def put(self, data: bytes) -> Digest:
        """As in Blobs; returns when the bytes and their name are on the disk. Raises StorageError."""
        return await asyncio.to_thread(self._put, data)

    async def get(self, digest: Digest) -> bytes:
        """As in Blobs; also raises StorageError."""
        return await asyncio.to_thread(self._get, digest)

    async def delete(self, digest: Digest) -> None:
        """As in Blobs; also raises StorageError."""
        path = blob_path(self._directory, digest)
        try:
            await asyncio.to_thread(path.unlink, missing_ok=True)
        except OSError as error:
            raise storage_error(path, error) from error

    async def list(self) -> AsyncIterator[Digest]:
        """As in Blobs; blobs that are put or deleted meanwhile may or may not be told."""
        for digest in await asyncio.to_thread(names, self._directory):
            yield digest

    def _put(self, data: bytes) -> Digest:
        digest = Digest(hashlib.sha256(data).hexdigest())
        path = blob_path(self._directory, digest)
        temporary = self._directory / f"{_TEMPORARY}{os.getpid()}-{os.urandom(8).hex()}"
        try:
            if _read(path) == data:  # a damaged copy is replaced
                return digest
            path.parent.mkdir(exist_ok=True)
            try:
                _write_synced(temporary, data)
                temporary.replace(path)
            except OSError:
                temporary.unlink(missing_ok=True)
                raise
            _sync_directory(path.parent)
            if path.parent.name not in self._synced:  # another process may have made it and not come to this
                _sync_directory(self._directory)
                self._synced.add(path.parent.name)
        except OSError as error:
            raise storage_error(path, error) from error
        return digest

    def _get(self, digest: Digest) -> bytes:
        path = blob_path(self._directory, digest)
        try:
            data = _read(path)
        except OSError as error:
            raise storage_error(path, error) from error
        if data is None:
            raise MissingBlob(f"no blob {digest}")
        if hashlib.sha256(data).hexdigest() != digest:
            raise CorruptBlob(f"{path} does not have the digest it is named by{self._put_aside(path)}")
        return data

    def _put_aside(self, path: Path) -> str:
        """Keep damaged bytes for a look, away from those that are served; where they are, for a message."""
        aside = self._directory / DAMAGED / path.name
        try:
            aside.parent.mkdir(exist_ok=True)
            path.replace(aside)
        except OSError as error:  # what counts is that it is not used
            return f", and cannot be put aside: {error.strerror}"
        return f"; put aside as {aside}"

    def _sweep(self) -> None:
        for path in self._directory.glob(f"{_TEMPORARY}*"):
            if path.stat().st_mtime < time.time() - ABANDONED_S:
                path.unlink(missing_ok=True)


def storage_error(path: Path, error: OSError) -> StorageError:
    """The port error that tells of a failed file operation."""
    kind = StorageFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else StorageError
    return kind(f"{path}: {error.strerror or error}")


def blob_path(directory: Path, digest: Digest) -> Path:
    """Where a blob lies; raise MissingBlob for what is no digest."""
    if not _DIGEST.fullmatch(digest):  # it may come from a message: never let it name another file
        raise MissingBlob(f"{digest!r} is not a SHA-256 in hex")
    return directory / digest[:2] / digest


def names(directory: Path) -> list[Digest]:
    """The digests of all blobs."""
    return [Digest(path.name) for path in directory.glob("??/*") if _DIGEST.fullmatch(path.name)]


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
