"""Takes what devices publish into the log, and answers updates and evaluations with receipts.

Messages of one device are handled in their order, devices in parallel, so that many appends share a commit. A
message is acknowledged to the broker only when it needs no redelivery: an event, evaluation or whole update
after the commit, a chunk once it is buffered.
"""

import asyncio
import contextlib
import hashlib
import secrets
import time
from collections import deque
from dataclasses import dataclass

import structlog

from broker_bridge import admit, records
from broker_bridge.admit import Accept, Reject
from broker_bridge.backlog import Backlog
from broker_bridge.catalog import Catalog
from broker_bridge.counters import Counters
from broker_bridge.deadletters import DeadMessages
from broker_bridge.decoding import Decoding
from broker_bridge.mqtt import Link, Message
from broker_bridge.ports import FORGOTTEN, Kind, Mark, Ports
from broker_bridge.pulls import Pulls
from broker_bridge.reassemble import Reassembly
from broker_bridge.records import DIGEST_BYTES, EventRecord, RejectionRecord, VerdictMark
from broker_bridge.storage import persistently
from edge_client.wire import chunks, frame, messages, together, topics
from edge_client.wire.chunks import Chunk
from edge_client.wire.errors import RemoteWireError
from edge_client.wire.messages import Ask, BlobRequest, DeviceInfo, DeviceState, Receipt, TaskStatus
from edge_client.wire.together import Decoded
from edge_client.wire.topics import (
    AskTopic,
    EvaluationTopic,
    GetTopic,
    InfoTopic,
    StateTopic,
    TaskTopic,
    Uid,
    UpdateTopic,
)

SWEEP_S = 0.5  # how often idle partials are looked for
# A verdict with one of these codes may rest on a cell that is newer than the copy in memory.
_REFRESH_CODES = frozenset({"unknown_job", "job_ended", "unknown_base", "resync"})

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Judged:
    """Something under a uid that needs a verdict; `kind` is what it becomes when accepted."""

    uid: Uid
    kind: Kind
    data: bytes
    digest: bytes
    wire_bytes: int


