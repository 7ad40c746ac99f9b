"""The engine's memory between restarts: fleet, leases and hold-out figures, with the log offsets they include.

Versions and folded offsets are not here: they live in the manifests (I3), and an offset is stored inside the
state it produced (I2).
"""

import time

import msgspec
import structlog

from aggregator.clocks import waited
from aggregator.fleet import DeviceRecord
from aggregator.job import JobMemo
from broker_bridge.ports import Blobs, CorruptBlob, Digest, Heads, MissingBlob

MEMO_KEY = "memo"
INTERVAL_S = 1.0  # what a crash may make the engine read again
INTERVAL_MAX_S = 30.0  # the same for a large fleet: at most some 30 000 entries, read in under a second
SHARE = 0.01  # of the engine's time that memos may take; 10 000 devices are 3 MB each time

log = structlog.get_logger()


class Memo(msgspec.Struct):
    """Snapshot of everything derived from log entries other than updates."""

    offsets: dict[int, int] = {}
    devices: dict[str, DeviceRecord] = {}
    jobs: dict[str, JobMemo] = {}


class MemoStore:
    """Keeps the newest memo in a blob that the head `memo` names; `saved_at` is in Unix seconds, 0 before the first."""

    def __init__(self, heads: Heads, blobs: Blobs) -> None:
        self._heads = heads
        self._blobs = blobs
        self._revision = 0
        self._digest = ""
        self._interval_s = INTERVAL_S
        self.saved_at = 0.0

    def due(self, now: float) -> bool:
        """Whether it is time for another memo."""
        return waited(self.saved_at, self._interval_s, now)

    async def load(self) -> Memo:
        """The newest memo, an empty one when there is none or it is damaged: what the log still has is read again."""
        self._revision, value = await self._heads.load(MEMO_KEY)
        if not value:
            return Memo()
        self._digest = value.decode()
        try:
            return msgspec.msgpack.decode(await self._blobs.get(Digest(self._digest)), type=Memo)
        except (MissingBlob, CorruptBlob, msgspec.DecodeError) as error:
            log.error("memo.damaged", error=str(error), remedy="what the log still holds is read again")  # noqa: TRY400
            return Memo()

    async def save(self, memo: Memo, now: float) -> None:
        """Replace the memo; raise Conflict when another engine wrote one meanwhile."""
        began, self.saved_at = time.monotonic(), now
        await self._replace(memo)
        cost_s = time.monotonic() - began
        self._interval_s = min(max(INTERVAL_S, cost_s / SHARE), INTERVAL_MAX_S)

    async def _replace(self, memo: Memo) -> None:
        digest = await self._blobs.put(msgspec.msgpack.encode(memo))
        if digest == self._digest:
            return
        self._revision = await self._heads.swing(MEMO_KEY, self._revision, digest.encode())
        if self._digest:
            await self._blobs.delete(Digest(self._digest))
        self._digest = digest
