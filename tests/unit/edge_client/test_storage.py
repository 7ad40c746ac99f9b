"""Storage that fails for a while: what waits, what is kept, and that files change whole."""

import errno
import hashlib
import os
import sqlite3
from pathlib import Path

import pytest

from edge_client import storage
from edge_client.events import Pulled
from edge_client.pull import Puller
from edge_client.storage import HeldError, Patience, hold, passing, write_whole
from edge_client.store import StoreBusyError, StoreError, open_store
from edge_client.wire.messages import BlobRef, BlobRequest
from tests.unit.edge_client.offers import finished

NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("code", ["ENOSPC", "EDQUOT", "EROFS", "EIO", "EFBIG"])
def test_what_a_full_or_read_only_disk_says_passes(code):
    """Full, over quota, read-only and broken storage are waited for; a missing permission is not."""
    assert passing(OSError(getattr(errno, code), "x"))
    assert not passing(OSError(errno.EACCES, "x"))
    assert not passing(ValueError("x"))


def test_pauses_double_up_to_a_limit_and_begin_anew():
    """I6: each failure after a pause makes the next one longer, up to RETRY_MAX_S; success ends the row."""
    patience, now, pauses = Patience(), 0.0, []
    for _ in range(10):
        patience.failed("full", now)
        pauses.append(patience.until - now)
        now = patience.until
    assert pauses[:3] == [1.0, 2.0, 4.0]
    assert pauses[-1] == storage.RETRY_MAX_S
    assert patience.worked()
    assert not patience.worked()
    patience.failed("full", now)
    assert patience.until == now + storage.RETRY_MIN_S


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    """A file is replaced whole or not at all, and what a failed write began is gone."""
    path = tmp_path / "model.grid"
    write_whole(path, b"old")

    def full(_handle):
        raise NO_SPACE

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_who_comes_second_learns_who_is_first(tmp_path):
    """A held lock names the process that holds it, also to a second one and a third."""
    with hold(tmp_path / "lock"):
        for _ in range(2):
            with pytest.raises(HeldError) as caught:
                hold(tmp_path / "lock")
            assert caught.value.pid == os.getpid()
    hold(tmp_path / "lock").close()


def test_a_read_only_database_waits_and_changes_nothing(store):
    """I4: a change that storage refuses for now is told apart from one that is wrong, and the same call works later."""
    uid = finished(store)
    store._db.execute("PRAGMA query_only = 1")
    with pytest.raises(StoreBusyError, match=r"state\.db"):
        store.settle(uid, "accepted", "", 0.0)
    assert len(store.rows()) == 2
    store._db.execute("PRAGMA query_only = 0")
    assert store.settle(uid, "accepted", "", 0.0).uid == uid


def test_a_full_database_waits_and_a_reused_name_does_not(store):
    """SQLITE_FULL is waited for; what would be refused for ever is an error at once."""
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreBusyError, match="full"):
        finished(store, text=bytes(100_000))
    assert store.rows() == []
    store._db.execute("PRAGMA max_page_count = 1000000")
    finished(store, text=bytes(100_000))
    with pytest.raises(StoreError) as caught:
        finished(store)
    assert not isinstance(caught.value, StoreBusyError)


def test_a_database_in_a_full_folder_is_waited_for(tmp_path, monkeypatch):
    """What cannot be opened for now is told apart from damage: nothing is put aside."""

    def full(*_args, **_kwargs):
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    open_store(tmp_path).close()
    monkeypatch.setattr("edge_client.store.sqlite3.connect", full)
    with pytest.raises(StoreBusyError, match="full"):
        open_store(tmp_path)
    assert not list(tmp_path.glob("*damaged*"))


@pytest.fixture
def store(tmp_path):
    """An open store."""
    opened = open_store(tmp_path)
    yield opened
    opened.close()


class _Disk:
    """Makes opening a file for writing fail while `full`."""

    def __init__(self, monkeypatch):
        self.full = False
        opened = Path.open

        def open_file(path, mode="r", *rest, **more):
            if self.full and set(mode) & set("wax"):
                raise NO_SPACE
            return opened(path, mode, *rest, **more)

        monkeypatch.setattr(Path, "open", open_file)


def test_a_pull_goes_on_where_the_full_disk_stopped_it(tmp_path, monkeypatch):
    """A chunk that cannot be written is asked for again once there is room, and nothing before it."""
    disk, data = _Disk(monkeypatch), bytes(range(250))
    blob = BlobRef(hashlib.sha256(data).hexdigest(), len(data))
    puller = Puller(tmp_path)
    puller.connected(100, 0.0)
    assert puller.want(blob, 0.0) == [BlobRequest(blob.digest, 0, 3, 100)]
    puller.chunk(blob.digest, 0, data[:100], 0.0)
    disk.full = True
    with pytest.raises(OSError, match="No space"):
        puller.chunk(blob.digest, 1, data[100:200], 0.0)
    with pytest.raises(OSError, match="No space"):
        puller.tick(1.0)
    disk.full = False
    assert puller.tick(2.0) == [BlobRequest(blob.digest, 1, 2, 100)]
    puller.chunk(blob.digest, 1, data[100:200], 2.0)
    assert puller.chunk(blob.digest, 2, data[200:], 2.0) == [Pulled(blob.digest)]
    assert puller.path(blob.digest).read_bytes() == data
