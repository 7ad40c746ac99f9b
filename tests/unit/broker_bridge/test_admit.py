"""Admission: every reason to refuse has its code, and what is accepted can be folded."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_bridge.admit import NORM_TOLERANCE, Accept, Reject, admit_evaluation, admit_update
from broker_bridge.cells import JobCell, VersionCell
from broker_bridge.records import EvaluationRecord, UpdateRecord
from edge_client.wire import messages, sparse
from edge_client.wire.messages import Evaluation, Metrics
from edge_client.wire.topics import Uid
from edge_client.wire.weights import Sparse, SparseTensor

HASH = b"abcdefgh"
SIZES = (100, 10)
JOB = JobCell("running", SIZES, norm_max=2.0, staleness_max=2, frame_bytes_max=1000)
VERSION = VersionCell(5, "m", {3: HASH.hex(), 5: HASH.hex()})
UID = Uid("pi", "har", "0123456789abcdef", 4)
GOOD = sparse.Update(
    5,
    HASH,
    UID.tag,
    10,
    Sparse.of([SparseTensor(np.array([0, 3]), np.array([True, False]), 0.5) for _ in SIZES]),
)


def judge(update=GOOD, *, job=JOB, version=VERSION, frame=None):
    """The verdict on an update that is good but for what is given."""
    data = sparse.encode(update, SIZES) if frame is None else frame
    return admit_update(job, version, UID, data, wire_bytes=len(data) + 7, now=12.5)


def changed(**fields):
    """GOOD with fields changed."""
    own = {name: getattr(GOOD, name) for name in GOOD.__slots__}
    return sparse.Update(**(own | fields))


def scaled(scale):
    """GOOD with this scale in its first tensor and nothing else."""
    one = np.array([0])
    tensors = (
        SparseTensor(one, one > 0, scale),
        SparseTensor(one[:0], one[:0] > 0, 0.0),
    )
    return changed(weights=Sparse.of(tensors))


def code(verdict):
    """The rejection code, "" when accepted."""
    return verdict.code if isinstance(verdict, Reject) else ""


def test_statistics_are_judged_with_the_weights():
    """I11: a job with statistics takes finite changes of just its own; a job without takes none."""
    observing = msgspec.structs.replace(JOB, sizes=(*SIZES, 2), statistics=1)
    sound, wild = (changed(statistics=np.array([1.0, v], dtype=np.float16)) for v in (3.0, np.inf))

    assert isinstance(judge(sound, job=observing), Accept)
    assert code(judge(wild, job=observing)) == "not_finite"
    assert code(judge(sound)) == "bad_stream"
    assert code(judge(job=observing)) == "bad_stream"


def test_good_update_is_accepted_as_it_came():
    """A good update becomes a record of its time, its very bytes and what it cost on the wire."""
    data = sparse.encode(GOOD, SIZES)
    assert judge() == Accept(UpdateRecord(12.5, data, len(data) + 7))


def test_each_refusal_has_its_code():
    """I11: every reason to refuse an update is told apart by its code."""
    ended = msgspec.structs.replace(JOB, state="ended")
    assert code(judge(job=None)) == "unknown_job"
    assert code(judge(job=ended)) == "job_ended"
    assert code(judge(frame=bytes(1001))) == "too_large"
    assert code(judge(frame=b"")) == "bad_frame"
    assert code(judge(changed(tag=UID.tag ^ 1))) == "bad_uid"
    assert code(judge(version=None)) == "unknown_base"
    assert code(judge(changed(base_version=6))) == "unknown_base"
    assert code(judge(changed(base_version=4))) == "unknown_base"
    assert code(judge(changed(base_version=2))) == "stale"
    assert code(judge(changed(base_hash=b"12345678"))) == "resync"
    assert code(judge(scaled(float("inf")))) == "not_finite"
    assert code(judge(scaled(float("nan")))) == "not_finite"
    assert code(judge(scaled(2.1))) == "norm"


def test_size_is_checked_before_decoding():
    """I6: a frame over the job's limit is refused for its size even when it is garbage."""
    assert code(judge(frame=b"\xff" * 5000)) == "too_large"


@pytest.mark.parametrize("base", [3, 5])
def test_staleness_up_to_the_limit_is_accepted(base):
    """I1: an update as many versions behind as the job allows is folded."""
    assert code(judge(changed(base_version=base))) == ""


