"""The socket that the API is served on."""

import asyncio
import socket

import pytest

from aggregator.__main__ import _claim
from aggregator.errors import AggregatorError


def test_an_answer_does_not_wait_for_an_acknowledgement():
    """Accepted connections send at once (TCP_NODELAY): an answer is two writes, and the second would wait for an ACK."""

    async def main():
        accepted = asyncio.get_running_loop().create_future()
        with _claim("127.0.0.1", 0) as listener:
            server = await asyncio.start_server(lambda _, writer: accepted.set_result(writer), sock=listener)
            _, mine = await asyncio.open_connection(*listener.getsockname())
            writer = await accepted
            found = writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            for one in (mine, writer):
                one.close()
            server.close()
            await server.wait_closed()
        return found

    assert asyncio.run(asyncio.wait_for(main(), 5))


def test_a_taken_port_is_named():
    """Who starts a second server on a port is told which and what to do."""
    with _claim("127.0.0.1", 0) as listener:
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(AggregatorError, match=f"port {port} on 127.0.0.1 is not free"):
            _claim("127.0.0.1", port)
