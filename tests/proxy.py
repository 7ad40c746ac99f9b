"""A TCP proxy on loopback that does to a connection what networks do: slow, late, cut in the middle, or silent."""

import asyncio
import contextlib
import random
import socket
import struct
import threading
import time
from dataclasses import dataclass
from typing import Literal

from broker_bridge.broker import free_port

PIECE_BYTES = (
    256  # forwarded at a time where a rate is set, so that an update's bytes are spread over its time
)
READ_BYTES = 65_536  # the same without a rate
BUFFER_BYTES = 4096  # of the kernel's receive buffers: what is in there has left its sender
WAITING_MAX = 64  # pieces on their way: more, and the sender is held up
CONNECT_HEAD_BYTES = 9  # of a CONNECT up to the protocol's version, for a remaining length of one byte or two
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close() sends RST


@dataclass(frozen=True)
class Fault:
    """What happens to a connection once so many bytes went through it one way."""

    kind: Literal["cut", "hang"]
    after_bytes: int
    up: bool


def faults(seed, mean_bytes, kinds=("cut", "hang")):
    """An endless schedule, one fault a connection, the same for the same seed."""
    rng = random.Random(seed)
    while True:
        yield Fault(rng.choice(kinds), 1 + int(rng.expovariate(1 / mean_bytes)), rng.random() < 0.5)


class Proxy:
    """Passes connections to `port` on to `target`; `rate` and `down_rate` in bytes a second, `latency_s` one way.

    `plan` gives a Fault for each connection in turn. `refuse5`: a broker that hangs up on MQTT 5.
    """

    def __init__(self, target, *, rate=None, down_rate=None, latency_s=0.0, plan=(), refuse5=False):
        self.rate, self.down_rate, self.latency_s, self.refuse5 = rate, down_rate, latency_s, refuse5
        self.target = target
        self.struck = []  # the faults that happened
        self.connections = 0
        self._plan = iter(plan)
        self._routes = set()
        self._loop = asyncio.new_event_loop()
        listener = socket.create_server(("127.0.0.1", free_port()))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        self.port = listener.getsockname()[1]
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._accept, sock=listener, limit=BUFFER_BYTES))

    def heal(self):
        """No fault strikes from now on."""
        self._call(self._heal)

    def cut(self):
        """Reset every connection, in the middle of whatever it carries."""
        self._call(lambda: [route.cut() for route in list(self._routes)])

    def hang(self):
        """From now on the connections that there are carry nothing, and neither end is told."""
        self._call(lambda: [route.hang() for route in self._routes])

    def close(self):
        """End every connection and the thread."""
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    async def _end(self):
        self._server.close()
        for route in list(self._routes):
            route.cut()
        tasks = asyncio.all_tasks(self._loop) - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # transports that were aborted close their sockets now

    def _heal(self):
        self._plan = iter(())
        for route in self._routes:
            route.fault = None

    def _run(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def _call(self, body):
        async def run():
            body()

        self._run(run())

    async def _accept(self, reader, writer):
        self.connections += 1
        route = _Route(self, reader, writer, next(self._plan, None))
        self._routes.add(route)
        try:
            await route.run()
        except (OSError, EOFError, asyncio.CancelledError):
            pass  # an end that is gone, or the proxy's own
        finally:
            route.cut()
            self._routes.discard(route)


class _Route:
    """One connection through the proxy."""

    def __init__(self, proxy, reader, writer, fault):
        self.proxy, self.fault = proxy, fault
        self._near = (reader, writer)
        self._writers = [writer]
        self._passing = asyncio.Event()
        self._passing.set()

    async def run(self):
        reader, writer = self._near
        if self.proxy.refuse5 and await _is_mqtt5(reader):
            return
        far_reader, far_writer = await asyncio.open_connection(
            "127.0.0.1", self.proxy.target, limit=BUFFER_BYTES
        )
        self._writers.append(far_writer)
        far_writer.write(getattr(reader, "read_ahead", b""))
        ways = [
            asyncio.ensure_future(self._carry(reader, far_writer, up=True)),
            asyncio.ensure_future(self._carry(far_reader, writer, up=False)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    def cut(self):
        """RST to both ends."""
        for writer in self._writers:
            sock = writer.get_extra_info("socket")
            if sock is not None and sock.fileno() >= 0:
                with contextlib.suppress(OSError):  # it is gone already
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()

    def hang(self):
        """Carry nothing any more, and close nothing."""
        self._passing.clear()

    async def _carry(self, source, sink, *, up):
        """One way: read at the rate, hand over after the latency, strike where the plan says."""
        pieces = asyncio.Queue(WAITING_MAX)
        handing = asyncio.ensure_future(self._hand_over(pieces, sink))
        carried = 0
        try:
            while True:
                rate = self.proxy.rate if up else self.proxy.down_rate
                data = await source.read(READ_BYTES if rate is None else PIECE_BYTES)
                if rate is not None:
                    await asyncio.sleep(len(data) / rate)
                fault = self.fault if self.fault is not None and self.fault.up == up else None
                if fault is not None and carried + len(data) >= fault.after_bytes:
                    await pieces.put((0.0, data[: fault.after_bytes - carried]))
                    await pieces.join()
                    self._strike(fault)
                    data = data[fault.after_bytes - carried :]
                carried += len(data)
                await pieces.put((time.monotonic() + self.proxy.latency_s, data))
                if not data and source.at_eof():
                    await pieces.join()
                    sink.write_eof()
                    return
        finally:
            handing.cancel()

    def _strike(self, fault):
        self.fault = None
        self.proxy.struck.append(fault)
        if fault.kind == "hang":
            self.hang()
        else:
            self.cut()
            raise ConnectionResetError

    async def _hand_over(self, pieces, sink):
        while True:
            due, data = await pieces.get()
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            await self._passing.wait()
            sink.write(data)
            with contextlib.suppress(OSError):  # the reader meets the end, too
                await sink.drain()
            pieces.task_done()


async def _is_mqtt5(reader):
    """Whether a CONNECT of MQTT 5 comes; what was read of it is kept for who takes the connection."""
    head = await reader.readexactly(CONNECT_HEAD_BYTES)
    while b"MQTT" not in head or len(head) <= head.index(b"MQTT") + 4:
        head += await reader.readexactly(1)
    reader.read_ahead = head
    return head[head.index(b"MQTT") + 4] == 5