def test_norm_at_the_limit_survives_float16():
    """An update clipped to norm_max is accepted although float16 rounds its scale up."""
    assert code(judge(scaled(2.0))) == ""
    slightly = JOB.norm_max * (1 + NORM_TOLERANCE / 2)
    job = msgspec.structs.replace(JOB, norm_max=2.0 / slightly * 2.0)
    assert code(judge(scaled(2.0), job=job)) == ""


@given(st.binary(max_size=300))
def test_garbage_is_refused_and_never_raises(data):
    """I11: whatever the bytes are, admission answers with a code."""
    assert code(judge(frame=data)) != ""


@given(st.integers(0, len(sparse.encode(GOOD, SIZES)) - 1), st.integers(1, 255))
def test_any_damage_is_refused(position, flip):
    """I11: an update with any byte changed is not accepted."""
    data = bytearray(sparse.encode(GOOD, SIZES))
    data[position] ^= flip
    assert code(judge(frame=bytes(data))) != ""


def judge_evaluation(payload, job=JOB, version=VERSION):
    """The verdict on an evaluation."""
    return admit_evaluation(job, version, payload, 1.0)


def test_good_evaluation_is_accepted():
    """An evaluation of a known version becomes a record of its payload."""
    payload = messages.encode(Evaluation(5, Metrics(10, 0.5, 0.9), Metrics(10, 0.4, 0.95)))
    assert judge_evaluation(payload) == Accept(EvaluationRecord(1.0, payload))


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b"{", "bad_message"),
        (b'{"version":5,"before":{"n":-1,"loss":1,"accuracy":1}}', "bad_message"),
        (b'{"version":5,"before":{"n":1,"loss":1e999,"accuracy":1}}', "bad_message"),
        (b'{"version":5,"before":{"n":1,"loss":1e300,"accuracy":1}}', "bad_message"),
        (b'{"version":5,"before":{"n":5000000000,"loss":1,"accuracy":1}}', "bad_message"),
        (b'{"version":5,"before":{"n":1,"loss":1,"accuracy":1.5}}', "bad_message"),
        (b'{"version":5,"before":{"n":1,"loss":1}}', "bad_message"),
        (b'{"version":5,"before":{"n":1,"loss":1,"threshold":1}}', "bad_message"),
        (
            b'{"version":5,"before":{"n":1,"loss":1,"accuracy":1},"after":{"n":1,"loss":1,"error":1}}',
            "bad_message",
        ),
        (b'{"version":5,"before":{"n":0,"loss":1},"residual_norm":-1}', "bad_message"),
        (b'{"version":5,"before":{"n":0,"loss":1},"residual_norm":1e999}', "bad_message"),
        (b'{"version":5,"before":{"n":0,"loss":1},"density":1.5}', "bad_message"),
        (b'{"version":5,"before":{"n":0,"loss":1},"uplink_bytes_s":1e300}', "bad_message"),
        (b'{"version":6,"before":{"n":1,"loss":1,"accuracy":1}}', "unknown_base"),
        (b'{"version":-1,"before":{"n":1,"loss":1,"accuracy":1}}', "unknown_base"),
        (b" " * 1001, "too_large"),
    ],
)
def test_each_evaluation_refusal_has_its_code(payload, expected):
    """I11: every reason to refuse an evaluation is told apart by its code."""
    assert code(judge_evaluation(payload)) == expected


def test_evaluations_need_a_running_job():
    """Evaluations of unknown and ended jobs are refused."""
    payload = messages.encode(Evaluation(5, Metrics(10, 0.5, 0.9)))
    assert code(judge_evaluation(payload, job=None)) == "unknown_job"
    assert code(judge_evaluation(payload, job=msgspec.structs.replace(JOB, state="ended"))) == "job_ended"


@pytest.mark.parametrize("measure", ["accuracy", "error", "threshold"])
def test_an_evaluation_gives_what_its_job_is_judged_by(measure):
    """A device reports the figure of the job's loss and no other; without samples there may be none."""
    job = msgspec.structs.replace(JOB, measure=measure)
    given = {
        m: messages.encode(Evaluation(5, Metrics(9, 0.5, **{m: 0.4})))
        for m in ("accuracy", "error", "threshold")
    }
    empty = messages.encode(Evaluation(5, Metrics(0, 0.0)))

    assert {m: code(judge_evaluation(p, job)) for m, p in given.items()} == {
        m: "" if m == measure else "bad_message" for m in given
    }
    assert code(judge_evaluation(empty, job)) == ""
