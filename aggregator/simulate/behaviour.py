"""What devices do, as steps on the clock: ask, pull, train, send, and settle when the verdict comes.

The order and rules are those of edge_client/phases.py, outgoing.py and store.py: at most one update without a
verdict a device, whose residual only that verdict settles (I4). Idle devices have no events; `Pool` holds them.
"""

import math
from concurrent.futures import Future
from typing import Any, Literal

import msgspec
import numpy as np

from aggregator.job import Job
from aggregator.simulate import devices as fleet
from aggregator.simulate.availability import back, served
from aggregator.simulate.clock import Step
from aggregator.simulate.devices import NOTHING, Phase, Pool
from aggregator.simulate.draws import Purpose, rng
from aggregator.simulate.following import Followers, Model, Newest
from aggregator.simulate.site import Counts, Row, Site
from aggregator.simulate.traffic import Traffic, update_payloads
from aggregator.simulate.work import Training
from aggregator.simulate.workers import result
from edge_client.link import Link, density
from edge_client.outgoing import JITTER, RECEIPT_WAIT_MAX_S
from edge_client.participation import Participation
from edge_client.phases import BACKOFF_MAX_S, BACKOFF_S, FATAL_CODES, PROGRESS_EVERY_S
from edge_client.trainer_protocol import Failed, Trained
from edge_client.wire import topics
from edge_client.wire.limits import FANOUT_BYTES_MAX
from edge_client.wire.messages import CODECS, KEEP_MASS_CODES, Ask, Assignment, Receipt, TaskStatus, encode
from edge_client.wire.topics import Uid

ATTEMPTS_MAX = 10  # doublings of the wait for a receipt
_HALF = 0.5  # of the crashes come in training, the others while an update is sent

State = Literal["asking", "pulling", "training", "uploading", "failed", "declined"]


