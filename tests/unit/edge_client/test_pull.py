"""Blobs pulled in windows: loss, disorder, restart, damage, and what is left on the disk."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.events import Pulled, PullFailed
from edge_client.pull import (
    ANSWER_WAIT_MAX_S,
    ANSWER_WAIT_S,
    BLOB_BYTES_MAX,
    DAMAGED_MAX,
    TIMEOUTS_MAX,
    Puller,
    Transfer,
)
from edge_client.wire.limits import BLOB_WINDOW_MAX
from edge_client.wire.messages import BlobRef, BlobRequest

CHUNK = 100
DATA = bytes(range(256)) * 20
BLOB = BlobRef(hashlib.sha256(DATA).hexdigest(), len(DATA))


def chunk(index, data=DATA):
    """Chunk `index` of the data."""
    return data[index * CHUNK : (index + 1) * CHUNK]


@pytest.fixture
def puller(tmp_path):
    """A puller on a live connection."""
    made = Puller(tmp_path)
    made.connected(CHUNK, 0.0)
    return made


def serve(puller, steps, data=DATA, now=0.0):
    """Answer requests until none is left; return the outcomes."""
    outcomes = []
    while steps:
        step = steps.pop(0)
        if not isinstance(step, BlobRequest):
            outcomes.append(step)
            continue
        for index in range(step.start, step.start + step.count):
            steps += puller.chunk(step.digest, index, chunk(index, data), now)
    return outcomes


def test_blob_arrives_in_windows_and_gets_its_name(puller):
    """I6: never more than a window is asked for; the whole is verified, renamed, and had at once later."""
    steps = puller.want(BLOB, 0.0)
    assert steps == [BlobRequest(BLOB.digest, 0, BLOB_WINDOW_MAX, CHUNK)]
    assert serve(puller, steps) == [Pulled(BLOB.digest)]
    assert puller.path(BLOB.digest).read_bytes() == DATA
    assert puller.want(BLOB, 0.0) == [Pulled(BLOB.digest)]


def test_part_of_an_earlier_run_is_gone_on_with(puller, tmp_path):
    """After a crash the transfer starts where the part file ends, even with another chunk size."""
    (request,) = puller.want(BLOB, 0.0)
    for index in range(request.start, request.start + 5):
        puller.chunk(BLOB.digest, index, chunk(index), 0.0)
    again = Puller(tmp_path)
    again.want(BLOB, 0.0)
    steps = again.connected(CHUNK, 0.0)
    assert steps[0].start == 5
    assert serve(again, steps) == [Pulled(BLOB.digest)]


def test_blob_the_server_lacks_is_a_failure(puller):
    """A chunk that says there is no such blob fails the pull, and the next blob has its turn."""
    other = BlobRef("0" * 64, 50)
    puller.want(other, 0.0)
    puller.want(BLOB, 0.0)
    steps = puller.chunk(other.digest, 0, None, 0.0)
    assert steps[0] == PullFailed(other.digest, "the server has no such blob")
    assert serve(puller, steps[1:]) == [Pulled(BLOB.digest)]


def test_damaged_blob_is_discarded_and_tried_a_bounded_number_of_times(puller, tmp_path):
    """I6: bytes of another digest are never given the name, and not asked for for ever."""
    outcomes = serve(puller, puller.want(BLOB, 0.0), data=DATA[::-1])
    assert outcomes == [PullFailed(BLOB.digest, f"its digest was wrong {DAMAGED_MAX} times")]
    assert list(tmp_path.iterdir()) == []


def test_silence_is_asked_into_a_bounded_number_of_times(puller):
    """I6: a window without an answer is asked for again after growing waits, then the pull fails."""
    steps = puller.want(BLOB, 0.0)
    now = 0.0
    for _ in range(TIMEOUTS_MAX + 1):
        now = puller.wake
        steps += puller.tick(now)
    assert steps[-1] == PullFailed(BLOB.digest, "no answer from the bridge")
    assert len(steps) == TIMEOUTS_MAX + 2
    assert now <= (TIMEOUTS_MAX + 1) * ANSWER_WAIT_MAX_S


def test_waits_that_grew_while_the_bridge_was_away_end_when_it_is_back(puller):
    """What was asked into a void is asked for again soon, and the silence counts neither as failure nor as a slow link."""
    (request,) = puller.want(BLOB, 0.0)
    for _ in range(TIMEOUTS_MAX):
        now = puller.wake
        assert puller.tick(now) == [request]
    puller.hurry(now)
    assert puller.wake == now + ANSWER_WAIT_S
    assert puller.tick(puller.wake) == [request]
    assert serve(puller, [request]) == [Pulled(BLOB.digest)]


def test_only_needed_blobs_stay_on_the_disk(puller, tmp_path):
    """Blobs and parts that no job needs are deleted, and their transfers given up."""
    serve(puller, puller.want(BLOB, 0.0))
    puller.want(BlobRef("1" * 64, 1000), 0.0)
    puller.keep(frozenset({BLOB.digest}))
    assert [path.name for path in tmp_path.iterdir()] == [BLOB.digest]
    assert puller.wake is None


def test_blob_over_the_limit_is_refused(puller):
    """I6: an absurd size is refused before a byte is asked for."""
    steps = puller.want(BlobRef("2" * 64, BLOB_BYTES_MAX + 1), 0.0)
    assert isinstance(steps[0], PullFailed)


@given(
    fates=st.lists(st.tuples(st.sampled_from(["take", "take", "lose", "twice", "wrong"]), st.integers(0, 99)))
)
def test_transfer_is_exact_under_loss_and_disorder(fates):
    """Whatever order, loss and duplication: the bytes handed out are the blob's, once each, in order."""
    transfer = Transfer(BLOB, CHUNK, 0)
    got = b""
    now = 0.0
    waiting = []
    script = iter(fates)
    for _ in range(2000):
        if transfer.complete:
            break
        request = transfer.request(now)
        if request is not None:
            assert 1 <= request.count <= BLOB_WINDOW_MAX
            waiting += range(request.start, request.start + request.count)
        if not waiting:
            now = transfer.due
            continue
        fate, pick = next(script, ("take", 0))
        index = waiting.pop(pick % len(waiting))
        if fate == "wrong":
            got += transfer.chunk(index, b"short")
        elif fate != "lose":
            got += transfer.chunk(index, chunk(index))
        if fate == "twice":
            got += transfer.chunk(index, chunk(index))
    assert got == DATA


def test_a_wait_that_was_too_short_stays_longer():
    """On a slow link what is asked for again too early comes twice, so the next window and blob are given more time."""
    transfer = Transfer(BlobRef("0" * 64, 40 * 1024), 1024, 0)
    first = transfer.request(0.0)
    assert transfer.request(ANSWER_WAIT_S) == first
    for index in range(first.count):
        transfer.chunk(index, bytes(1024))
    at = 100.0
    assert transfer.request(at).start == first.count

    assert transfer.due - at == 2 * ANSWER_WAIT_S
