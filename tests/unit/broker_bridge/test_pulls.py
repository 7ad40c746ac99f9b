"""Blobs on their way to devices: what is still being sent is not sent once more."""

import asyncio

import pytest

from broker_bridge.counters import Counters
from broker_bridge.ports import open_ports
from broker_bridge.pulls import Pulls
from edge_client.wire.errors import RemoteWireError
from edge_client.wire.messages import BlobRequest


class Held:
    """A link over which nothing gets through until it is let go."""

    def __init__(self):
        self.sent = []
        self.full = asyncio.Event()

    def publish(self, _topic, _payload, *, lasting):
        assert not lasting, "chunks outlast no connection"
        self.sent.append(asyncio.get_running_loop().create_future())
        if len(self.sent) == 6:
            self.full.set()
        return self.sent[-1]


def test_a_request_that_is_being_served_is_not_served_again():
    """I6: a device that is impatient over a slow link gets one copy; after that one it may ask again."""

    async def main():
        ports, link = open_ports("memory:"), Held()
        pulls = Pulls(link, ports.blobs, Counters(ports.heads, "main"))
        request = BlobRequest(await ports.blobs.put(bytes(3000)), 0, 16, 1024)
        pulls.request("dev-a", request)
        with pytest.raises(RemoteWireError) as error:
            pulls.request("dev-a", request)
        assert error.value.code == "busy"
        pulls.request("dev-b", request)
        async with asyncio.timeout(10):
            await link.full.wait()
        for future in link.sent:
            future.set_result(None)
        await asyncio.gather(*pulls._tasks)
        pulls.request("dev-a", request)
        await pulls.close()
        await ports.close()

    asyncio.run(main())
