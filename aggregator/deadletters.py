"""Log entries that could not be taken, put aside with the reason, so that they never block what is behind them.

Admission refuses what is wrong, so such an entry was damaged since, or shows a bug. It is kept as it was: the head
`dead/<partition>/<offset>` says why and names the blob of its body.
"""

import contextlib
from dataclasses import dataclass

import msgspec

from aggregator.heads import decode_head
from broker_bridge.ports import Blobs, Conflict, Entry, Heads

PREFIX = "dead/"
LETTERS_MAX = 1000  # more are the fault of the program, which then ends instead of passing over the log


class DeadLetter(msgspec.Struct, frozen=True):
    """An entry that was put aside; `body` is the digest of its blob, `at` Unix time."""

    at: float
    uid: str
    kind: int
    reason: str
    body: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where an entry is in the log."""

    partition: int
    offset: int


class DeadLetters:
    """All that were put aside, by their place in the log."""

    def __init__(self, heads: Heads, blobs: Blobs) -> None:
        self._heads = heads
        self._blobs = blobs
        self.letters: dict[Place, DeadLetter] = {}

    async def load(self) -> None:
        """Read what was put aside before; raise CorruptStateError."""
        for change in await self._heads.list(PREFIX):
            partition, _, offset = change.key.removeprefix(PREFIX).partition("/")
            self.letters[Place(int(partition), int(offset))] = decode_head(
                change.key, change.value or b"", DeadLetter
            )

    def __contains__(self, place: Place) -> bool:
        return place in self.letters

    @property
    def full(self) -> bool:
        """Whether no further one is put aside."""
        return len(self.letters) >= LETTERS_MAX

    async def put(self, place: Place, entry: Entry, reason: str, at: float) -> None:
        """Put an entry aside durably; raise StorageError."""
        body = await self._blobs.put(entry.body)
        letter = DeadLetter(at, entry.uid, entry.kind.value, reason, body)
        with contextlib.suppress(Conflict):  # another engine found the same
            await self._heads.swing(
                f"{PREFIX}{place.partition}/{place.offset}", 0, msgspec.json.encode(letter)
            )
        self.letters[place] = letter
