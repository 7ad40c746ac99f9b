"""What messages weigh: MQTT 5 packets at QoS 1, acknowledged, in TCP segments over Ethernet.

PUBLISH: fixed header of 2 to 5 B, topic with its length, packet identifier, property length, payload (MQTT 5 §3.3);
PUBACK: 4 B the other way (§3.4.2.1). A segment carries up to 1448 B behind 52 B of IPv4 and TCP headers with
timestamps; the PUBACK's segment acknowledges those of its PUBLISH. No TLS, no retransmissions.
"""

from dataclasses import dataclass

from edge_client.wire import chunks
from edge_client.wire.limits import BLOB_WINDOW_MAX, CHUNK_BYTES
from edge_client.wire.messages import BlobRef, BlobRequest, encode

SEGMENT_BYTES = 1448  # of payload, on Ethernet with TCP timestamps
HEADER_BYTES = 52  # of IPv4 and TCP of a segment
PUBACK_BYTES = 4 + HEADER_BYTES


def packet(topic: str, payload: int) -> int:
    """Bytes on the wire of a PUBLISH with this much payload."""
    rest = 2 + len(topic) + 2 + 1 + payload
    size = 1 + max(1, -(-rest.bit_length() // 7)) + rest
    return size + HEADER_BYTES * -(-size // SEGMENT_BYTES)


def update_payloads(size: int) -> list[int]:
    """Payloads of the packets that carry an update frame of `size` bytes (docs/wire.md §5)."""
    total = chunks.count(size, CHUNK_BYTES)
    if total == 1:
        return [size]
    return [min(CHUNK_BYTES, size - i * CHUNK_BYTES) + chunks.OVERHEAD_BYTES for i in range(total)]


@dataclass(slots=True)
class Traffic:
    """Bytes so far, of all devices together.

    `frames` are update frames, `model` deltas and key-frames and `bundles` bundles, without packets around them; `up`
    and `down` is everything.
    """

    up: int = 0
    down: int = 0
    frames: int = 0
    model: int = 0
    bundles: int = 0

    def say(self, topic: str, payload: int) -> None:
        """A device publishes."""
        self.up += packet(topic, payload)
        self.down += PUBACK_BYTES

    def tell(self, topic: str, payload: int) -> None:
        """A device is sent something."""
        self.down += packet(topic, payload)
        self.up += PUBACK_BYTES

    def hand(self, topic: str, size: int) -> None:
        """The broker hands a device a delta of `size` bytes, at QoS 0: without a packet identifier or a PUBACK."""
        self.model += size
        for payload in update_payloads(size):
            self.down += packet(topic, payload) - 2
            self.up += HEADER_BYTES

    def subscribe(self, wanted: str) -> None:
        """A device begins to listen, or ceases to: (UN)SUBSCRIBE of one filter and its acknowledgement."""
        self.up += 2 + 2 + 1 + 2 + len(wanted) + 1 + HEADER_BYTES
        self.down += 2 + 2 + 1 + 1 + HEADER_BYTES

    def update(self, topic: str, size: int) -> None:
        """A device publishes an update frame of `size` bytes, in chunks where it is large."""
        self.frames += size
        for payload in update_payloads(size):
            self.say(topic, payload)

    def pull(self, blob: BlobRef, get_topic: str, blob_topic: str) -> None:
        """A device pulls a blob by windows of chunks."""
        total = chunks.count(blob.size, CHUNK_BYTES)
        for first in range(0, total, BLOB_WINDOW_MAX):
            request = BlobRequest(blob.digest, first, min(BLOB_WINDOW_MAX, total - first), CHUNK_BYTES)
            self.say(get_topic, len(encode(request)))
        for index in range(total):
            self.tell(blob_topic, min(CHUNK_BYTES, blob.size - index * CHUNK_BYTES))
