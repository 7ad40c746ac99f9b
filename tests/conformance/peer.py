"""A plain MQTT client whose every step a test decides, and the brokers it is let loose on."""

import contextlib
import itertools
import queue
import socket
import threading
import time

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

WAIT_S = 30.0  # deadline of a condition; each is met within a second on a quiet machine
HANG_UP_S = 5.0
WEEK_S = 7 * 24 * 3600
ROOT = "fedfleet/1"
NUMBERS = itertools.count()


def until(condition, what, seconds=WAIT_S):
    """Wait for a condition with a deadline; return its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.01)
    return value


class Site:
    """A broker and the protocol version that it is spoken to in; topics and names are the test's own."""

    def __init__(self, broker, version):
        self.broker = broker
        self.version = version
        self.number = next(NUMBERS)
        self.peers = []

    @property
    def port(self):
        """Where the broker speaks this version."""
        return self.broker.port if self.version == "5" else self.broker.port_v311

    @property
    def kind(self):
        """Which broker: mosquitto or iotcore."""
        return self.broker.kind

    def topic(self, text):
        """A topic below `d/<a device of this test>`."""
        return f"{ROOT}/d/dev-{self.number}/{text}"

    def peer(self, name, **options):
        """Connect a client of this name; the same name again is the same session."""
        made = Peer(self.port, f"{name}-{self.number}", self.version, **options)
        self.peers.append(made)
        return made

    def close(self):
        """Disconnect every client."""
        for peer in self.peers:
            peer.close()


class Peer:
    """One connection. `lasting`: the session outlives it. `window`: MQTT 5's Receive Maximum."""

    def __init__(
        self, port, name, version, *, lasting=False, window=None, manual=False, will=None, keepalive=60,
        username="", again=False, packet_max=None,
    ):  # fmt: skip
        five = version == "5"
        self.inbox = queue.Queue()
        self.ended = queue.Queue()
        self.begun = queue.Queue()
        self._acked = {}
        self._news = threading.Condition()
        self._granted = queue.Queue()
        self.client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=name,
            clean_session=None if five else not lasting,
            protocol=paho.MQTTv5 if five else paho.MQTTv311,
            manual_ack=manual,
            reconnect_on_failure=again,
        )
        self.client.reconnect_delay_set(0.05, 0.05)
        self.client.on_connect = lambda _c, _u, flags, why, facts: self.begun.put((flags, why, facts))
        self.client.on_disconnect = lambda _c, _u, _f, why, _p: self.ended.put(str(why))
        self.client.on_message = lambda _c, _u, message: self.inbox.put(message)
        self.client.on_publish = self._on_publish
        self.client.on_subscribe = lambda _c, _u, _m, whys, _p: self._granted.put([w.value for w in whys])
        self.client.on_unsubscribe = lambda *_: self._granted.put([])
        if username:
            self.client.username_pw_set(username, "any")
        if will is not None:
            self._leave(*will, five=five)
        options = {}
        if five:
            wish = Properties(PacketTypes.CONNECT)
            wish.SessionExpiryInterval = WEEK_S if lasting else 0
            if window is not None:
                wish.ReceiveMaximum = window
            if packet_max is not None:
                wish.MaximumPacketSize = packet_max
            options = {"clean_start": not lasting, "properties": wish}
        self.client.connect("127.0.0.1", port, keepalive, **options)
        self.client.loop_start()
        flags, why, facts = _taken(self.begun, "CONNACK")
        assert not why.is_failure, why
        self.resumed = flags.session_present
        self.packet_max = getattr(facts, "MaximumPacketSize", None)

    def _on_publish(self, _client, _data, mid, why, _properties):
        with self._news:
            self._acked[mid] = str(why)
            self._news.notify_all()

    def _leave(self, topic, payload, delay_s=0, *, five):
        properties = None
        if five and delay_s:
            properties = Properties(PacketTypes.WILLMESSAGE)
            properties.WillDelayInterval = delay_s
        self.client.will_set(topic, payload, 1, retain=True, properties=properties)

    def subscribe(self, *filters, qos=1):
        """Subscribe and wait; the granted QoS or failure code of each."""
        self.client.subscribe([(each, qos) for each in filters])
        return _taken(self._granted, "SUBACK")

    def unsubscribe(self, topic):
        """Unsubscribe and wait."""
        self.client.unsubscribe(topic)
        _taken(self._granted, "UNSUBACK")

    def send(self, topic, payload=b"", *, retain=False, expiry_s=None):
        """Publish at QoS 1 and wait for the PUBACK; its reason."""
        properties = None
        if expiry_s is not None:
            properties = Properties(PacketTypes.PUBLISH)
            properties.MessageExpiryInterval = expiry_s
        info = self.client.publish(topic, payload, 1, retain, properties)
        assert info.rc == MQTTErrorCode.MQTT_ERR_SUCCESS, f"{info.rc!r}, ended: {list(self.ended.queue)}"
        with self._news:
            assert self._news.wait_for(lambda: info.mid in self._acked, WAIT_S), f"no PUBACK for {topic}"
            return self._acked.pop(info.mid)

    def next(self):
        """The next message."""
        return _taken(self.inbox, "message")

    def payloads(self, count):
        """Payloads of the next messages, in their order."""
        return [bytes(self.next().payload) for _ in range(count)]

    def upto(self, last):
        """Payloads of all messages that come before the one with payload `last`."""
        found = []
        while (payload := bytes(self.next().payload)) != last:
            found.append(payload)
        return found

    def ack(self, message):
        """Acknowledge by hand."""
        self.client.ack(message.mid, 1)

    def cut(self):
        """End the connection without a DISCONNECT, as a power cut does."""
        sock = self.client.socket()
        if sock is not None:
            with contextlib.suppress(OSError):  # the broker was faster
                sock.shutdown(socket.SHUT_RDWR)
        self.client.loop_stop()
        self.client._sock_close()

    def close(self):
        """DISCONNECT, when it still can, and wait until the broker has hung up (R-036)."""
        line = self._line()
        self.client.disconnect()
        self.client.loop_stop()
        self.client._sock_close()
        if line is not None:
            with line, contextlib.suppress(OSError):  # a broker that is stopped does not hang up
                line.settimeout(HANG_UP_S)
                while line.recv(4096):
                    pass

    def _line(self):
        """The connection by a descriptor of our own, None when it is gone."""
        try:
            return self.client.socket().dup()
        except (AttributeError, OSError):
            return None


def _taken(box, what):
    """The next of a queue, under a deadline."""
    try:
        return box.get(timeout=WAIT_S)
    except queue.Empty:
        raise AssertionError(f"no {what} within {WAIT_S:g} s") from None
