"""One lasting MQTT session for asyncio, over paho-mqtt: the only file that knows paho.

paho's sockets are served by the event loop itself: no thread of paho's own competes for the interpreter, and
a message reaches its handler without a hop. Messages are acknowledged by hand, so what is not acknowledged
when this process dies is delivered again. MQTT 5 is preferred; a broker that refuses it gets MQTT 3.1.1.
"""

import asyncio
import contextlib
import random
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import structlog
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from edge_client.wire import chunks
from edge_client.wire.errors import LocalWireError
from edge_client.wire.limits import PACKET_BYTES_ASSUMED

WINDOW = (
    64  # unacknowledged messages the broker may send: 16 to 512 measure the same (bench), and 64 are enough
)
# for 2 000 updates a second while a commit takes 30 ms; full of chunks they are 4 MB
PAUSE_AT = 256  # messages being handled at which reading stops, for brokers that ignore the window
SESSION_EXPIRY_S = 7 * 24 * 3600  # how long the broker keeps messages for a bridge that is away
KEEPALIVE_S = 20  # a dead peer is noticed after one and a half of these
CONNECT_TIMEOUT_S = 10.0  # until the broker must have answered CONNECT
RETRY_MIN_S = 0.25  # first pause before a new attempt, doubled up to the next, each with jitter
RETRY_MAX_S = 15.0
FALLBACK_AFTER = 2  # attempts that the broker ends without an answer before the other version is tried

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Message:
    """A message that came in; `connection` numbers the connection that its `mid` belongs to."""

    topic: str
    payload: bytes
    qos: int
    mid: int
    connection: int


@dataclass(frozen=True, slots=True)
class Presence:
    """What a connection publishes, retained, when it begins, and what the broker publishes when it breaks."""

    topic: str
    birth: bytes
    will: bytes


@dataclass(frozen=True, slots=True)
class _Sent:
    """What waits for the broker to take a message, and whether it outlasts its connection."""

    taken: asyncio.Future[None]
    lasting: bool


