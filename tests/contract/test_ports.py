"""What every engine promises of the log, the heads and the blobs (DESIGN §4)."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from broker_bridge.ports import (
    FORGOTTEN,
    REMEMBERED,
    Change,
    Conflict,
    CorruptBlob,
    Digest,
    Kind,
    Mark,
    MissingBlob,
    PortError,
    Ports,
    open_ports,
)

DEADLINE_S = 10.0
NewPorts = Callable[[], Ports]


def with_ports(new_ports: NewPorts, body: Callable[[Ports], Awaitable[None]]) -> None:
    """Run `body` with a fresh engine in a fresh event loop, under a deadline."""

    async def main() -> None:
        ports = new_ports()
        try:
            async with asyncio.timeout(DEADLINE_S):
                await body(ports)
        finally:
            await ports.close()

    asyncio.run(main())


async def take(changes: AsyncIterator[Change], count: int) -> list[Change]:
    """The next `count` changes."""
    return [await anext(changes) for _ in range(count)]


def test_offsets_count_from_one_without_gaps(new_ports: NewPorts) -> None:
    """Entries of a partition get offsets 1, 2, 3 … in the order of their appends, whatever other partitions do."""

    async def body(ports: Ports) -> None:
        for i in range(1, 4):
            assert await ports.log.append(0, f"a{i}", Kind.UPDATE, b"x") == i
            assert await ports.log.append(3, f"b{i}", Kind.EVENT, b"y") == i
        entries = await ports.log.read(3, 1, 10)
        assert [(e.offset, e.uid, e.kind, e.body) for e in entries] == [
            (2, "b2", Kind.EVENT, b"y"),
            (3, "b3", Kind.EVENT, b"y"),
        ]
        assert [e.offset for e in await ports.log.read(0, 0, 2)] == [1, 2]
        assert await ports.log.read(1, 0, 10) == []

    with_ports(new_ports, body)


def test_same_uid_has_the_effect_of_once(new_ports: NewPorts) -> None:
    """I1: the same uid again, even many at once, returns the first offset and changes nothing."""

    async def body(ports: Ports) -> None:
        appends = [ports.log.append(2, f"u:{i % 10}", Kind.UPDATE, bytes([i]), b"m") for i in range(100)]
        offsets = await asyncio.gather(*appends)
        assert sorted(set(offsets)) == list(range(1, 11))
        assert offsets[:10] == offsets[90:]
        assert len(await ports.log.read(2, 0, 1000)) == 10

    with_ports(new_ports, body)


def test_marks_survive_trimming(new_ports: NewPorts) -> None:
    """I1: after a trim the bodies below are gone, offsets go on, and every uid still has its mark."""

    async def body(ports: Ports) -> None:
        for i in range(1, 6):
            await ports.log.append(1, f"u:{i}", Kind.REJECTION, b"body", f"mark{i}".encode())
        await ports.log.trim(1, 4)
        assert [e.offset for e in await ports.log.read(1, 0, 10)] == [4, 5]
        await ports.log.trim(1, 100)
        assert await ports.log.read(1, 0, 10) == []
        mark = await ports.log.find(1, "u:2")
        assert mark is not None
        assert (mark.offset, mark.kind, mark.mark) == (2, Kind.REJECTION, b"mark2")
        assert await ports.log.append(1, "u:2", Kind.UPDATE, b"again", b"m") == 2
        assert await ports.log.append(1, "u:6", Kind.UPDATE, b"new", b"m") == 6
        assert await ports.log.find(1, "u:7") is None

    with_ports(new_ports, body)


def test_a_stream_remembers_its_newest_marks(new_ports: NewPorts) -> None:
    """I1, I6: of each kind so many marks stay; a number behind that many updates is told apart from a new one."""

    async def body(ports: Ports) -> None:
        await ports.log.append(1, "a:b:5", Kind.REJECTION, b"", b"no")
        for number in range(10, 10 + REMEMBERED + 2):
            await ports.log.append(1, f"a:b:{number}", Kind.UPDATE, b"", b"yes")
        assert await ports.log.find(1, "a:b:5") == Mark(1, Kind.REJECTION, b"no")
        assert [await ports.log.find(1, f"a:b:{number}") for number in (1, 10, 11)] == [FORGOTTEN] * 3
        assert await ports.log.find(1, "a:b:12") == Mark(4, Kind.UPDATE, b"yes")
        assert await ports.log.find(1, "a:b:99") is None
        assert await ports.log.find(1, "a:c:1") is None
        assert len(await ports.log.read(1, 0, 100)) == REMEMBERED + 3

    with_ports(new_ports, body)


def test_rejections_and_evaluations_push_no_update_out_of_memory(new_ports: NewPorts) -> None:
    """I1: the update of which a device has not heard is known however much else comes under later numbers."""

    async def body(ports: Ports) -> None:
        await ports.log.append(1, "a:1", Kind.UPDATE, b"", b"yes")
        for number in range(3, 3 + 3 * REMEMBERED):
            await ports.log.append(1, f"a:{number}", (Kind.REJECTION, Kind.EVALUATION)[number % 2], b"", b"m")
        assert await ports.log.find(1, "a:1") == Mark(1, Kind.UPDATE, b"yes")
        assert await ports.log.find(1, "a:2") is None
        assert await ports.log.append(1, "a:1", Kind.UPDATE, b"", b"yes") == 1

    with_ports(new_ports, body)


def test_what_has_no_mark_is_stored_each_time(new_ports: NewPorts) -> None:
    """I6: events, which nobody asks for again, leave nothing behind once they are trimmed."""

    async def body(ports: Ports) -> None:
        assert [await ports.log.append(0, "event:x", Kind.EVENT, b"y") for _ in range(2)] == [1, 2]

    with_ports(new_ports, body)


def test_wait_returns_when_something_is_new(new_ports: NewPorts) -> None:
    """`wait` returns at once when there is something new and else after the next append to its partition."""

    async def body(ports: Ports) -> None:
        await ports.log.append(0, "u1", Kind.UPDATE, b"x")
        await ports.log.wait(0, 0)
        waiting = asyncio.ensure_future(ports.log.wait(0, 1))
        await ports.log.append(1, "elsewhere", Kind.UPDATE, b"x")
        assert not waiting.done()
        await ports.log.append(0, "u2", Kind.UPDATE, b"x")
        await waiting

    with_ports(new_ports, body)


def test_swing_needs_the_current_revision(new_ports: NewPorts) -> None:
    """I3: of two writers that loaded the same revision one wins and the other gets Conflict."""

    async def body(ports: Ports) -> None:
        assert await ports.heads.load("k") == (0, b"")
        first = await ports.heads.swing("k", 0, b"one")
        outcomes = await asyncio.gather(
            ports.heads.swing("k", first, b"two"),
            ports.heads.swing("k", first, b"three"),
            return_exceptions=True,
        )
        assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 1
        revision, value = await ports.heads.load("k")
        assert revision in outcomes
        assert value in (b"two", b"three")
        with pytest.raises(Conflict):
            await ports.heads.swing("k", 0, b"must not exist")

    with_ports(new_ports, body)


def test_revisions_grow_over_all_keys(new_ports: NewPorts) -> None:
    """A later swing or drop has a higher revision than any earlier one, whatever the key."""

    async def body(ports: Ports) -> None:
        a = await ports.heads.swing("a", 0, b"")
        b = await ports.heads.swing("b", 0, b"1")
        a2 = await ports.heads.swing("a", a, b"2")
        await ports.heads.drop("b", b)
        again = await ports.heads.swing("b", 0, b"3")
        assert 0 < a < b < a2 < again - 1

    with_ports(new_ports, body)


def test_drop_removes_a_cell(new_ports: NewPorts) -> None:
    """A dropped cell does not exist; dropping needs the current revision and an absent cell may be dropped."""

    async def body(ports: Ports) -> None:
        revision = await ports.heads.swing("k", 0, b"x")
        with pytest.raises(Conflict):
            await ports.heads.drop("k", revision + 1)
        await ports.heads.drop("k", revision)
        assert await ports.heads.load("k") == (0, b"")
        assert await ports.heads.list("") == []
        await ports.heads.drop("k", 0)

    with_ports(new_ports, body)


def test_list_is_by_prefix_and_ordered(new_ports: NewPorts) -> None:
    """`list` gives the cells under a prefix ordered by key, and no neighbours."""

    async def body(ports: Ports) -> None:
        for key in ("down/b", "down/a", "dowN/x", "down0", "down/a/é", "zzz"):
            await ports.heads.swing(key, 0, key.encode())
        assert [c.key for c in await ports.heads.list("down/")] == ["down/a", "down/a/é", "down/b"]

    with_ports(new_ports, body)


def test_watch_tells_what_is_there_then_what_changes(new_ports: NewPorts) -> None:
    """A watch yields present cells in order of revision, then each change and drop under its prefix."""

    async def body(ports: Ports) -> None:
        one = await ports.heads.swing("w/1", 0, b"1")
        two = await ports.heads.swing("w/2", 0, b"2")
        changes = ports.heads.watch("w/")
        assert await take(changes, 2) == [Change("w/1", one, b"1"), Change("w/2", two, b"2")]
        waiting = asyncio.ensure_future(anext(changes))
        await ports.heads.swing("other", 0, b"x")
        newer = await ports.heads.swing("w/1", one, b"1b")
        assert await waiting == Change("w/1", newer, b"1b")
        await ports.heads.drop("w/2", two)
        (dropped,) = await take(changes, 1)
        assert (dropped.key, dropped.value) == ("w/2", None)
        assert dropped.revision > newer

    with_ports(new_ports, body)


def test_watch_resumes_after_a_revision(new_ports: NewPorts) -> None:
    """A watch from a stored revision tells only what is newer, drops included; one from 0 no old drops."""

    async def body(ports: Ports) -> None:
        one = await ports.heads.swing("w/1", 0, b"1")
        two = await ports.heads.swing("w/2", 0, b"2")
        await ports.heads.drop("w/1", one)
        resumed = await take(ports.heads.watch("w/", after=two), 1)
        assert (resumed[0].key, resumed[0].value) == ("w/1", None)
        assert [c.key for c in await take(ports.heads.watch("w/"), 1)] == ["w/2"]

    with_ports(new_ports, body)


def test_blobs_round_trip(new_ports: NewPorts) -> None:
    """A blob is found under its SHA-256, may be put twice, is listed, and is gone once deleted."""

    async def body(ports: Ports) -> None:
        data = b"model" * 1000
        digest = await ports.blobs.put(data)
        assert digest == hashlib.sha256(data).hexdigest()
        assert await ports.blobs.put(data) == digest
        empty = await ports.blobs.put(b"")
        assert await ports.blobs.get(digest) == data
        assert {d async for d in ports.blobs.list()} == {digest, empty}
        await ports.blobs.delete(digest)
        await ports.blobs.delete(digest)
        with pytest.raises(MissingBlob):
            await ports.blobs.get(digest)

    with_ports(new_ports, body)


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "AB" * 32, "0" * 64])
def test_blob_names_are_digests(new_ports: NewPorts, name: str) -> None:
    """Whatever is not a stored SHA-256 in hex is a missing blob, never a path."""

    async def body(ports: Ports) -> None:
        with pytest.raises(MissingBlob):
            await ports.blobs.get(Digest(name))

    with_ports(new_ports, body)


def test_damaged_memory_blob_is_detected() -> None:
    """A blob in memory whose bytes changed raises CorruptBlob."""

    async def body(ports: Ports) -> None:
        digest = await ports.blobs.put(b"model")
        ports.blobs._blobs[digest] = b"modem"  # type: ignore[attr-defined]
        with pytest.raises(CorruptBlob):
            await ports.blobs.get(digest)

    with_ports(lambda: open_ports("memory:"), body)


@pytest.mark.parametrize("url", ["redis://x", "sqlite:///", "fleet.db", ""])
def test_unknown_engine_is_refused_with_the_known_ones(url: str) -> None:
    """A URL of no engine is refused with a list of the engines."""
    with pytest.raises(PortError, match="known: 'memory:' and 'sqlite:///"):
        open_ports(url)
