"""The bound on what the bridge appends and the aggregator has not taken."""

import asyncio

import msgspec
import pytest

from broker_bridge.backlog import Backlog
from broker_bridge.cells import TAKEN_KEY, TakenCell
from broker_bridge.ports.open import open_ports


def waits(backlog):
    """Whether another entry has to wait."""

    async def body():
        try:
            await asyncio.wait_for(backlog.room(), 0.01)
        except TimeoutError:
            return True
        return False

    return asyncio.run(body())


@pytest.mark.parametrize(("entries_max", "bytes_max"), [(3, 10**9), (10**9, 30)])
def test_room_is_waited_for_at_either_bound(entries_max, bytes_max):
    """I6: at so many entries, or bytes, that are not taken, over all partitions, the next one waits for room."""
    backlog = Backlog(None, entries_max, bytes_max)
    for partition, offset in ((0, 1), (1, 1)):
        backlog.appended(partition, offset, 10)
    assert not waits(backlog)
    backlog.appended(0, 2, 10)
    assert waits(backlog)
    backlog.take({0: 0, 1: 1})
    assert not waits(backlog)
    assert backlog.entries == 2


def test_what_an_earlier_bridge_appended_counts():
    """The first offset tells how much was there before; an entry that was found to be there already adds nothing."""
    backlog = Backlog(None, entries_max=100)
    backlog.take({0: 40})
    backlog.appended(0, 90, 10)
    backlog.appended(0, 90, 10)
    backlog.appended(0, 30, 10)
    assert backlog.entries == 50
    backlog.appended(0, 140, 10)
    assert waits(backlog)


def test_an_aggregator_that_begins_earlier_again_is_ahead_of_nothing():
    """After a crash it reads some entries twice; they count as not taken until then."""
    backlog = Backlog(None, entries_max=10)
    backlog.appended(0, 9, 10)
    backlog.take({0: 9})
    backlog.take({0: 5})
    assert backlog.entries == 4
    backlog.take({0: 9})
    assert backlog.entries == 0


def test_the_cell_is_followed_from_what_it_holds():
    """A bridge that starts later knows at once how far the aggregator is, and then hears of more."""

    async def body():
        ports = open_ports("memory:")

        async def say(offset):
            revision, _ = await ports.heads.load(TAKEN_KEY)
            await ports.heads.swing(TAKEN_KEY, revision, msgspec.json.encode(TakenCell({0: offset})))

        await say(5)
        backlog = Backlog(ports.heads, entries_max=10)
        backlog.appended(0, 12, 10)
        following = asyncio.create_task(backlog.follow())
        async with asyncio.timeout(5):
            await backlog.room()
            backlog.appended(0, 20, 10)
            await say(12)
            await backlog.room()
        following.cancel()
        await ports.close()

    asyncio.run(body())
