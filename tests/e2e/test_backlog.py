"""The bridge when nobody takes what it appends."""

import asyncio

import msgspec
import pytest

from broker_bridge import cells
from broker_bridge.backlog import ENTRIES_MAX
from broker_bridge.ports import Kind
from edge_client.wire import messages, topics
from edge_client.wire.messages import DeviceState

HELD = 100  # messages that come while there is no room


@pytest.mark.parametrize("broker", ["mosquitto"], indirect=True)
def test_an_aggregator_that_stands_still_makes_the_bridge_stop_acknowledging(rig, tools):
    """I1, I6: at the bound of entries that are not taken updates and events wait, and with room each is answered."""
    device = rig.device("pi-1")

    async def fill(ports):
        partition = topics.partition(device.name, ports.partitions)
        names = (f"event:filler:{number}" for number in range(ENTRIES_MAX))
        await asyncio.gather(*(ports.log.append(partition, name, Kind.EVENT, b"") for name in names))
        return partition

    partition = rig.call(fill)
    last = device.uid(1)
    assert device.verdict(last, tools.update(last)).verdict == "accepted"
    tools.until(lambda: "backlog_full" in rig.log_text(), "the bridge says that it waits")
    tools.until(lambda: rig.counters().untaken == ENTRIES_MAX + 1, "the entries are counted")
    for number in range(HELD):
        device.send(topics.state(device.name), messages.encode(DeviceState("ready", number + 1)))
    waiting = device.uid(2)
    device.send(topics.update(waiting, 0), tools.update(waiting))
    tools.until(lambda: rig.counters().messages_up > HELD / 2, "the bridge has them")
    assert newest(rig, partition) == ENTRIES_MAX + 1
    assert device.receipts.empty()

    rig.kill_bridge()
    rig.start_bridge()
    tools.until(
        lambda: newest(rig, partition) == ENTRIES_MAX + 2, "one entry tells a new bridge of the others"
    )
    rig.swing(cells.TAKEN_KEY, msgspec.json.encode(cells.TakenCell({partition: ENTRIES_MAX + 1})))

    assert device.receipt(waiting).verdict == "accepted"
    assert rig.call(lambda ports: ports.log.find(partition, str(waiting))).kind is Kind.UPDATE


def newest(rig, partition):
    """The offset of the partition's last entry."""
    entries = rig.call(lambda ports: ports.log.read(partition, ENTRIES_MAX, 10 * HELD))
    return entries[-1].offset if entries else ENTRIES_MAX
