"""Puts the chunks of an update together again. Pure: time comes in as an argument, nothing goes out.

A chunk is acknowledged to the broker once it is buffered here, so the receive window never fills with
partial updates; what a crash or a limit loses from these buffers the device is asked for again (I1).
"""

import hashlib
import itertools
from collections import OrderedDict
from dataclasses import dataclass, field

from edge_client.wire.chunks import Chunk
from edge_client.wire.errors import RemoteWireError
from edge_client.wire.topics import Uid

PARTIALS_PER_DEVICE_MAX = 4  # a device has one unreceipted update per job and serves a handful of jobs
BYTES_MAX = 256 * 1024 * 1024  # buffered over all devices: four updates of the largest allowed size
AGE_MAX_S = 900.0  # a partial this long without news is forgotten; its next chunk starts it anew
IDLE_S = 2.0  # silence after which the missing chunks are asked for; doubled with each ask
RANGES_MAX = 256  # ranges named in one ask, so that the receipt stays far below JSON_BYTES_MAX

Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Whole:
    """A complete update and the bytes of all packets that brought it, repeated ones included."""

    data: bytes
    wire_bytes: int


@dataclass(slots=True)
class _Partial:
    count: int
    size: int
    digest: bytes
    touched: float
    ask_at: float
    asks: int = 0
    wire_bytes: int = 0
    parts: dict[int, bytes] = field(default_factory=dict)

    def bytes_held(self) -> int:
        return sum(map(len, self.parts.values()))


class Reassembly:
    """The partial updates of all devices; what exceeds a limit drops the partial that is longest without news."""

    def __init__(self, bytes_max: int = BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._partials: OrderedDict[Uid, _Partial] = OrderedDict()  # least recently touched first
        self._devices: dict[str, OrderedDict[Uid, None]] = {}  # the same order for each device

    def __len__(self) -> int:
        return len(self._partials)

    def __contains__(self, uid: Uid) -> bool:
        return uid in self._partials

    @property
    def bytes_held(self) -> int:
        """Bytes of all buffered chunks."""
        return self._bytes

    def add(self, uid: Uid, chunk: Chunk, packet_bytes: int, now: float) -> Whole | None:
        """Buffer a chunk; return the update when it was the last one that was missing.

        Raises RemoteWireError and forgets the partial: `conflict` when the chunk is of another update than
        those before it, `bad_chunk` when the chunks do not add up to what their headers say.
        """
        partial = self._partials.get(uid)
        if partial is None:
            partial = _Partial(chunk.count, chunk.size, chunk.digest, now, now + IDLE_S)
            self._partials[uid] = partial
            self._devices.setdefault(uid.device, OrderedDict())[uid] = None
        if (chunk.count, chunk.size, chunk.digest) != (partial.count, partial.size, partial.digest):
            self.forget(uid)
            raise RemoteWireError(
                "conflict", f"chunk {chunk.index} belongs to another update than those before"
            )
        self._touch(uid, partial, now)
        partial.wire_bytes += packet_bytes
        if chunk.index not in partial.parts:
            partial.parts[chunk.index] = chunk.data
            self._bytes += len(chunk.data)
        if len(partial.parts) == partial.count or partial.bytes_held() > partial.size:
            self.forget(uid)
            return Whole(_join(partial), partial.wire_bytes)
        self._evict(uid)
        return None

    def forget(self, uid: Uid) -> None:
        """Drop a partial; harmless when there is none."""
        partial = self._partials.pop(uid, None)
        if partial is None:
            return
        self._bytes -= partial.bytes_held()
        own = self._devices[uid.device]
        del own[uid]
        if not own:
            del self._devices[uid.device]

    def missing(self, uid: Uid) -> Ranges:
        """The first RANGES_MAX ranges of missing chunks, both ends included."""
        partial = self._partials[uid]
        return tuple(itertools.islice(_gaps(partial), RANGES_MAX))

    def overdue(self, now: float) -> list[Uid]:
        """Partials whose missing chunks are to be asked for now; those over AGE_MAX_S are forgotten.

        Each ask doubles the silence before the next.
        """
        while self._partials:
            oldest = next(iter(self._partials))
            if self._partials[oldest].touched + AGE_MAX_S > now:
                break
            self.forget(oldest)
        due = [uid for uid, partial in self._partials.items() if partial.ask_at <= now]
        for uid in due:
            partial = self._partials[uid]
            partial.asks += 1
            partial.ask_at = now + IDLE_S * 2**partial.asks
        return due

    def _touch(self, uid: Uid, partial: _Partial, now: float) -> None:
        partial.touched = now
        partial.asks = 0
        partial.ask_at = now + IDLE_S
        self._partials.move_to_end(uid)
        self._devices[uid.device].move_to_end(uid)

    def _evict(self, newest: Uid) -> None:
        own = self._devices[newest.device]
        if len(own) > PARTIALS_PER_DEVICE_MAX:
            self.forget(next(iter(own)))
        while self._bytes > self._bytes_max:
            self.forget(next(iter(self._partials)))


def _gaps(partial: _Partial) -> "itertools.chain[tuple[int, int]]":
    held = [-1, *sorted(partial.parts), partial.count]
    return itertools.chain(
        (before + 1, after - 1) for before, after in itertools.pairwise(held) if after - before > 1
    )


def _join(partial: _Partial) -> bytes:
    data = b"".join(partial.parts[index] for index in sorted(partial.parts))
    if len(data) != partial.size:
        raise RemoteWireError("bad_chunk", f"chunks of {len(data)} B for an update of {partial.size} B")
    if hashlib.sha256(data).digest()[: len(partial.digest)] != partial.digest:
        raise RemoteWireError("bad_chunk", "the chunks do not have the digest that they name")
    return data
