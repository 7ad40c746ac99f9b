"""The engine's memory between restarts: fleet, leases and hold-out figures, with the log offsets they include.

Versions and folded offsets are not here: they live in the manifests (I3), and an offset is stored inside the
state it produced (I2).
"""

import msgspec
import structlog

from aggregator.fleet import DeviceRecord
from aggregator.job import JobMemo
from broker_bridge.ports import Blobs, CorruptBlob, Digest, Heads, MissingBlob

MEMO_KEY = "memo"
log = structlog.get_logger()


class Memo(msgspec.Struct):
    """Snapshot of everything derived from log entries other than updates."""

    offsets: dict[int, int] = {}
    devices: dict[str, DeviceRecord] = {}
    jobs: dict[str, JobMemo] = {}


class MemoStore:
    """Keeps the newest memo in a blob that the head `memo` names."""

    def __init__(self, heads: Heads, blobs: Blobs) -> None:
        self._heads = heads
        self._blobs = blobs
        self._revision = 0
        self._digest = ""

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

    async def save(self, memo: Memo) -> None:
        """Replace the memo; raise Conflict when another engine wrote one meanwhile."""
        digest = await self._blobs.put(msgspec.msgpack.encode(memo))
        if digest == self._digest:
            return
        self._revision = await self._heads.swing(MEMO_KEY, self._revision, digest.encode())
        if self._digest:
            await self._blobs.delete(Digest(self._digest))
        self._digest = digest
