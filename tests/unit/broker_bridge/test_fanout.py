"""The packets of a delta that is handed out."""

import pytest

from broker_bridge.fanout import packets
from edge_client.chain import Gather
from edge_client.wire import chunks, frame


@pytest.mark.parametrize("limit", [None, 100_000, 10_000, 4096])
@pytest.mark.parametrize("size", [1, 3000, 70_000, 400_000])
def test_every_packet_fits_the_broker_and_together_they_are_the_delta(size, limit):
    """I9: whatever Maximum Packet Size the broker states, no packet is over it and a device gets the delta."""
    delta = frame.encode(frame.Kind.DELTA, bytes(range(256)) * (size // 256) + bytes(size % 256))
    sent = packets(delta, limit)
    gather = Gather()

    assert all(chunks.fits(len(packet), limit) for packet in sent)
    assert [gather.add("job", 1, i, packet) for i, packet in enumerate(sent)][-1] == delta