class Uplink:
    """Everything that comes from devices."""

    def __init__(self, link: Link, ports: Ports, catalog: Catalog, counters: Counters, pulls: Pulls) -> None:
        self._link = link
        self._ports = ports
        self._catalog = catalog
        self._counters = counters
        self._pulls = pulls
        self._partials = Reassembly()
        self._decoding = Decoding()
        self._dead = DeadMessages(ports.heads)
        self._backlog = Backlog(ports.heads)
        self._waiting: dict[str, deque[Message]] = {}  # of each device that is being served

    @property
    def partials(self) -> int:
        """Updates of which some chunks are missing."""
        return len(self._partials)

    @property
    def untaken(self) -> int:
        """Entries of the log that the aggregator has not taken."""
        return self._backlog.entries

    async def run(self) -> None:
        """Handle messages until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._ask_for_missing())
            tasks.create_task(self._backlog.follow())
            while True:
                self._dispatch(await self._link.receive(), tasks)

    def _dispatch(self, message: Message, tasks: asyncio.TaskGroup) -> None:
        self._counters.came_up(len(message.payload))
        try:
            topic = topics.parse_up(message.topic)
        except RemoteWireError as error:
            self._refuse(message, error)
            return
        device = topic.uid.device if isinstance(topic, EvaluationTopic | UpdateTopic) else topic.device
        waiting = self._waiting.get(device)
        if waiting is not None:
            waiting.append(message)
            return
        self._waiting[device] = deque([message])
        tasks.create_task(self._serve(device))

    async def _serve(self, device: str) -> None:
        waiting = self._waiting[device]
        while waiting:
            message = waiting.popleft()
            try:
                await self._handle(message)
            except RemoteWireError as error:
                self._refuse(message, error)
            except Exception as error:  # one that uncovers a bug must not stop all others, again and again
                log.exception("message_failed", topic=message.topic)
                await self._put_aside(message, f"{type(error).__name__}: {error}")
                self._link.ack(message)
            else:
                self._link.ack(message)
        del self._waiting[device]

    def _refuse(self, message: Message, error: RemoteWireError) -> None:
        """Drop a message that has no uid to answer to: it is counted, and gone from the broker."""
        self._counters.refused(error.code)
        log.debug("message_refused", topic=message.topic, code=error.code)
        self._link.ack(message)

    async def _put_aside(self, message: Message, reason: str) -> None:
        """Keep a message on which this bridge failed; its update is refused, or its device would wait for ever."""
        topic, payload = message.topic, message.payload
        await persistently(lambda: self._dead.put(topic, payload, reason, time.time()), "dead letter")
        parsed = topics.parse_up(topic)
        if not isinstance(parsed, UpdateTopic | EvaluationTopic):
            self._counters.refused("internal")
            return
        uid, digest = parsed.uid, _whole_digest(payload)
        self._partials.forget(uid)
        try:
            if not await self._answer_known(uid, digest):
                why = Reject("internal", "the bridge failed on it and kept it for a look")
                await self._reject(uid, digest, why)
        except Exception:  # the verdict itself is what fails: the device asks again, and others are served
            log.exception("not_answered", uid=str(uid))

    async def _handle(self, message: Message) -> None:
        payload = message.payload
        match topics.parse_up(message.topic):
            case UpdateTopic(uid, index):
                log.debug("update_received", uid=uid, chunk=index)
                self._counters.update_packet(uid.job, len(payload))
                await self._update(uid, index, payload)
            case EvaluationTopic(uid):
                await self._judge(_Judged(uid, Kind.EVALUATION, payload, _digest(payload), len(payload)))
            case GetTopic(device):
                self._pulls.request(device, messages.decode(BlobRequest, payload))
            case StateTopic(device) | InfoTopic(device) if not payload:
                log.debug("retained_cleared", device=device)
            case StateTopic(device):
                messages.decode(DeviceState, payload)
                await self._event(EventRecord(time.time(), "state", device, "", payload))
            case InfoTopic(device):
                messages.decode(DeviceInfo, payload)
                await self._event(EventRecord(time.time(), "info", device, "", payload))
            case AskTopic(device):
                job = messages.decode(Ask, payload).job
                await self._event(EventRecord(time.time(), "ask", device, job, payload))
            case TaskTopic(device, job):
                messages.decode(TaskStatus, payload)
                await self._event(EventRecord(time.time(), "task", device, job, payload))

    async def _event(self, record: EventRecord) -> None:
        uid = f"event:{record.device}:{secrets.token_hex(8)}"
        await self._append(record.device, uid, Kind.EVENT, records.encode(record))

    # -- updates and evaluations ------------------------------------------------------------------------

    async def _update(self, uid: Uid, index: int, payload: bytes) -> None:
        if len(payload) < frame.OVERHEAD_BYTES or payload[2] != frame.Kind.CHUNK:
            await self._judge(_Judged(uid, Kind.UPDATE, payload, _digest(payload), len(payload)))
            return
        digest = _digest(payload)  # names the refusal of a chunk that cannot be read
        try:
            chunk = chunks.decode(frame.decode(payload)[2])
            digest = chunk.digest
            _check_index(chunk, index)
            if uid not in self._partials:
                if await self._answer_known(uid, digest):
                    return
                await self._check_open(uid, chunk.size)
            whole = self._partials.add(uid, chunk, len(payload), time.monotonic())
        except RemoteWireError as error:
            self._partials.forget(uid)
            if not await self._answer_known(uid, digest):
                await self._reject(uid, digest, Reject(error.code, str(error)))
            return
        if whole is not None:
            await self._judge(_Judged(uid, Kind.UPDATE, whole.data, digest, whole.wire_bytes))

    async def _check_open(self, uid: Uid, size: int) -> None:
        try:
            admit.open_job(self._catalog.job(uid.job), size)
        except RemoteWireError:
            await persistently(lambda: self._catalog.refresh(uid.job), "refresh")
            admit.open_job(self._catalog.job(uid.job), size)

    async def _judge(self, judged: _Judged) -> None:
        """Give the first verdict on a uid, or the same one again."""
        if await self._answer_known(judged.uid, judged.digest):
            return
        decoded = await self._decoded(judged)
        verdict = self._admit(judged, decoded)
        if isinstance(verdict, Reject) and verdict.code in _REFRESH_CODES:
            await persistently(lambda: self._catalog.refresh(judged.uid.job), "refresh")
            verdict = self._admit(judged, decoded)
        del decoded  # storing may take long
        if isinstance(verdict, Reject):
            await self._reject(judged.uid, judged.digest, verdict)
            return
        body = records.encode(verdict.record)
        mark = records.encode(VerdictMark(judged.digest))
        await self._append(judged.uid.device, str(judged.uid), judged.kind, body, mark)
        self._counters.accepted += 1
        self._answer(Receipt(str(judged.uid), "accepted"), judged.uid)

    async def _decoded(self, judged: _Judged) -> Decoded | None:
        """An update that its job takes by its size; None for anything else, which admission looks at as it is."""
        try:
            job = admit.open_job(self._catalog.job(judged.uid.job), len(judged.data))
        except RemoteWireError:
            return None
        # Of a large one there is nothing to gain and much to hold.
        if judged.kind is not Kind.UPDATE or len(judged.data) > together.BYTES_MAX:
            return None
        return await self._decoding.decode(judged.data, job.sizes, job.statistics)

    def _admit(self, judged: _Judged, decoded: Decoded | None) -> Accept | Reject:
        job, version = self._catalog.job(judged.uid.job), self._catalog.version(judged.uid.job)
        if judged.kind is Kind.EVALUATION:
            return admit.admit_evaluation(job, version, judged.data, time.time())
        return admit.admit_update(
            job,
            version,
            judged.uid,
            judged.data,
            wire_bytes=judged.wire_bytes,
            now=time.time(),
            decoded=decoded,
        )

    async def _reject(self, uid: Uid, digest: bytes, reject: Reject) -> None:
        record = RejectionRecord(time.time(), reject.code, reject.message)
        mark = records.encode(VerdictMark(digest, reject.code))
        await self._append(uid.device, str(uid), Kind.REJECTION, records.encode(record), mark)
        self._counters.refused(reject.code)
        self._answer(Receipt(str(uid), "rejected", reject.code, reject.message), uid)

    async def _append(
        self, device: str, uid: str, kind: Kind, body: bytes, mark: bytes | None = None
    ) -> None:
        partition = topics.partition(device, self._ports.partitions)
        await self._backlog.room()
        offset = await persistently(
            lambda: self._ports.log.append(partition, uid, kind, body, mark), kind.name.lower()
        )
        self._backlog.appended(partition, offset, len(body))

    async def _answer_known(self, uid: Uid, digest: bytes) -> bool:
        """Answer a uid that has a verdict: with that verdict, or `conflict` for another body (I12)."""
        partition = topics.partition(uid.device, self._ports.partitions)
        known: Mark | None = await persistently(lambda: self._ports.log.find(partition, str(uid)), "find")
        if known is None:
            return False
        if known == FORGOTTEN:  # a broker that was killed may bring copies back that are minutes old
            self._counters.duplicates += 1
            verdict = Receipt(str(uid), "rejected", "conflict", "it is behind many later updates")
            self._answer(verdict, uid)
            return True
        mark = records.decode(VerdictMark, known.mark)
        if mark.digest != digest:
            self._counters.refused("conflict")
            verdict = Receipt(str(uid), "rejected", "conflict", "another body came under this uid before")
        else:
            self._counters.duplicates += 1
            verdict = (
                Receipt(str(uid), "rejected", mark.code, "as answered before")
                if mark.code
                else Receipt(str(uid), "accepted")
            )
        self._answer(verdict, uid)
        return True

    def _answer(self, receipt: Receipt, uid: Uid) -> None:
        """Send a receipt; it goes before the acknowledgement.

        If this process dies between the two, the redelivered update is answered again, and the device need
        not wait for its own timer.
        """
        payload = messages.encode(receipt)
        self._link.publish(topics.receipt(uid.device), payload)
        self._counters.went_down(len(payload))

    async def _ask_for_missing(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            for uid in self._partials.overdue(time.monotonic()):
                missing = self._partials.missing(uid)
                self._answer(Receipt(str(uid), "incomplete", missing=missing), uid)


def _check_index(chunk: Chunk, index: int) -> None:
    if chunk.index != index:
        raise RemoteWireError("bad_chunk", f"chunk {chunk.index} came as number {index}")


def _whole_digest(packet: bytes) -> bytes:
    """The digest of what a packet is a part of, as its verdict is kept under; of itself where it is the whole."""
    if len(packet) >= frame.OVERHEAD_BYTES and packet[2] == frame.Kind.CHUNK:
        with contextlib.suppress(RemoteWireError):
            return chunks.decode(frame.decode(packet)[2]).digest
    return _digest(packet)


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:DIGEST_BYTES]