class Link:
    """A session with a broker that reconnects by itself for as long as `run` runs.

    `present` is awaited before each attempt to connect, so that every connection has its own birth and will.
    """

    def __init__(
        self,
        host: str,
        port: int,
        client_id: str,
        topics: list[str],
        present: Callable[[], Awaitable[Presence]],
    ) -> None:
        self._address = (host, port)
        self._client_id = client_id
        self._topics = topics
        self._present = present
        self._presence: Presence | None = None
        self._protocol = paho.MQTTv5
        self._client = self._new_client()
        self._unanswered = 0
        self._connections = 0
        self._up = False
        self._news = asyncio.Event()  # set, and replaced, with each new connection
        self._ended = asyncio.Event()
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        self._reading: Any = None  # the socket that the event loop watches
        self._loop = asyncio.get_running_loop()
        self._open = 0  # messages received and not yet acknowledged by the bridge, of any connection
        self._paused = False
        self._unacked: deque[int] = deque()  # messages of this connection, in the order they came
        self._handled: set[int] = set()  # those of them that may be acknowledged
        self._sent: dict[int, _Sent] = {}
        self.packet_bytes_max: int | None = None  # what the broker takes; None when it states no limit

    # -- what the bridge uses -----------------------------------------------------------------------

    async def run(self) -> None:
        """Stay connected until cancelled; then say farewell and disconnect."""
        retry = RETRY_MIN_S
        try:
            while True:
                if await self._connect():
                    retry = RETRY_MIN_S
                    await self._serve()
                await asyncio.sleep(random.uniform(0.5, 1.0) * retry)  # noqa: S311 - jitter is no secret
                retry = min(2 * retry, RETRY_MAX_S)
        finally:
            self._farewell()

    async def receive(self) -> Message:
        """The next message; `ack` it once, whatever becomes of it."""
        return await self._inbox.get()

    def ack(self, message: Message) -> None:
        """Acknowledge a message, unless its connection is gone: then the broker delivers it again.

        MQTT wants acknowledgements in the order of the messages (rumqttd disconnects who does otherwise), so
        one that is early waits for those before it.
        """
        self._open -= 1
        if self._paused and self._open <= PAUSE_AT // 2:
            self._paused = False
            self._watch_reads()
        if not message.qos or not self._up or message.connection != self._connections:
            return
        self._handled.add(message.mid)
        while self._unacked and self._unacked[0] in self._handled:
            mid = self._unacked.popleft()
            self._handled.remove(mid)
            self._client.ack(mid, 1)

    def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, lasting: bool = True
    ) -> asyncio.Future[None]:
        """Publish at QoS 1; the future is done when the broker has taken it, be it after a reconnect.

        What is not `lasting` is given up when its connection is lost, because somebody will ask for it again: its
        future raises LocalWireError then. Raises LocalWireError when the broker does not take packets of this
        size (I9).
        """
        self._check_size(topic, payload)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._send(topic, payload, retain, _Sent(future, lasting))
        return future

    async def connection(self, after: int = 0) -> int:
        """Wait for a connection newer than number `after` to be up, and return its number."""
        while not (self._up and self._connections > after):
            await self._news.wait()
        return self._connections

    def _check_size(self, topic: str, payload: bytes) -> None:
        if not chunks.fits(len(payload), self.packet_bytes_max):
            stated = self.packet_bytes_max
            limit = f"{PACKET_BYTES_ASSUMED} B, as far as is known" if stated is None else f"{stated} B"
            raise LocalWireError(f"{len(payload)} B to {topic}; the broker takes packets of {limit}")

    def _send(self, topic: str, payload: bytes, retain: bool, sent: _Sent) -> None:
        self._sent[self._client.publish(topic, payload, qos=1, retain=retain).mid] = sent

    # -- connecting ---------------------------------------------------------------------------------

    def _new_client(self) -> paho.Client:
        old = self._protocol == paho.MQTTv311
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            clean_session=False if old else None,
            protocol=self._protocol,
            manual_ack=True,
            reconnect_on_failure=False,
        )
        client.max_inflight_messages_set(0)
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_socket_close = self._on_socket_close
        client.on_socket_register_write = self._on_register_write
        client.on_socket_unregister_write = self._on_unregister_write
        return client

    async def _connect(self) -> bool:
        """Open a connection and send CONNECT; whether the broker accepted it."""
        self._presence = await self._present()
        self._ended.clear()
        self._client.will_set(self._presence.topic, self._presence.will, qos=1, retain=True)
        properties: dict[str, Any] = {}
        if self._protocol == paho.MQTTv5:
            wish = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho leaves it untyped
            wish.SessionExpiryInterval = SESSION_EXPIRY_S
            wish.ReceiveMaximum = WINDOW
            properties = {"clean_start": False, "properties": wish}
        host, port = self._address
        try:
            await asyncio.to_thread(self._client.connect, host, port, KEEPALIVE_S, **properties)
        except OSError as error:
            log.warning("broker_unreachable", host=host, port=port, error=str(error))
            return False
        self._reading = self._client.socket()
        self._watch_reads()
        if self._client.want_write():
            self._on_register_write(self._client, None, self._reading)
        return await self._answered()

    async def _answered(self) -> bool:
        waiting = [asyncio.ensure_future(w) for w in (self.connection(self._connections), self._ended.wait())]
        done, rest = await asyncio.wait(
            waiting, timeout=CONNECT_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED
        )
        for task in rest:
            task.cancel()
        if waiting[0] in done:
            self._unanswered = 0
            return True
        self._close_socket()
        self._unanswered += 1
        log.warning("broker_refused", protocol=int(self._protocol), attempts=self._unanswered)
        if self._unanswered >= FALLBACK_AFTER and not self._connections:
            self._unanswered = 0
            self._protocol = paho.MQTTv311 if self._protocol == paho.MQTTv5 else paho.MQTTv5
            self._client = self._new_client()
        return False

    async def _serve(self) -> None:
        """Keep the connection alive until it ends."""
        while not self._ended.is_set():
            self._client.loop_misc()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), 1.0)

    def _farewell(self) -> None:
        if self._up and self._presence is not None:
            self._client.publish(self._presence.topic, self._presence.will, qos=1, retain=True)
            self._client.disconnect()
            self._client.loop_write()  # now: the event loop may not come back to it
        self._close_socket()

    def _close_socket(self) -> None:
        # Without paho's own thread only a read that fails makes it close; shutting down makes it fail.
        reading: Any = self._client.socket()
        if reading is not None:
            with contextlib.suppress(OSError):  # it may have ended on its own
                reading.shutdown(socket.SHUT_RDWR)
            self._client.loop_read()

    # -- paho's callbacks, all on the event loop's thread except while `connect` runs ---------------------

    def _on_connect(self, client: paho.Client, _data: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            log.warning("broker_refused", reason=str(reason))
            return
        self._connections += 1
        self._up = True
        self._unacked.clear()
        self._handled.clear()
        self.packet_bytes_max = getattr(properties, "MaximumPacketSize", None)
        self._send_again()
        if self._protocol == paho.MQTTv5:
            # Retained births are wanted once per session, not after each reconnect.
            options = SubscribeOptions(qos=1, retainHandling=SubscribeOptions.RETAIN_SEND_IF_NEW_SUB)
            client.subscribe([(topic, options) for topic in self._topics])
        else:
            client.subscribe([(topic, 1) for topic in self._topics])
        if self._presence is not None:
            client.publish(self._presence.topic, self._presence.birth, qos=1, retain=True)
        log.info("broker_connected", protocol=int(self._protocol), session_present=flags.session_present)
        self._news.set()
        self._news = asyncio.Event()

    def _on_disconnect(self, _client: paho.Client, _data: Any, _flags: Any, reason: Any, _props: Any) -> None:
        if self._up:
            log.warning("broker_lost", reason=str(reason))
        self._up = False
        self._ended.set()

    def _on_message(self, _client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            topic = ""  # no topic of ours: it is counted and acknowledged as such
        if message.qos:
            self._unacked.append(message.mid)
        self._inbox.put_nowait(
            Message(topic, bytes(message.payload), message.qos, message.mid, self._connections)
        )
        self._open += 1
        if self._open >= PAUSE_AT and self._reading is not None:
            self._paused = True
            self._loop.remove_reader(self._reading)

    def _on_publish(self, _client: paho.Client, _data: Any, mid: int, _reason: Any, _props: Any) -> None:
        sent = self._sent.pop(mid, None)
        if sent is not None and not sent.taken.done():
            sent.taken.set_result(None)

    def _on_socket_close(self, _client: paho.Client, _data: Any, closed: Any) -> None:
        self._loop.remove_reader(closed)
        self._loop.remove_writer(closed)
        self._reading = None

    def _on_register_write(self, client: paho.Client, _data: Any, ready: Any) -> None:
        if ready is self._reading:  # while `connect` runs in a thread it is not yet
            self._loop.add_writer(ready, client.loop_write)

    def _on_unregister_write(self, _client: paho.Client, _data: Any, done: Any) -> None:
        if done is self._reading:
            self._loop.remove_writer(done)

    def _watch_reads(self) -> None:
        if self._reading is not None:
            self._loop.add_reader(self._reading, self._client.loop_read)

    def _send_again(self) -> None:
        """Send what the last connection left unacknowledged and should last, unless this broker refuses it (I9).

        paho would repeat it all, blindly, so it is taken out of paho's hands before it does.
        """
        left = [(m, self._sent.pop(m.mid, None)) for m in self._client.drop_out_messages()]
        for message, sent in left:
            if sent is None or sent.taken.done():
                continue
            if not sent.lasting:
                reason = f"the connection was lost before the broker took {message.topic}"
                sent.taken.set_exception(LocalWireError(reason))
                continue
            try:
                self._check_size(message.topic, bytes(message.payload))
            except LocalWireError as error:
                sent.taken.set_exception(error)
            else:
                self._send(message.topic, bytes(message.payload), message.retain, sent)
