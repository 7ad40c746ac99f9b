"""One MQTT connection kept alive over paho: who we are, when to dial again, and what may be published.

paho's callbacks only put words into the caller's queue. Everything else, publishing too, happens in the
caller's one thread. Each connection is a fresh paho client, so that nothing of a dead one is waited for;
nothing is queued while not connected, because what matters is sent again on connect (outgoing.py).
"""

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edge_client.config import BrokerSection
from edge_client.wire import chunks

SESSION_EXPIRY_S = 7 * 24 * 3600  # receipts and commands wait a week for a device that is away
WILL_DELAY_S = 30  # a device back within this was not lost
RETRY_S = 1.0  # first wait before dialling again; doubles
RETRY_MAX_S = 120.0
HANDSHAKE_S = 20.0  # from dialling to CONNACK
STOP_S = 2.0  # for the farewell to be acknowledged, and again for the network thread to end
SILENCE_FACTOR = 2.5  # keep-alives without a packet from the broker after which the client is taken for dead
INBOX_MAX = 4096  # words waiting in the caller's queue; more is a flood, dropped like a lost message
PACKET_BYTES_MAX = 16 * 1024 * 1024  # received; the largest honest message is a chunk
UNSPECIFIED = 0x80  # paho's reason for a connection that just ended
UNACKED_MAX = 32  # publishes without PUBACK: bounds paho's memory to that many chunks


@dataclass(frozen=True, slots=True)
class Up:
    """Connected; `packet_bytes_max` is what the broker says it takes, None when it does not say."""

    generation: int
    packet_bytes_max: int | None


@dataclass(frozen=True, slots=True)
class Down:
    """Not connected; `reached` tells a refused handshake from a broker that is not there."""

    generation: int
    reason: str
    reached: bool


@dataclass(frozen=True, slots=True)
class Received:
    """A message came."""

    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Acked:
    """The broker took a publish, or (MQTT 5 only) says why not; there may be room for another."""

    generation: int
    message: int  # its id
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class Refused:
    """The broker refused a subscription."""

    reason: str


