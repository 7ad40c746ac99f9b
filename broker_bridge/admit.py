"""Decides whether an update or evaluation is admitted: every reason to refuse one is in this file (I1).

Pure. Whatever is not refused here is folded, so a check that comes later comes too late. Duplicates are not
judged here: the shell finds their first verdict in the log before it asks.
"""

import math
from dataclasses import dataclass

from broker_bridge.cells import JobCell, VersionCell
from broker_bridge.records import EvaluationRecord, UpdateRecord
from edge_client.wire import messages, sparse
from edge_client.wire.errors import RemoteWireError
from edge_client.wire.messages import Evaluation
from edge_client.wire.together import Decoded
from edge_client.wire.topics import Uid

FLOAT_MAX = 3.4028235e38  # of float32: no device computes a larger figure, and sums of these stay finite
HOLDOUT_MAX = 1 << 32  # samples; far more than a device's memory holds
FIGURES = (("loss", -FLOAT_MAX, FLOAT_MAX), ("accuracy", 0.0, 1.0), ("error", 0.0, FLOAT_MAX),
           ("threshold", 0.0, FLOAT_MAX))  # fmt: skip
TELEMETRY = (("residual_norm", 0.0, FLOAT_MAX), ("density", 0.0, 1.0), ("uplink_bytes_s", 0.0, FLOAT_MAX))
NORM_TOLERANCE = 1e-3  # a device clips to norm_max before float16 rounds its scales, by at most 2**-11


@dataclass(frozen=True, slots=True)
class Accept:
    """It goes to the log as this record."""

    record: UpdateRecord | EvaluationRecord


@dataclass(frozen=True, slots=True)
class Reject:
    """It is refused; `code` is stable, `message` is for people."""

    code: str
    message: str


def admit_update(
    job: JobCell | None,
    version: VersionCell | None,
    uid: Uid,
    frame: bytes,
    *,
    wire_bytes: int,
    now: float,
    decoded: Decoded | None = None,
) -> Accept | Reject:
    """Judge an UPDATE frame that came under `uid`; `now` in Unix seconds, `decoded` the frame if it is already.

    Codes, in the order of the checks: `unknown_job`, `job_ended`, `too_large`; those of `sparse.decode`;
    `bad_uid`; `unknown_base`, `stale`, `resync`; `not_finite`, `norm`.
    """
    try:
        known = open_job(job, len(frame))
        update = decoded or sparse.decode(frame, known.sizes, known.statistics)
        if isinstance(update, RemoteWireError):
            raise update
        _check_origin(update, uid)
        _check_base(update, known, version)
        _check_values(update, known)
    except RemoteWireError as error:
        return Reject(error.code, str(error))
    return Accept(UpdateRecord(now, frame, wire_bytes))


def admit_evaluation(
    job: JobCell | None, version: VersionCell | None, payload: bytes, now: float
) -> Accept | Reject:
    """Judge an evaluation; `now` in Unix seconds.

    Codes: `unknown_job`, `job_ended`, `too_large`, `bad_message` (also for figures that no sample gives, or that
    are not those of the job), `unknown_base`.
    """
    try:
        known = open_job(job, len(payload))
        evaluation = messages.decode(Evaluation, payload)
        _check_evaluation(evaluation, known)
        _check_version(evaluation, version)
    except RemoteWireError as error:
        return Reject(error.code, str(error))
    return Accept(EvaluationRecord(now, payload))


def open_job(job: JobCell | None, size: int) -> JobCell:
    """The job when it takes frames of `size` bytes; raises RemoteWireError.

    It is asked before the first chunk of an update is buffered, too: nothing is kept for a job that is over.
    """
    if job is None:
        raise RemoteWireError("unknown_job", "there is no such job")
    if job.state != "running":
        raise RemoteWireError("job_ended", "the job has ended")
    if size > job.frame_bytes_max:
        raise RemoteWireError("too_large", f"{size} B are over the job's limit of {job.frame_bytes_max} B")
    return job


def _check_origin(update: sparse.Update, uid: Uid) -> None:
    if update.tag != uid.tag:
        raise RemoteWireError("bad_uid", f"the frame was made under another name than {uid}")


def _check_base(update: sparse.Update, job: JobCell, version: VersionCell | None) -> None:
    if version is None or update.base_version > version.version:
        raise RemoteWireError("unknown_base", f"there is no version {update.base_version}")
    behind = version.version - update.base_version
    if behind > job.staleness_max:
        raise RemoteWireError(
            "stale", f"the base is {behind} versions old; the job takes {job.staleness_max}"
        )
    expected = version.hashes.get(update.base_version)
    if expected is None:
        raise RemoteWireError("unknown_base", f"version {update.base_version} is not known any more")
    if update.base_hash.hex() != expected:
        raise RemoteWireError("resync", f"version {update.base_version} has hash {expected}")


def _check_values(update: sparse.Update, job: JobCell) -> None:
    norm = update.norm()
    if not math.isfinite(norm):
        raise RemoteWireError("not_finite", "the update is not finite")
    if norm > job.norm_max * (1 + NORM_TOLERANCE):
        raise RemoteWireError("norm", f"L2 norm {norm:.6g} is over the job's limit of {job.norm_max:.6g}")


def _check_version(evaluation: Evaluation, version: VersionCell | None) -> None:
    if version is None or not 0 <= evaluation.version <= version.version:
        raise RemoteWireError("unknown_base", f"there is no version {evaluation.version}")


def _check_evaluation(evaluation: Evaluation, job: JobCell) -> None:
    for name, low, high in TELEMETRY:
        if not low <= getattr(evaluation, name) <= high:
            raise RemoteWireError("bad_message", f"Evaluation: {name} is not from {low:g} to {high:g}")
    for metrics in (evaluation.before, evaluation.after):
        if metrics is None:
            continue
        if not 0 <= metrics.n <= HOLDOUT_MAX:
            raise RemoteWireError("bad_message", f"Evaluation: {metrics.n} samples")
        for name, low, high in FIGURES:
            value = getattr(metrics, name)
            if value is not None and not low <= value <= high:
                raise RemoteWireError("bad_message", f"Evaluation: {name} is not from {low:g} to {high:g}")
            # Without samples there is no quantile; with them each device reports what its job is judged by.
            if metrics.n and (value is None) != (name not in ("loss", job.measure)):
                raise RemoteWireError("bad_message", f"Evaluation: {name} of a job with {job.measure}")