class Behaviour:
    """All devices of a run."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._fleet = site.config.fleet
        self._job = site.server.job.spec.name
        self._devices = site.devices
        self._clock = site.clock
        self._pool = Pool(site.devices.count, rng(site.seed, Purpose.NEXT))
        self._asked: dict[int, float] = {}  # since when, of those who wait for a place
        self._outbox: dict[Uid, Row] = {}
        self._down: set[int] = set()  # crashed, not back yet
        self._repeat_s = site.server.job.spec.retry_s * (1 + JITTER / 2)  # of an unanswered ask, on average
        self._followers = Followers()
        self.traffic = Traffic()
        self.counts = Counts()

    def start(self) -> None:
        """Devices see the offer, the first of them at random times; the rest waits for its turn to ask."""
        draw = rng(self._site.seed, Purpose.START)
        order = draw.permutation(self._devices.count)
        first = order[: self._fleet.asking_max]
        for device in order[len(first) :].tolist():
            self._pool.add(device)
        moments = np.sort(draw.random(len(first))) * self._fleet.start_s
        for device, moment in zip(first.tolist(), moments.tolist(), strict=True):
            self._clock.at(moment, self._enter, device)

    @property
    def open(self) -> int:
        """Updates without a verdict."""
        return sum(row.residuals is not None for row in self._outbox.values())

    def lead(self) -> None:
        """Let the server do what is due, and deliver its assignments with the model they name."""
        now, server = self._clock.now, self._site.server
        version, granted = server.job.version, server.step(now)
        if server.job.version > version and server.over is None:
            self._hand_out(server.job)
        for device, assignment in granted:
            index = fleet.index(device)
            self.traffic.tell(topics.assign(device, self._job), len(encode(assignment)))
            self._deliver(index, self._assigned, assignment, server.job.state.model)

    def _hand_out(self, job: Job) -> None:
        """The broker hands the newest delta to the devices that follow, as the engine and fanout.py have it do."""
        now, delta = self._clock.now, job.manifest.delta
        if delta is None or delta.size > FANOUT_BYTES_MAX or not job.audience.listens(now):
            return
        topic = topics.delta(job.spec.cohort, self._job, job.version, 0)
        newest = Newest(job.version, job.manifest.model_hash, job.state.model, 0.0, follows=False)
        for device in self._followers.listening():
            if not self._site.times.span(device, now)[0]:
                continue  # the broker keeps nothing for a device that is away: a gap
            self.traffic.hand(topic, delta.size)
            seconds = delta.size / self._devices.link(device)[1]
            self._deliver(device, self._heard, newest, at=now + seconds)

    def _heard(self, device: int, newest: Newest) -> None:
        if not self._followers.heard(device, newest, self._clock.now):
            self._subscription()

    def _subscription(self) -> None:
        spec = self._site.server.job.spec
        self.traffic.subscribe(topics.delta_filter(spec.cohort, spec.name))

    # -- asking ----------------------------------------------------------------------------------------

    def _enter(self, device: int) -> None:
        """The device is idle."""
        self._pool.add(device)
        self._next()

    def _next(self) -> None:
        """Idle devices ask while fewer than `asking_max` wait for a place."""
        while len(self._pool) and len(self._asked) < self._fleet.asking_max:
            self._begin(self._pool.take())

    def _begin(self, device: int) -> None:
        now, times = self._clock.now, self._site.times
        times.settle(device, now)
        connected, until = times.span(device, now)
        if not connected:
            self._clock.at(until, self._enter, device)
            return
        number = int(self._devices.ask[device])
        self._devices.phase[device] = Phase.ASKING
        self._asked[device] = now
        if until < math.inf:
            self._clock.at(until, self._gone, device, number)
        self._status(device, "asking")
        self._ask(device, number)

    def _ask(self, device: int, number: int) -> None:
        """Ask, and again after a while: that changes nothing unless ask or answer was lost."""
        if not self._asks(device, number):
            return
        heard, holds = self._followers.get(device), int(self._devices.holds[device])
        holds = holds if heard is None or holds == NOTHING else max(holds, heard.version)
        train, _ = self._site.parts(device)
        ask = Ask(self._job, number, len(train), None if holds == NOTHING else holds, CODECS)
        self.traffic.say(topics.ask(fleet.name(device)), len(encode(ask)))
        self._deliver(device, self._ask_came, ask)
        if self._fleet.faults.loss:
            self._clock.at(self._clock.now + self._repeat_s, self._ask, device, number)

    def _asks(self, device: int, number: int) -> bool:
        return bool(self._devices.phase[device] == Phase.ASKING) and int(self._devices.ask[device]) == number

    def _ask_came(self, device: int, ask: Ask) -> None:
        self._site.server.ask(fleet.name(device), ask, self._clock.now)
        self.lead()

    def _gone(self, device: int, number: int) -> None:
        """The connection ends while the device waits for a place."""
        if not self._asks(device, number):
            return
        self._site.server.away(fleet.name(device))
        self._devices.phase[device] = Phase.IDLE
        self._waited(device)
        self._clock.at(back(self._site.times, device, self._clock.now), self._enter, device)
        self._next()

    def _waited(self, device: int) -> None:
        """The wait is over. Without losses the asks repeated meanwhile were not played, but they were sent."""
        since = self._asked.pop(device)
        if self._fleet.faults.loss:
            return
        payload = len(encode(Ask(self._job, int(self._devices.ask[device]), 1, 0, CODECS)))
        for _ in range(int((self._clock.now - since) / self._repeat_s)):
            self.traffic.say(topics.ask(fleet.name(device)), payload)

    # -- pulling and training ----------------------------------------------------------------------------

    def _assigned(self, device: int, assignment: Assignment, base: Model) -> None:
        """Take the answer to the outstanding ask; any other is late."""
        if not self._asks(device, assignment.ask):
            return
        devices, name = self._devices, fleet.name(device)
        devices.phase[device] = Phase.WORKING
        self._waited(device)
        self.counts.participations += 1
        self._status(device, "pulling")
        pulls, changes = self._followers.heed(device, assignment, base, self._clock.now)
        if changes:
            self._subscription()
        blobs = list(assignment.model) if pulls else []
        self.traffic.model += sum(blob.size for blob in blobs)
        if not devices.equipped[device]:
            devices.equipped[device] = True
            self.traffic.bundles += assignment.bundle.size
            blobs.append(assignment.bundle)
        for blob in blobs:
            self.traffic.pull(blob, topics.get(name), topics.blob(name, blob.digest, 0))
        _, rate, latency = devices.link(device)
        seconds = sum(blob.size for blob in blobs) / rate + 2 * latency * len(blobs)
        begin = served(self._site.times, device, self._clock.now + assignment.not_before_s, seconds)
        self._clock.at(begin, self._train, device, assignment, base)
        self._next()

    def _train(self, device: int, assignment: Assignment, base: Model) -> None:
        """Training begins: a worker does it while virtual time goes on. A crash in it leaves nothing behind."""
        devices, plan, faults = self._devices, assignment.plan, self._fleet.faults
        draw = rng(self._site.seed, Purpose.TASK, device, int(devices.tasks[device]))
        devices.tasks[device] += 1
        jitter, (chance, moment, half) = float(draw.exponential()), draw.random(3).tolist()
        seconds = (
            plan.steps
            * self._fleet.step_s
            * float(devices.factor[device])
            * (1 + self._fleet.jitter * jitter)
        )
        self._status(device, "training", 0.0)
        crash = chance < faults.crash
        if crash and half < _HALF:
            self.counts.crashes += 1
            self._clock.at(self._clock.now + moment * seconds + faults.crash_s, self._back, device)
            return
        rows, held = self._site.parts(device)
        uid = Uid(
            fleet.name(device), self._job, fleet.epoch(self._site.seed, device), int(devices.seq[device])
        )
        residual = self._site.residuals.get(device)
        version, digest, heard = assignment.version, assignment.version_hash, self._followers.get(device)
        if heard is not None:  # what came since the assignment
            version, digest, base = heard.version, heard.version_hash, heard.model
        plan = msgspec.structs.replace(plan, density=density(self._uplink(device).rate, plan))
        task = Participation(uid, version, bytes.fromhex(digest), base, plan, residual)
        attack = self._fleet.malicious.kind if devices.malicious[device] else None
        work = Training(self._site.bundle, task, rows, held, seconds, attack, self._fleet.malicious.factor)
        future = self._site.workers.train(work)
        self._clock.at(self._clock.now + seconds, self._trained, device, task, future, seconds, crash)

    def _back(self, device: int) -> None:
        """The device starts again after a crash: it asks again under the same number."""
        self._followers.forget(device)
        self._devices.phase[device] = Phase.IDLE
        self._enter(device)

    def _trained(
        self,
        device: int,
        task: Participation,
        future: "Future[Trained | Failed]",
        seconds: float,
        crash: bool,
    ) -> None:
        """Training is over: the update is durable, and its number is used (I4)."""
        devices, answer = self._devices, result(future)
        devices.ask[device] += 1
        for progress in range(1, int(seconds / PROGRESS_EVERY_S) + 1):
            self._status(device, "training", round(min(1.0, progress * PROGRESS_EVERY_S / seconds), 3))
        if isinstance(answer, Failed):
            self._failed(device, answer)
            return
        self.counts.produced += 1
        devices.phase[device] = Phase.UPLOADING
        devices.seq[device] += 2
        devices.holds[device] = task.version
        self._followers.trained(device)
        self._status(device, "uploading")
        uid, rate = task.uid, round(self._uplink(device).rate or 0.0, 1)
        evaluation = msgspec.structs.replace(answer.evaluation, uplink_bytes_s=rate)
        rows = [Row(device, uid, answer.frame, (answer.residual_accepted, answer.residual_kept))]
        rows.append(Row(device, Uid(uid.device, uid.job, uid.epoch, uid.seq + 1), encode(evaluation), None))
        if crash:  # after the first bytes have left: nobody is there to hear the receipt
            self.counts.crashes += 1
            self._down.add(device)
            self._clock.at(self._clock.now + self._fleet.faults.crash_s, self._up, device)
        for row in rows:
            self._outbox[row.uid] = row
            self._send(row, 0)

    def _failed(self, device: int, answer: Failed) -> None:
        """Tell why there is no update; a device whose data or bundle is unfit does not ask again."""
        never = answer.code in FATAL_CODES
        self.counts.failed[answer.code] = self.counts.failed.get(answer.code, 0) + 1
        self._status(device, "declined" if never else "failed", reason=f"{answer.code}: {answer.message}")
        self._site.server.failed(fleet.name(device))
        if not never:
            self._fall_back(device)
        self.lead()

    # -- sending and settling ----------------------------------------------------------------------------

    def _up(self, device: int) -> None:
        """After a crash all that waits for a receipt is sent again."""
        self._down.discard(device)
        for row in [row for row in self._outbox.values() if row.device == device]:
            self._send(row, 0)

    def _send(self, row: Row, attempt: int) -> None:
        """Publish a row; again when no receipt came for long."""
        if row.uid not in self._outbox or (row.device in self._down and attempt):
            return
        up, _, latency = self._devices.link(row.device)
        begin = back(self._site.times, row.device, self._clock.now)
        end = served(self._site.times, row.device, begin, len(row.body) / up)
        if row.residuals is None:
            self.traffic.say(topics.evaluation(row.uid), len(row.body))
        else:
            self.traffic.update(topics.update(row.uid, 0), len(row.body))
            seconds = end - begin + 2 * latency
            link = self._uplink(row.device).measured(sum(update_payloads(len(row.body))), seconds)
            self._devices.measured[row.device] = link.sent_bytes, link.seconds
        self._deliver(row.device, self._came, row, at=end)
        wait = min(
            self._fleet.faults.retry_s * 2**attempt, max(RECEIPT_WAIT_MAX_S, self._fleet.faults.retry_s)
        )
        self._clock.at(end + wait, self._send, row, min(attempt + 1, ATTEMPTS_MAX))

    def _came(self, device: int, row: Row) -> None:
        """A row reached the bridge, which answers it once it is judged."""
        now, server = self._clock.now, self._site.server
        if row.residuals is None:
            receipt = server.evaluation(row.uid, row.body, now)
        else:
            receipt = server.update(row.uid, row.body, sum(update_payloads(len(row.body))), now)
        self.traffic.tell(topics.receipt(row.uid.device), len(encode(receipt)))
        self._deliver(device, self._settle, row.uid, receipt)
        self.lead()

    def _settle(self, device: int, uid: Uid, receipt: Receipt) -> None:
        """The verdict removes the row, and picks the residual of an update."""
        if device in self._down:
            return
        row = self._outbox.pop(uid, None)
        if row is None or row.residuals is None:
            return
        accepted, kept = row.residuals
        devices, code = self._devices, receipt.code
        devices.phase[device] = Phase.IDLE
        if receipt.verdict == "accepted":
            self._site.residuals.put(device, accepted)
            devices.accepted[device] += 1
        elif code in KEEP_MASS_CODES:
            self._site.residuals.put(device, kept)
        if code == "resync":
            devices.holds[device] = NOTHING
            self._followers.forget(device)
        if receipt.verdict == "accepted" or code == "stale":
            devices.failures[device] = 0
            self._enter(device)
        elif code == "resync" and devices.failures[device] == 0:
            devices.failures[device] = 1
            self._enter(device)
        else:
            self._status(device, "failed", reason=f"rejected: {code} {receipt.message}".rstrip())
            self._fall_back(device)

    def _fall_back(self, device: int) -> None:
        """What failed for its content would fail again: wait, longer each time."""
        devices = self._devices
        devices.phase[device] = Phase.IDLE
        wait = min(BACKOFF_S * 2.0 ** int(devices.failures[device]), BACKOFF_MAX_S)
        devices.failures[device] = min(int(devices.failures[device]) + 1, 16)
        self._clock.at(self._clock.now + wait * (1 + JITTER / 2), self._enter, device)

    # -- messages ------------------------------------------------------------------------------------------

    def _uplink(self, device: int) -> Link:
        """The device's uplink as it has measured it."""
        return Link(*self._devices.measured[device].tolist())

    def _deliver(self, device: int, step: Step, *args: Any, at: float | None = None) -> None:
        """A message between device and server, sent at `at`: once, twice, late, or not at all."""
        faults, sent = self._fleet.faults, self._clock.now if at is None else at
        arrives = sent + self._devices.link(device)[2]
        if not (faults.loss or faults.duplicate or faults.reorder):
            self._clock.at(arrives, step, device, *args)
            return
        draw = rng(self._site.seed, Purpose.MESSAGE, device, int(self._devices.messages[device]))
        self._devices.messages[device] += 1
        lost, doubled, late = draw.random(3).tolist()
        if lost < faults.loss:
            self.counts.lost += 1
            return
        copies = 2 if doubled < faults.duplicate else 1
        self.counts.doubled += copies - 1
        for copy in range(copies):
            delay = 0.0
            if late < faults.reorder or copy:
                self.counts.late += 1
                delay = float(draw.exponential(faults.reorder_s))
            self._clock.at(arrives + delay, step, device, *args)

    def _status(self, device: int, state: State, progress: float | None = None, reason: str = "") -> None:
        """Count a status message; nobody in the simulation reads it."""
        topic = topics.task(fleet.name(device), self._job)
        self.traffic.say(topic, len(encode(TaskStatus(state, fleet.FIRST_NUMBER, reason, progress))))
