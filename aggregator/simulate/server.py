"""The server of a simulation: the real admission and the real job, without ports and processes around them.

What broker_bridge/uplink.py and aggregator/engine.py do with their log is done here with a counter: verdicts are
remembered by uid (I1), and offsets grow by one a verdict.
"""

import hashlib

from aggregator import versions
from aggregator.admission import job_cell, version_cell
from aggregator.job import Job
from aggregator.spec import JobSpec, check_bundle
from broker_bridge.admit import Accept, Reject, admit_evaluation, admit_update
from broker_bridge.records import DIGEST_BYTES
from edge_client.bundle import PARAMS, Bundle
from edge_client.wire.messages import Ask, Assignment, BlobRef, Evaluation, Receipt, decode
from edge_client.wire.topics import Uid


class Server:
    """One job and what was answered to whom."""

    def __init__(self, spec: JobSpec, bundle: Bundle) -> None:
        """Version 0 at virtual time 0; raises RefusedError when spec and bundle do not fit."""
        check_bundle(spec, bundle.manifest)
        whole = bundle.path.read_bytes()
        ref = BlobRef(hashlib.sha256(whole).hexdigest(), len(whole))
        manifest, state = versions.first(spec.name, bundle.member(PARAMS), bundle.manifest.sizes, 0.0)
        digest = hashlib.sha256(versions.encode(manifest)).hexdigest()
        self.job = Job(spec, bundle.manifest, ref, 0.0, (digest, manifest, state))
        self.job.history.add(versions.record(digest, manifest))
        self.accepted = 0  # updates
        self.rejected: dict[str, int] = {}  # updates, by code
        self.refused_evaluations = 0
        self.duplicates = 0
        self.over: str | None = None
        self._frames: dict[str, bytes] = {}  # of the cache, by digest
        self._verdicts: dict[Uid, tuple[bytes, Receipt]] = {}
        self._offset = 0
        self._job_cell = job_cell(self.job, "running")
        self._version_cell = version_cell(self.job)

    def ask(self, device: str, ask: Ask, now: float) -> None:
        """An ask came."""
        self.job.ask(device, ask, now)

    def failed(self, device: str) -> None:
        """A device said that its training failed."""
        self.job.leases.forget(device)

    def away(self, device: str) -> None:
        """The broker said that a device is gone."""
        self.job.leases.away(device)

    def update(self, uid: Uid, frame: bytes, wire_bytes: int, now: float) -> Receipt:
        """Judge an update; one that has a verdict gets it again."""
        known = self._known(uid, frame)
        if known is not None:
            return known
        verdict = admit_update(self._job_cell, self._version_cell, uid, frame, wire_bytes=wire_bytes, now=now)
        receipt = self._note(uid, frame, verdict)
        if isinstance(verdict, Accept):
            wanted = self.job.wants(uid.device)
            before = None if wanted is None else self._frames[wanted]
            self.job.update(uid.device, frame, wire_bytes, now, before)
            self.accepted += 1
        else:
            self.job.leases.release(uid.device, now)
            self.rejected[verdict.code] = self.rejected.get(verdict.code, 0) + 1
        return receipt

    def evaluation(self, uid: Uid, payload: bytes, now: float) -> Receipt:
        """Judge an evaluation, likewise."""
        known = self._known(uid, payload)
        if known is not None:
            return known
        verdict = admit_evaluation(self._job_cell, self._version_cell, payload, now)
        if isinstance(verdict, Accept):
            self.job.history.evaluated(decode(Evaluation, payload))
        else:
            self.refused_evaluations += 1
        return self._note(uid, payload, verdict)

    def step(self, now: float) -> list[tuple[str, Assignment]]:
        """Make a version when one is due, then assignments for free places; `over` says why there are none any more.

        Raises StrategyError.
        """
        if self.over is not None:
            return []
        if self.job.due(now, draining=False):
            self._commit(now, draining=False)
        self.over = self.job.over(now)
        if self.over is not None:  # what comes now is refused, what is buffered becomes the last version
            self._job_cell = job_cell(self.job, "ended")
            if self.job.due(now, draining=True):
                self._commit(now, draining=True)
            return []
        granted = self.job.grant(now)
        self.job.paths.take_fresh()
        return granted

    def stop(self, reason: str) -> None:
        """Look no further: the job would go on, so its buffer stays as it is."""
        self.over = reason

    def _commit(self, now: float, *, draining: bool) -> None:
        sealed = self.job.seal(now, {0: self._offset}, draining=draining)
        digest = hashlib.sha256(versions.encode(sealed.manifest)).hexdigest()
        gone = self.job.advance(sealed, digest)
        for device, pending in sealed.cached.items():
            self._frames[sealed.manifest.cached[device].frame.digest] = pending.frame
        for old in gone:
            self._frames.pop(old, None)
        self.job.history.add(versions.record(digest, sealed.manifest))
        self._version_cell = version_cell(self.job)

    def _known(self, uid: Uid, body: bytes) -> Receipt | None:
        if uid not in self._verdicts:
            return None
        digest, receipt = self._verdicts[uid]
        self.duplicates += 1
        if digest != _digest(body):
            return Receipt(str(uid), "rejected", "conflict", "another body came under this uid before")
        return receipt

    def _note(self, uid: Uid, body: bytes, verdict: Accept | Reject) -> Receipt:
        self._offset += 1
        receipt = (
            Receipt(str(uid), "accepted")
            if isinstance(verdict, Accept)
            else Receipt(str(uid), "rejected", verdict.code, verdict.message)
        )
        self._verdicts[uid] = (_digest(body), receipt)
        return receipt


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()[:DIGEST_BYTES]