Word = Up | Down | Received | Acked | Refused


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom to connect as. `will` makes the last will of a connection, given its number; None: no will."""

    client_id: str
    persistent: bool
    will_topic: str = ""
    will: Callable[[], bytes] | None = None


class Transport:
    """The connection. Words go to `put`; `waiting` tells how many of them the caller has not taken."""

    def __init__(
        self,
        broker: BrokerSection,
        *,
        password: str | None,
        identity: Identity,
        put: Callable[[Word], None],
        waiting: Callable[[], int],
        rng: random.Random,
    ) -> None:
        self._broker = broker
        self._password = password
        self._identity = identity
        self.put = put
        self.waiting = waiting
        self._rng = rng
        self._version5 = broker.protocol != "3.1.1"
        self._client: mqtt.Client | None = None
        self._generation = 0
        self._attempts = 0
        self._due: float | None = 0.0
        self._heard = 0.0
        self._unacked = 0
        self.connected = False
        self.packet_bytes_max: int | None = None

    @property
    def room(self) -> bool:
        """True when a chunk can be published without piling up in memory."""
        return self.connected and self._unacked < UNACKED_MAX

    @property
    def protocol(self) -> str:
        """The MQTT version in use."""
        return "5" if self._version5 else "3.1.1"

    @property
    def wake(self) -> float | None:
        """When `tick` is due."""
        if self._client is None:
            return self._due
        return self._heard + self._patience

    def tick(self, now: float) -> str:
        """Dial when it is time; drop a client that is connected in name only. Returns why, or ""."""
        if self._client is None:
            if self._due is not None and now >= self._due:
                self._dial(now)
            return ""
        if now < self._heard + self._patience:
            return ""
        reason = "the broker has been silent" if self.connected else "no answer to CONNECT"
        self.put(Down(self._generation, reason, reached=True))
        self._heard = now
        return reason

    def heard(self, generation: int) -> None:
        """Note a packet from the broker; called by the network thread."""
        if generation == self._generation:
            self._heard = time.monotonic()

    def take(self, word: Up | Down | Acked, now: float) -> bool:
        """Note that the connection came or went; False when the word is about an earlier one."""
        if word.generation != self._generation or self._client is None:
            return False
        if isinstance(word, Acked):
            self._unacked = max(0, self._unacked - 1)
            return True
        if isinstance(word, Up):
            self.connected, self._attempts = True, 0
            self.packet_bytes_max = word.packet_bytes_max
            return True
        if not self.connected and word.reached and self._broker.protocol == "auto":
            self._version5 = not self._version5  # a broker may refuse MQTT 5 by just hanging up
        self._abandon()
        wait = min(RETRY_S * 2**self._attempts, RETRY_MAX_S)
        self._attempts = min(self._attempts + 1, 16)
        self._due = now + wait * (0.5 + self._rng.random())
        return True

    def subscribe(self, *filters: str, qos: int = 1) -> None:
        """Subscribe; a refusal arrives as Refused.

        rumqttd sends retained messages to new sessions only: a resumed one must not rely on seeing them again.
        """
        if self._client is not None:
            self._client.subscribe([(topic, qos) for topic in filters])

    def unsubscribe(self, topic_filter: str) -> None:
        """Give a subscription up."""
        if self._client is not None:
            self._client.unsubscribe(topic_filter)

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> int | None:
        """Hand a message to paho; its id, or None when not connected or larger than the broker takes (I9)."""
        info = self._publish(topic, payload, qos=qos, retain=retain)
        return None if info is None else info.mid

    def stop(self, farewell: tuple[str, bytes] | None = None) -> None:
        """Publish a retained farewell, disconnect, and wait a little for both."""
        self._due = None
        client = self._client
        if client is None:
            return
        if farewell is not None and self.connected:
            sent = self._publish(*farewell, qos=1, retain=True)
            if sent is not None:
                with contextlib.suppress(RuntimeError, ValueError):  # the connection broke: the will says it
                    sent.wait_for_publish(STOP_S)
        self._client, self.connected = None, False
        client.disconnect()
        ending = threading.Thread(target=client.loop_stop, daemon=True)
        ending.start()
        ending.join(STOP_S)

    @property
    def _patience(self) -> float:
        return self._broker.keepalive * SILENCE_FACTOR if self.connected else HANDSHAKE_S

    def _publish(self, topic: str, payload: bytes, *, qos: int, retain: bool) -> mqtt.MQTTMessageInfo | None:
        limit = self.packet_bytes_max
        if self._client is None or not self.connected:
            return None
        if not chunks.fits(len(payload), limit):
            return None
        info = self._client.publish(topic, payload, qos, retain)
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            return None
        self._unacked += 1
        return info

    def _dial(self, now: float) -> None:
        self._generation += 1
        self._heard, self._unacked, self.connected = now, 0, False
        client = self._client = self._make(self._generation)
        threading.Thread(target=self._reach, args=(client, self._generation), daemon=True).start()

    def _reach(self, client: mqtt.Client, generation: int) -> None:
        """TCP connect may block for long, so it has its own thread; afterwards paho's takes over."""
        options: dict[str, Any] = {}
        if client.protocol == MQTTProtocolVersion.MQTTv5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = SESSION_EXPIRY_S if self._identity.persistent else 0
            options = {"clean_start": not self._identity.persistent, "properties": properties}
        try:
            client.connect(self._broker.host, self._broker.port, self._broker.keepalive, **options)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            self.put(Down(generation, f"{self._broker.host}:{self._broker.port}: {why}", reached=False))
            return
        client.loop_start()

    def _make(self, generation: int) -> mqtt.Client:
        five = self._version5
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            self._identity.client_id,
            clean_session=None if five else not self._identity.persistent,
            protocol=MQTTProtocolVersion.MQTTv5 if five else MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
        )
        if self._broker.username:
            client.username_pw_set(self._broker.username, self._password)
        if self._identity.will is not None:
            delay = None
            if five:
                delay = Properties(PacketTypes.WILLMESSAGE)  # type: ignore[no-untyped-call]
                delay.WillDelayInterval = WILL_DELAY_S
            client.will_set(
                self._identity.will_topic, self._identity.will(), 1, retain=True, properties=delay
            )
        client.max_inflight_messages_set(UNACKED_MAX)
        client.max_queued_messages_set(4 * UNACKED_MAX)
        _Listener(self, generation).attach(client)
        return client

    def _abandon(self) -> None:
        """Let go of a client that failed: its thread ends with its socket, and nobody waits for it."""
        client, self._client, self.connected = self._client, None, False
        sock = client.socket() if client is not None else None
        if sock is not None:
            with contextlib.suppress(OSError):  # it is closed already
                cast("socket.socket", sock).shutdown(socket.SHUT_RDWR)


class _Listener:
    """paho's callbacks for one connection; they run in its network thread."""

    def __init__(self, transport: Transport, generation: int) -> None:
        self._transport = transport
        self._generation = generation

    def attach(self, client: mqtt.Client) -> None:
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        client.on_log = self._on_log

    def _on_connect(self, _c: Any, _u: Any, _f: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self._transport.put(Down(self._generation, f"refused: {reason}", reached=True))
        else:
            self._transport.put(Up(self._generation, getattr(properties, "MaximumPacketSize", None)))

    def _on_disconnect(self, _c: Any, _u: Any, _f: Any, reason: Any, _p: Any) -> None:
        why = "the connection broke" if reason.value == UNSPECIFIED else str(reason)
        self._transport.put(Down(self._generation, why, reached=True))

    def _on_message(self, _c: Any, _u: Any, message: mqtt.MQTTMessage) -> None:
        if self._transport.waiting() < INBOX_MAX and len(message.payload) <= PACKET_BYTES_MAX:
            self._transport.put(Received(message.topic, bytes(message.payload)))

    def _on_publish(self, _c: Any, _u: Any, message: int, reason: Any, _p: Any) -> None:
        refusal = f"publish: {reason}" if reason.is_failure else ""
        self._transport.put(Acked(self._generation, message, refusal))

    def _on_subscribe(self, _c: Any, _u: Any, _m: Any, reasons: Any, _p: Any) -> None:
        for reason in reasons:
            if reason.is_failure:
                self._transport.put(Refused(f"subscribe: {reason}"))

    def _on_log(self, _c: Any, _u: Any, _level: Any, text: str) -> None:
        if text.startswith("Received"):  # the only word paho gives of a PINGRESP
            self._transport.heard(self._generation)
