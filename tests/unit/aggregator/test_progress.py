"""What bridges are told of the aggregator's place in the log."""

import msgspec

from aggregator import progress
from broker_bridge.cells import TAKEN_KEY, TakenCell
from edge_client.wire import topics
from edge_client.wire.messages import DeviceState


def test_bridges_are_told_how_far_the_log_was_taken(drive):
    """I6: the cell follows the cursor, twice a second at most, and an engine at rest writes nothing."""

    async def body(site):
        async def told():
            revision, value = await site.ports.heads.load(TAKEN_KEY)
            return revision, msgspec.json.decode(value, type=TakenCell).offsets[partition]

        async def step_with_an_entry(number):
            await site.say("dev-1", "state", DeviceState("ready", number))
            await site.step()

        partition = topics.partition("dev-1", site.ports.partitions)
        await site.engine.load()
        await step_with_an_entry(1)
        first, offset = await told()
        assert offset == 1
        await step_with_an_entry(2)
        assert await told() == (first, 1)
        site.clock.now += progress.INTERVAL_S
        await site.step()
        second, offset = await told()
        assert (second > first, offset) == (True, 2)
        site.clock.now += progress.INTERVAL_S
        await site.step()
        assert await told() == (second, 2)

    drive(body)
