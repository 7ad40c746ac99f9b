"""The device daemon: one thread, one queue; performs what the session decides (DESIGN §2).

Knows MQTT, SQLite and the trainer child only through transport, store and trainer; decides nothing itself.
"""

import contextlib
import logging
import queue
import random
import time
from collections import deque
from collections.abc import Iterator

import msgspec
import structlog

from edge_client import about, chain, inbox
from edge_client import events as ev
from edge_client.config import DeviceConfig
from edge_client.pull import Puller, Step
from edge_client.session import Session
from edge_client.storage import Patience, passing, without_path
from edge_client.store import NewUpdate, Store, StoreBusyError, StoreError
from edge_client.trainer import Gone, Said, Trainer
from edge_client.transport import Acked, Down, Identity, Received, Refused, Transport, Up, Word
from edge_client.uplink import Uplink
from edge_client.wire import chunks, messages, topics
from edge_client.wire.errors import LocalWireError, RemoteWireError
from edge_client.wire.messages import DatasetInfo, DeviceState
from edge_client.work import Work

WAIT_MAX_S = 60.0  # a timer computed wrongly delays the device at most this long
ROWS_MAX = 256  # of an outbox taken into memory at a time; each is looked at in every turn
EVENTS_MAX = (
    4096  # kept while storage fails; what is dropped beyond is asked for again, as if lost on the way
)

_log = structlog.get_logger("fedfleet.device")


class _Stop:
    """Put into the queue by SIGTERM and SIGINT."""


Item = Word | Said | Gone | _Stop


