"""Deltas that the broker hands out as versions are made: what of them this device can use. Pure.

A device that follows a job keeps each delta that starts from the newest version it can build, so that its next
training starts from there without a pull. A gap cannot be mended: it stops following, and pulls.
"""

import struct
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Literal

from edge_client.wire import chunks, frame
from edge_client.wire.errors import RemoteWireError
from edge_client.wire.limits import FANOUT_BYTES_MAX

DELTAS_MAX = 32  # kept unapplied: their files, and seconds of work before a training
_HEAD = struct.Struct("<II8s")  # of a model frame's body (docs/wire.md §8)


@dataclass(frozen=True, slots=True)
class Delta:
    """A DELTA frame by what it says: from version `base` to `version`, whose model has this hash (hex)."""

    base: int
    version: int
    model_hash: str
    digest: str  # SHA-256 of the frame, hex
    size: int


def read(data: bytes, expected: int) -> Delta:
    """What the DELTA frame to version `expected` says of itself; the trainer child reads its values.

    Raises RemoteWireError when it is none, or leads elsewhere.
    """
    kind, _, body = frame.decode(data)
    if kind is not frame.Kind.DELTA or len(body) < _HEAD.size:
        raise RemoteWireError("bad_frame", f"a {kind.name} frame of {len(data)} B where a DELTA was expected")
    version, base, model_hash = _HEAD.unpack_from(body)
    if (base, version) != (expected - 1, expected):
        raise RemoteWireError("bad_frame", f"a delta from version {base} to {version} as that to {expected}")
    return Delta(base, version, model_hash.hex(), sha256(data).hexdigest(), len(data))


@dataclass(slots=True)
class Chain:
    """The versions a device can build: `base` (None: none), and what `deltas` lead to from there, one by one."""

    base: int | None
    deltas: list[Delta] = field(default_factory=list)

    @property
    def top(self) -> int | None:
        """The newest of them."""
        return self.deltas[-1].version if self.deltas else self.base

    def take(self, delta: Delta) -> Literal["kept", "known", "gap"]:
        """Keep a delta that goes on from the top; `gap` when it cannot be used, nor any later one."""
        if self.top is not None and delta.version <= self.top:
            return "known"
        full = len(self.deltas) >= DELTAS_MAX or sum(d.size for d in self.deltas) >= FANOUT_BYTES_MAX
        if delta.base != self.top or full:
            return "gap"
        self.deltas.append(delta)
        return "kept"

    def reaches(self, version: int, model_hash: str) -> bool:
        """True when one of the deltas leads to this version of this hash."""
        return any((d.version, d.model_hash) == (version, model_hash) for d in self.deltas)

    def upto(self, version: int | None) -> list[Delta] | None:
        """The deltas that lead from the base to a version; None when they do not."""
        if version == self.base:
            return []
        found = [d for d in self.deltas if version is not None and d.version <= version]
        return found if found and found[-1].version == version else None

    def rebase(self, version: int | None) -> None:
        """This version is the base now; deltas that go on from it stay."""
        self.deltas = [d for d in self.deltas if version is not None and d.version > version]
        if self.deltas and self.deltas[0].base != version:
            self.deltas = []
        self.base = version


class Gather:
    """Puts a delta's chunks together, which arrive in order or not at all; one delta at a time.

    What was begun is given up when another delta comes: memory is bounded by one of FANOUT_BYTES_MAX.
    """

    def __init__(self) -> None:
        self._key: tuple[str, int, bytes] | None = None
        self._parts: list[bytes] = []

    def add(self, job: str, version: int, index: int, payload: bytes) -> bytes | None:
        """The delta's frame when this packet completes it; raises RemoteWireError when a part is missing."""
        if len(payload) > 2 and payload[2] != frame.Kind.CHUNK and not index:
            return payload
        part = chunks.decode(frame.decode(payload)[2])
        if part.size > FANOUT_BYTES_MAX:
            raise RemoteWireError("too_large", f"a delta of {part.size} B is over {FANOUT_BYTES_MAX} B")
        key = (job, version, part.digest)
        if part.index == 0 and key != self._key:
            self._key, self._parts = key, []
        if key != self._key or part.index != index or index > len(self._parts):
            raise RemoteWireError("bad_chunk", f"chunk {index} of version {version} does not follow")
        if index == len(self._parts):  # an earlier one came twice
            if sum(map(len, self._parts)) + len(part.data) > part.size:
                raise RemoteWireError("bad_chunk", f"chunks of version {version} are longer than they said")
            self._parts.append(part.data)
        if len(self._parts) < part.count:
            return None
        whole = b"".join(self._parts)
        self._key, self._parts = None, []
        if len(whole) != part.size or sha256(whole).digest()[:8] != part.digest:
            raise RemoteWireError("bad_chunk", f"the delta to version {version} is not what its chunks said")
        return whole
