"""What the SQLite engine promises beyond the contract: two processes on one file, durability, clear errors."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from broker_bridge.ports import (
    Conflict,
    CorruptBlob,
    CorruptStorage,
    Kind,
    MissingBlob,
    Ports,
    StorageError,
    open_ports,
)
from broker_bridge.ports.files import ABANDONED_S, FileBlobs

DEADLINE_S = 10.0

APPENDER = """
import asyncio, sys
from broker_bridge.ports import Kind, open_ports
async def main():
    ports = open_ports(sys.argv[1])
    i = 0
    while True:
        await asyncio.gather(*(ports.log.append(0, f"u{i + j}", Kind.UPDATE, bytes(2000)) for j in range(20)))
        i += 20
        print(i, flush=True)
asyncio.run(main())
"""


def with_two(url: str, body: Callable[[Ports, Ports], Awaitable[None]]) -> None:
    """Run `body` with two engines on one file, which share nothing but the file."""

    async def main() -> None:
        one, two = open_ports(url), open_ports(url)
        try:
            async with asyncio.timeout(DEADLINE_S):
                await body(one, two)
        finally:
            await one.close()
            await two.close()

    asyncio.run(main())


def test_two_processes_append_to_one_log(sqlite_url: str) -> None:
    """I1: appends of two processes interleave without gaps, and a uid that both append is stored once."""

    async def body(one: Ports, two: Ports) -> None:
        appends = [
            (one, two)[i % 2].log.append(0, f"u{i // 2}:1", Kind.UPDATE, b"x", b"m") for i in range(400)
        ]
        offsets = await asyncio.gather(*appends)
        assert offsets[::2] == offsets[1::2]
        assert sorted(offsets[::2]) == list(range(1, 201))
        assert await one.log.find(0, "u7:1") == await two.log.find(0, "u7:1")

    with_two(sqlite_url, body)


def test_two_processes_race_for_a_head(sqlite_url: str) -> None:
    """I3: of two processes that swing one head one wins and the other gets Conflict."""

    async def body(one: Ports, two: Ports) -> None:
        outcomes = await asyncio.gather(
            one.heads.swing("k", 0, b"1"), two.heads.swing("k", 0, b"2"), return_exceptions=True
        )
        assert sorted(isinstance(outcome, Conflict) for outcome in outcomes) == [False, True]
        assert await one.heads.load("k") == await two.heads.load("k")

    with_two(sqlite_url, body)


def test_another_process_hears_of_changes(sqlite_url: str) -> None:
    """A wait and a watch of one process end when another process appends or swings."""

    async def body(one: Ports, two: Ports) -> None:
        waiting = asyncio.ensure_future(one.log.wait(1, 0))
        watching = asyncio.ensure_future(anext(one.heads.watch("w/")))
        await two.log.append(1, "u", Kind.UPDATE, b"x")
        await waiting
        await two.heads.swing("w/k", 0, b"v")
        assert (await watching).value == b"v"

    with_two(sqlite_url, body)


def test_partitions_are_fixed_when_the_file_is_made(sqlite_url: str) -> None:
    """The number of partitions is that of the first opening, and others are refused as indices."""

    async def main() -> None:
        first = open_ports(sqlite_url, partitions=2)
        second = open_ports(sqlite_url, partitions=64)
        assert (first.partitions, second.partitions) == (2, 2)
        with pytest.raises(ValueError, match="partition 2 of 2"):
            await second.log.append(2, "u", Kind.UPDATE, b"")
        await first.close()
        await second.close()

    asyncio.run(main())


def test_acknowledged_appends_survive_kill(sqlite_url: str) -> None:
    """I1: every append that returned before a kill -9 is in the log afterwards, with no gap."""
    command = [sys.executable, "-c", APPENDER, sqlite_url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        told = 0
        while told < 200:
            told = int(child.stdout.readline())
        os.kill(child.pid, signal.SIGKILL)

    async def main() -> None:
        ports = open_ports(sqlite_url)
        entries = await ports.log.read(0, 0, 1_000_000)
        await ports.close()
        assert len(entries) >= told
        assert [e.offset for e in entries] == list(range(1, len(entries) + 1))

    asyncio.run(main())


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    """A file that is not a database is refused as CorruptStorage with its path."""
    path = tmp_path / "fleet.db"
    path.write_bytes(b"not a database, but long enough to have a header" * 100)
    with pytest.raises(CorruptStorage, match=r"fleet\.db"):
        open_ports(f"sqlite:///{path}")


def test_an_unusable_directory_is_named(tmp_path: Path) -> None:
    """A path below a file is refused as StorageError with the path."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        open_ports(f"sqlite:///{tmp_path}/file/fleet.db")


def test_full_storage_refuses_and_recovers(sqlite_url: str) -> None:
    """When the file cannot grow an append raises StorageError naming it; once it can, the same append works."""

    async def main() -> None:
        ports = open_ports(sqlite_url)
        lane = ports.log._writer  # type: ignore[attr-defined]
        limit = await lane.run(lambda c: c.execute("PRAGMA page_count").fetchone()[0])
        lane._connection.execute(f"PRAGMA max_page_count={limit}")
        with pytest.raises(StorageError, match=r"fleet\.db.*full"):
            await ports.log.append(0, "u", Kind.UPDATE, bytes(1_000_000))
        lane._connection.execute("PRAGMA max_page_count=1000000")
        assert await ports.log.append(0, "u", Kind.UPDATE, bytes(1_000_000)) == 1
        await ports.close()

    asyncio.run(main())


def test_damaged_blob_file_is_detected_and_replaced(tmp_path: Path) -> None:
    """A blob file with a flipped bit raises CorruptBlob and is put aside; putting the blob again repairs it."""

    async def main() -> None:
        blobs = FileBlobs(tmp_path)
        digest = await blobs.put(b"model" * 100)
        path = tmp_path / digest[:2] / digest
        data = bytearray(path.read_bytes())
        data[7] ^= 1
        path.write_bytes(data)
        with pytest.raises(CorruptBlob, match=digest):
            await blobs.get(digest)
        assert [d async for d in blobs.list()] == []
        assert (tmp_path / "damaged" / digest).read_bytes() == bytes(data)
        with pytest.raises(MissingBlob):
            await blobs.get(digest)
        await blobs.put(b"model" * 100)
        assert await blobs.get(digest) == b"model" * 100

    asyncio.run(main())


def test_abandoned_temporary_files_are_swept(tmp_path: Path) -> None:
    """What a crashed writer left is removed at the next start, what a live one is writing is not."""
    old, new = tmp_path / "tmp-1-old", tmp_path / "tmp-2-new"
    old.write_bytes(b"x")
    new.write_bytes(b"x")
    os.utime(old, (0, old.stat().st_mtime - 2 * ABANDONED_S))
    FileBlobs(tmp_path)
    assert (old.exists(), new.exists()) == (False, True)


def test_closed_engine_refuses(sqlite_url: str) -> None:
    """A call after close is refused instead of waiting for ever."""

    async def main() -> None:
        ports = open_ports(sqlite_url)
        await ports.close()
        with pytest.raises(Exception, match="closed"):
            await ports.log.append(0, "u", Kind.UPDATE, b"")

    asyncio.run(main())


def test_a_file_of_newer_software_is_refused(sqlite_url: str) -> None:
    """A newer layout is named and left as it is, instead of being read by old rules."""

    async def made() -> None:
        await open_ports(sqlite_url).close()

    asyncio.run(made())
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StorageError, match="schema 99 is of newer software"):
        open_ports(sqlite_url)
