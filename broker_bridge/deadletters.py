"""Messages on which the bridge itself failed: kept with the reason, and out of the way of those behind them.

Admission answers what is wrong with a message, so such a one shows a bug. The newest few are kept, in the heads
`poison/<place>`.
"""

import asyncio
import contextlib
import hashlib

import msgspec

from broker_bridge.ports import Heads

PREFIX = "poison/"
LETTERS_MAX = 64  # kept; the oldest makes room for the newest, so that a flood of them fills no disk
PAYLOAD_BYTES_MAX = 16 * 1024  # kept of each: whole updates of small models, the beginning of others


class DeadMessage(msgspec.Struct, frozen=True):
    """A message put aside; `number` counts them, `at` is Unix time, `size` (bytes) and `digest` the whole's."""

    number: int
    at: float
    topic: str
    reason: str
    size: int
    digest: str
    payload: bytes  # at most its first PAYLOAD_BYTES_MAX bytes


class DeadMessages:
    """Writes them; one process does."""

    def __init__(self, heads: Heads) -> None:
        self._heads = heads
        self._next: int | None = None
        self._writing = (
            asyncio.Lock()
        )  # devices are served side by side, and each letter has a place of its own

    async def put(self, topic: str, payload: bytes, reason: str, at: float) -> None:
        """Put a message aside durably; raise StorageError."""
        async with self._writing:
            if self._next is None:
                kept = await read(self._heads)
                self._next = kept[-1].number + 1 if kept else 0
            number, digest = self._next, hashlib.sha256(payload).hexdigest()
            letter = DeadMessage(number, at, topic, reason, len(payload), digest, payload[:PAYLOAD_BYTES_MAX])
            key = f"{PREFIX}{number % LETTERS_MAX}"
            revision, _ = await self._heads.load(key)
            await self._heads.swing(key, revision, msgspec.json.encode(letter))
            self._next = number + 1


async def read(heads: Heads) -> list[DeadMessage]:
    """All that are kept and can be read, oldest first; a damaged one must not stop the bridge from keeping others."""
    letters = []
    for change in await heads.list(PREFIX):
        with contextlib.suppress(msgspec.DecodeError):
            letters.append(msgspec.json.decode(change.value or b"", type=DeadMessage))
    return sorted(letters, key=lambda letter: letter.number)
