"""Blobs pulled over MQTT in windows of chunks, resumed after a crash, verified before they have a name.

`Transfer` is the pure core of one blob; `Puller` keeps the files and takes one blob at a time. Requests are
returned to the caller, who publishes them.
"""

import hashlib
import os
from collections import deque
from pathlib import Path

from edge_client.events import Pulled, PullFailed
from edge_client.storage import sync_folder, write_whole
from edge_client.wire.limits import BLOB_WINDOW_MAX, CHUNK_BYTES, FRAME_BYTES_MAX
from edge_client.wire.messages import BlobRef, BlobRequest

ANSWER_WAIT_S = 4.0  # for the rest of a window, at first; 1 MiB at 2 Mbit/s
ANSWER_WAIT_MAX_S = 60.0
TIMEOUTS_MAX = 10  # windows in a row without one new chunk, about 7 minutes: then the pull fails
DAMAGED_MAX = 3  # times a blob may arrive with the wrong digest before the pull fails
BLOB_BYTES_MAX = 4 * FRAME_BYTES_MAX  # a bundle: three graphs and a key-frame, each below FRAME_BYTES_MAX
PART = ".part"

Step = BlobRequest | Pulled | PullFailed


class Transfer:
    """What is known of one blob: everything before chunk `next`, and a few chunks after it."""

    def __init__(
        self, blob: BlobRef, chunk_bytes: int, chunks_had: int, wait_s: float = ANSWER_WAIT_S
    ) -> None:
        self.blob = blob
        self.wait_s = wait_s  # doubled when it was too short, for good: what is asked for twice comes twice
        self.chunk_bytes = chunk_bytes
        self.next = chunks_had
        self.due = 0.0
        self.timeouts = 0
        self._early: dict[int, bytes] = {}
        self._asked = chunks_had  # the first chunk not asked for yet

    @property
    def count(self) -> int:
        """Number of chunks."""
        return -(-self.blob.size // self.chunk_bytes)

    @property
    def complete(self) -> bool:
        """True when everything is there."""
        return self.next >= self.count

    def chunk(self, index: int, payload: bytes) -> bytes:
        """Take a chunk; return the bytes that now follow what is there (none when it is early or unexpected)."""
        expected = min(self.chunk_bytes, self.blob.size - index * self.chunk_bytes)
        if not self.next <= index < self._asked or len(payload) != expected:
            return b""
        self.timeouts = 0
        self._early[index] = payload
        ready = []
        while self.next in self._early:
            ready.append(self._early.pop(self.next))
            self.next += 1
        return b"".join(ready)

    def request(self, now: float) -> BlobRequest | None:
        """The request to send at `now`: the next window, or what is missing of a late one."""
        if self.complete or (self.next < self._asked and now < self.due):
            return None
        late = self.next < self._asked
        if late:
            self.timeouts += 1
            self.wait_s = min(2 * self.wait_s, ANSWER_WAIT_MAX_S)
        gap_end = min(self._early, default=self.count) if late else self.count
        end = min(gap_end, self.next + BLOB_WINDOW_MAX)
        self._asked = max(self._asked, end)
        self.due = now + self.wait_s
        return BlobRequest(self.blob.digest, self.next, end - self.next, self.chunk_bytes)

    def hurry(self, now: float) -> None:
        """The bridge came back: silence while it was away says nothing of the link, so it counts for nothing."""
        self.wait_s = max(self.wait_s / 2**self.timeouts, ANSWER_WAIT_S)
        self.timeouts = 0
        self.due = min(self.due, now + self.wait_s)


class Puller:
    """The blobs of a device: files named by their SHA-256, and one transfer at a time.

    Every method returns the requests to publish and the outcomes, in order. An OSError of storage leaves the blob
    to be pulled: the next `tick` goes on with what is on disk.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._waiting: deque[BlobRef] = deque()
        self._transfer: Transfer | None = None
        self._hash = hashlib.sha256()
        self._chunk_bytes = CHUNK_BYTES
        self._connected = False
        self._wait_s = ANSWER_WAIT_S  # as far as it is known of this connection
        self._damaged = 0

    def path(self, digest: str) -> Path:
        """Where a pulled blob is."""
        return self._folder / digest

    @property
    def wake(self) -> float | None:
        """When `tick` is due; None when nothing is on its way."""
        return self._transfer.due if self._transfer is not None and self._connected else None

    def want(self, blob: BlobRef, now: float) -> list[Step]:
        """Pull a blob unless it is here."""
        if self.path(blob.digest).exists():
            return [Pulled(blob.digest)]
        if blob.size > BLOB_BYTES_MAX:
            return [PullFailed(blob.digest, f"{blob.size} B is over {BLOB_BYTES_MAX} B")]
        current = self._transfer.blob if self._transfer is not None else None
        if blob != current and blob not in self._waiting:
            self._waiting.append(blob)
        return self.tick(now)

    def put(self, digest: str, data: bytes) -> None:
        """Keep a blob that came by itself; `data` has this digest."""
        write_whole(self.path(digest), data)

    def connected(self, chunk_bytes: int, now: float) -> list[Step]:
        """The broker is there and takes chunks of this size; what was asked for is asked for again."""
        self._chunk_bytes = chunk_bytes
        self._connected = True
        self._wait_s = ANSWER_WAIT_S
        if self._transfer is not None:
            self._waiting.appendleft(self._transfer.blob)
            self._transfer = None
        return self.tick(now)

    def hurry(self, now: float) -> None:
        """The bridge came back: a wait that grew while it was away ends soon."""
        if self._transfer is not None:
            self._transfer.hurry(now)

    def disconnected(self) -> None:
        """Nothing is asked for until `connected`."""
        self._connected = False

    def keep(self, digests: frozenset[str]) -> None:
        """Delete blobs and parts that are not among `digests`, and give up their transfers."""
        self._waiting = deque(blob for blob in self._waiting if blob.digest in digests)
        if self._transfer is not None and self._transfer.blob.digest not in digests:
            self._transfer = None
        for path in list(self._folder.iterdir()):
            if path.name.removesuffix(PART) not in digests:
                path.unlink()

    def tick(self, now: float) -> list[Step]:
        """Start the next transfer, ask for the next window, or again for a late one."""
        return self._advance([], now)

    def chunk(self, digest: str, index: int, payload: bytes | None, now: float) -> list[Step]:
        """Take a chunk's bytes; None says that the server has no such blob."""
        transfer = self._transfer
        if transfer is None or transfer.blob.digest != digest:
            return []
        if payload is None:
            self._transfer = None
            return self._advance([PullFailed(digest, "the server has no such blob")], now)
        data = transfer.chunk(index, payload)
        if data:
            try:
                with self._part(digest).open("ab") as file:
                    file.write(data)
            except OSError:
                self._postpone()
                raise
            self._hash.update(data)
        return self.tick(now)

    def _advance(self, steps: list[Step], now: float) -> list[Step]:
        try:
            while self._connected and self._go_on(steps, now):
                pass
        except OSError:
            if not steps:
                raise
            # What was done before counts; the next tick raises it again.
        return steps

    def _go_on(self, steps: list[Step], now: float) -> bool:
        """Take one step; False when there is nothing to do but wait."""
        transfer = self._transfer
        if transfer is None:
            if not self._waiting:
                return False
            if self.path(self._waiting[0].digest).exists():  # named, but its folder could not be synced then
                steps.append(Pulled(self._waiting.popleft().digest))
                return True
            self._begin(self._waiting[0])
            self._waiting.popleft()
        elif transfer.complete:
            steps += self._finish()
        elif transfer.timeouts >= TIMEOUTS_MAX and now >= transfer.due:
            steps.append(PullFailed(transfer.blob.digest, "no answer from the bridge"))
            self._transfer = None
        else:
            request = transfer.request(now)
            self._wait_s = transfer.wait_s
            if request is not None:
                steps.append(request)
            return False
        return True

    def _postpone(self) -> None:
        """Give the transfer up for now; its part is taken up again."""
        assert self._transfer is not None
        self._waiting.appendleft(self._transfer.blob)
        self._transfer = None

    def _part(self, digest: str) -> Path:
        return self._folder / (digest + PART)

    def _begin(self, blob: BlobRef) -> None:
        """Go on where a part of an earlier run ends; its bytes are hashed again."""
        part = self._part(blob.digest)
        self._hash = hashlib.sha256()
        had = 0
        with part.open("a+b") as file:
            size = file.tell()
            whole = blob.size if size == blob.size else size - size % self._chunk_bytes
            file.truncate(whole if size <= blob.size else 0)
            file.seek(0)
            while block := file.read(CHUNK_BYTES):
                self._hash.update(block)
                had += len(block)
        self._transfer = Transfer(blob, self._chunk_bytes, -(-had // self._chunk_bytes), self._wait_s)

    def _finish(self) -> list[Step]:
        """Give a complete part its name, if it has the digest it was asked for by."""
        assert self._transfer is not None
        blob = self._transfer.blob
        part = self._part(blob.digest)
        if self._hash.hexdigest() != blob.digest:
            self._postpone()
            part.unlink()
            self._damaged += 1
            if self._damaged >= DAMAGED_MAX:
                self._damaged = 0
                self._waiting.popleft()
                return [PullFailed(blob.digest, f"its digest was wrong {DAMAGED_MAX} times")]
            return []
        self._damaged = 0
        try:
            with part.open("rb") as file:
                os.fsync(file.fileno())
            self._name(blob.digest)
        except OSError:
            self._postpone()
            raise
        self._transfer = None
        return [Pulled(blob.digest)]

    def _name(self, digest: str) -> None:
        """Give a whole part its name, for good."""
        self._part(digest).replace(self.path(digest))
        sync_folder(self._folder)