class Daemon:
    """A device's running parts. `serve` returns after `stop`."""

    def __init__(self, config: DeviceConfig, store: Store) -> None:
        rng = random.Random()  # noqa: S311 - jitter, not a secret
        run = store.begin_run()
        self._config = config
        self._store = store
        self._queue: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._conn_seq = run
        self._info: dict[str, DatasetInfo] = {}
        self._undescribed = set(config.data)
        self._events: deque[ev.Event] = deque()
        self._actions: deque[ev.Action] = (
            deque()
        )  # one leaves when it is done, so a failed write is made again
        self._storage = Patience()
        self._puller = Puller(config.state_dir / "blobs")
        self._trainer = Trainer(config.trainer, self._queue.put)
        self._work = Work(config, store, self._puller, self._trainer)
        device = config.device.id
        self._transport = Transport(
            config.broker,
            password=config.password(),
            identity=Identity(device, persistent=True, will_topic=topics.state(device), will=self._will),
            put=self._queue.put,
            waiting=self._queue.qsize,
            rng=rng,
        )
        self._uplink = Uplink(store, self._transport)
        self._gather = chain.Gather()
        jobs = store.jobs()
        self._session = Session(
            device=device,
            datasets=config.data,
            jobs=jobs,
            rows=store.updates(),
            next_ask=store.next_ask,
            first_rev=run,
            rng=rng,
        )
        self._paged: int | None = 0  # evaluations up to this seq were taken into memory; None: all
        self._work.sweep({row.offer.job for row in jobs})

    def stop(self) -> None:
        """Ask `serve` to end; callable from a signal handler."""
        self._queue.put(_Stop())

    def serve(self) -> None:
        """Run until `stop`; then say goodbye and end the child."""
        _log.info("started", device=self._config.device.id, epoch=self._store.epoch)
        try:
            while True:
                self._advance()
                item = self._next()
                if isinstance(item, _Stop):
                    break
                if item is not None:
                    self._take(item)
        finally:
            self._trainer.kill()
            farewell = messages.encode(
                DeviceState("disconnected", self._conn_seq, self._config.device.cohort)
            )
            self._transport.stop((topics.state(self._config.device.id), farewell))
            _log.info("stopped")

    # -- one turn ------------------------------------------------------------------------------------

    def _next(self) -> Item | None:
        """The next word, or None when it is time for a turn."""
        dues = [self._transport.wake, self._trainer.wake]
        dues += [self._storage.until] if self._storage.reason else [self._puller.wake, self._session.wake]
        due = min((wake for wake in dues if wake is not None), default=None)
        now = time.monotonic()
        wait = WAIT_MAX_S if due is None else min(max(0.0, due - now), WAIT_MAX_S)
        try:
            return self._queue.get(timeout=wait)
        except queue.Empty:
            return None

    def _advance(self) -> None:
        """Give every part the time, then perform what follows from it until nothing does."""
        now = time.monotonic()
        self._transport.tick(now)
        self._trainer.tick(now)
        if now < self._storage.until:
            return
        with self._writing():
            self._perform_all()
            self._follow(self._puller.tick(now))
            self._refill()
            self._events.append(ev.Tick())
            while self._events:
                self._actions.extend(self._session.handle(self._events.popleft(), time.monotonic()))
                self._perform_all()
            self._work.pump()
            self._uplink.pump()
            if self._storage.worked():
                _log.info("storage_works")
                self._say(self._session.restated())

    def _refill(self) -> None:
        """Take the next evaluations of earlier runs into memory when most of those before have gone."""
        if self._paged is None or self._session.outgoing > ROWS_MAX // 2:
            return
        rows = self._store.evaluations(self._paged, ROWS_MAX)
        self._paged = rows[-1].uid.seq if len(rows) == ROWS_MAX else None
        self._events.append(ev.RowsFound(tuple(rows)))

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Wait when storage fails: what it was to keep stays first in line, and everything after it waits too."""
        try:
            yield
        except (StoreBusyError, OSError) as error:
            if isinstance(error, OSError) and not passing(error):
                raise
            now = time.monotonic()
            if now < self._storage.until:
                return
            self._storage.failed(f"storage: {self._told(error)}", now)
            _log.error("storage_failed", reason=str(error), retry_s=round(self._storage.until - now, 1))
            self._say(self._session.restated(self._storage.reason))

    def _told(self, error: Exception) -> str:
        """An error for the server, where everybody reads it: not where things lie on this device."""
        return without_path(error).replace(f"{self._config.state_dir}/", "")

    def _say(self, statuses: list[ev.Publish]) -> None:
        for status in statuses:
            self._publish(status.topic, status.message)

    def _take(self, item: Item) -> None:
        with self._writing():
            self._take_word(item, time.monotonic())

    def _take_word(self, item: Item, now: float) -> None:
        match item:
            case Up() if self._transport.take(item, now):
                self._connected(item)
            case Down() if self._transport.take(item, now):
                _log.warning("disconnected", reason=item.reason)
                self._puller.disconnected()
                self._events.append(ev.Disconnected())
            case Acked() if self._transport.take(item, now):
                if item.refusal:
                    _log.error("refused", reason=item.refusal)
                timed = self._uplink.acknowledged(item.message, now)
                if timed is not None:
                    self._work.measured(*timed)
            case Refused(reason):
                _log.error("refused", reason=reason)
            case Received(topic, payload):
                self._received(topic, payload)
            case Said() | Gone():
                self._heard(item, now)

    def _connected(self, up: Up) -> None:
        device = self._config.device
        try:
            size = chunks.chunk_bytes(up.packet_bytes_max)
        except LocalWireError as error:
            _log.error("broker_unusable", reason=str(error))
            self._queue.put(Down(up.generation, str(error), reached=True))
            return
        _log.info("connected", protocol=self._transport.protocol, packet_bytes_max=up.packet_bytes_max)
        self._transport.subscribe(
            topics.command_filter(device.id), topics.offer_filter(device.cohort), topics.SERVICE_FILTER
        )
        birth = DeviceState("ready", self._conn_seq, device.cohort, self._session.held_jobs)
        self._transport.publish(topics.state(device.id), messages.encode(birth), retain=True)
        self._publish_info()
        self._uplink.connected(size)
        self._events.append(ev.Connected())
        if self._storage.reason:
            self._say(self._session.restated(self._storage.reason))
        self._follow(self._puller.connected(size, time.monotonic()))

    def _received(self, topic: str, payload: bytes) -> None:
        try:
            parsed = topics.parse_down(topic)
            if isinstance(parsed, topics.BlobTopic):
                data = inbox.chunk(parsed, payload)
                self._follow(self._puller.chunk(parsed.digest, parsed.index, data, time.monotonic()))
                return
            event: ev.Event | None
            if isinstance(parsed, topics.DeltaTopic):
                event = self._delta(parsed, payload)
            else:
                event = inbox.read(topic, payload)
        except RemoteWireError as error:
            _log.warning("message_refused", topic=topic, code=error.code, reason=str(error))
            return
        if event is not None and len(self._events) < EVENTS_MAX:
            self._events.append(event)

    def _delta(self, topic: topics.DeltaTopic, payload: bytes) -> ev.DeltaSeen | None:
        """A delta handed out when its last chunk is here; one that cannot be used is known as such."""
        if self._storage.reason:  # it would only wait in memory
            return ev.DeltaSeen(topic.job, None)
        try:
            data = self._gather.add(topic.job, topic.version, topic.index, payload)
            return None if data is None else ev.DeltaSeen(topic.job, chain.read(data, topic.version), data)
        except RemoteWireError as error:
            _log.warning("message_refused", topic=str(topic), code=error.code, reason=str(error))
            return ev.DeltaSeen(topic.job, None)

    def _heard(self, word: Said | Gone, now: float) -> None:
        event = self._work.take(word, now)
        if isinstance(event, ev.DataKnown):
            self._described(event)
        if event is not None:
            self._events.append(event)

    def _described(self, event: ev.DataKnown) -> None:
        self._undescribed.discard(event.name)
        if event.info is None:
            path = self._config.data[event.name].path
            _log.error("data_unusable", dataset=event.name, path=path, reason=event.reason)
        else:
            self._info[event.name] = event.info
            _log.info("data_described", dataset=event.name, n_samples=event.info.n_samples)
        self._publish_info()

    # -- actions -------------------------------------------------------------------------------------

    def _perform_all(self) -> None:
        while self._actions:
            self._perform(self._actions[0])
            self._actions.popleft()

    def _perform(self, action: ev.Action) -> None:  # noqa: C901, PLR0912 - one line per action, a table
        match action:
            case ev.Publish(topic, message):
                self._publish(topic, message)
            case ev.Send():
                self._uplink.add(action)
            case ev.Settle(uid, verdict, code):
                self._store.settle(uid, verdict, code, time.time())
                _log.info("receipt", uid=str(uid), verdict=verdict, code=code)
            case ev.SaveJob(row):
                self._store.save_job(row)
            case ev.DropUnpublished(job):
                self._store.drop_unpublished(job)
            case ev.RemoveWorkspace(job):
                self._store.remove_job(job)
                self._work.remove(job)
                _log.info("job_removed", job=job)
            case ev.Pull(blob):
                self._follow(self._puller.want(blob, time.monotonic()))
            case ev.HurryPulls():
                self._puller.hurry(time.monotonic())
            case ev.KeepBlobs(digests):
                self._puller.keep(digests)
            case ev.KeepDelta(delta, data):
                self._puller.put(delta.digest, data)
                _log.info("delta_kept", version=delta.version, bytes=delta.size)
            case ev.Follow(job, yes):
                self._follow_deltas(job, yes=yes)
            case ev.Train():
                _log.info("training", job=action.offer.job, version=action.version)
                self._work.train(action)
            case ev.StopTrainer():
                self._work.stop_training()
            case ev.StoreUpdate():
                self._events.append(self._store_update(action))

    def _store_update(self, action: ev.StoreUpdate) -> ev.Stored | ev.StoreFailed:
        trained = action.trained
        uid = self._work.uid
        assert uid is not None  # only a training task leads here
        rate = round(self._work.link.rate or 0.0, 1)
        new = NewUpdate(
            uid,
            trained.frame,
            messages.encode(msgspec.structs.replace(trained.evaluation, uplink_bytes_s=rate)),
            action.version,
            trained.residual_accepted,
            trained.residual_kept,
        )
        try:
            stored = self._store.add_update(new)
        except StoreBusyError:
            raise
        except StoreError as error:
            _log.error("update_lost", uid=str(uid), reason=str(error))
            return ev.StoreFailed(action.job, self._told(error))
        _log.info(
            "update_stored",
            uid=str(uid),
            frame_bytes=len(trained.frame),
            density=trained.evaluation.density,
            uplink_bytes_s=rate,
        )
        return stored

    def _follow_deltas(self, job: str, *, yes: bool) -> None:
        """Subscribe with QoS 0: the broker then keeps nothing for a device that is away, which pulls instead."""
        wanted = topics.delta_filter(self._config.device.cohort, job)
        if yes:
            self._transport.subscribe(wanted, qos=0)
        else:
            self._transport.unsubscribe(wanted)

    def _follow(self, steps: list[Step]) -> None:
        for step in steps:
            if isinstance(step, messages.BlobRequest):
                self._publish(topics.get(self._config.device.id), step)
            else:
                self._events.append(step)

    def _publish(self, topic: str, message: messages.Message) -> None:
        if isinstance(message, messages.TaskStatus):
            level = logging.WARNING if message.state in {"failed", "declined"} else logging.INFO
            if not message.progress:
                _log.log(level, "task", topic=topic, state=message.state, reason=message.reason)
        sent = self._transport.publish(topic, messages.encode(message))
        if sent is None and self._transport.connected:
            _log.error("message_not_sent", topic=topic, reason="larger than the broker takes, or no room")

    def _publish_info(self) -> None:
        """Describe the device once all data sets are read; retained."""
        if self._undescribed or not self._transport.connected:
            return
        info = about.device(self._info)
        self._transport.publish(topics.info(self._config.device.id), messages.encode(info), retain=True)

    def _will(self) -> bytes:
        """The last will of the next connection; its birth and farewell carry the same number."""
        self._conn_seq += 1
        return messages.encode(DeviceState("lost", self._conn_seq, self._config.device.cohort))
