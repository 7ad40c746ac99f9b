"""Reassembly: any order, repetitions and losses of chunks, under limits of count, bytes and age."""

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_bridge import reassemble
from broker_bridge.reassemble import AGE_MAX_S, IDLE_S, PARTIALS_PER_DEVICE_MAX, RANGES_MAX, Reassembly
from edge_client.wire import chunks
from edge_client.wire.errors import RemoteWireError
from edge_client.wire.topics import Uid

DATA = bytes(range(256)) * 4
SIZE = 100
TOTAL = chunks.count(len(DATA), SIZE)


def uid(seq=1, device="pi"):
    """An update's name."""
    return Uid(device, "har", "0123456789abcdef", seq)


def piece(index, data=DATA):
    """A chunk of SIZE bytes."""
    return chunks.cut(data, index, SIZE)


@given(st.permutations(range(TOTAL)), st.lists(st.integers(0, TOTAL - 1)), st.randoms())
def test_any_order_with_repetitions_gives_the_update(order, repeated, random):
    """I1: chunks in any order, some of them repeated, give the update with the last one that was missing."""
    partials = Reassembly()
    sequence = list(order)
    for index in repeated:
        sequence.insert(random.randrange(sequence.index(index) + 1, len(sequence) + 1), index)
    seen = set()
    for number, index in enumerate(sequence, 1):
        whole = partials.add(uid(), piece(index), 10, 0.0)
        seen.add(index)
        if len(seen) == TOTAL:
            assert whole == reassemble.Whole(DATA, 10 * number)
            break
        assert whole is None
    assert len(partials) == partials.bytes_held == 0


@given(st.sets(st.integers(0, TOTAL - 1), min_size=1, max_size=TOTAL - 1))
def test_missing_names_exactly_what_is_missing(held):
    """I1: the ranges asked for are the chunks that are not there, in order, and no others."""
    partials = Reassembly()
    for index in held:
        partials.add(uid(), piece(index), 10, 0.0)
    ranges = partials.missing(uid())
    named = [index for first, last in ranges for index in range(first, last + 1)]
    assert named == sorted(set(range(TOTAL)) - held)
    assert all(b[0] > a[1] + 1 for a, b in itertools.pairwise(ranges))


def test_ranges_of_one_ask_are_bounded():
    """I6: an ask names at most RANGES_MAX ranges."""
    partials = Reassembly()
    data = bytes(4 * RANGES_MAX)
    for index in range(0, 4 * RANGES_MAX, 2):
        partials.add(uid(), chunks.cut(data, index, 1), 1, 0.0)
    assert len(partials.missing(uid())) == RANGES_MAX


def test_chunks_of_two_updates_conflict():
    """I12: a chunk whose digest differs from those before it is a conflict, and the partial is forgotten."""
    partials = Reassembly()
    partials.add(uid(), piece(0), 10, 0.0)
    with pytest.raises(RemoteWireError) as caught:
        partials.add(uid(), piece(1, DATA[::-1]), 10, 0.0)
    assert caught.value.code == "conflict"
    assert uid() not in partials


@pytest.mark.parametrize("wrong", [b"x" * SIZE, b"short", b"long" * SIZE])
def test_chunks_that_do_not_add_up_are_refused(wrong):
    """I11: chunks whose bytes have another size or digest than they name are refused as bad_chunk."""
    partials = Reassembly()
    with pytest.raises(RemoteWireError) as caught:  # noqa: PT012 - too many bytes are noticed before the end
        partials.add(uid(), dataclasses.replace(piece(0), data=wrong), 10, 0.0)
        for index in range(1, TOTAL):
            partials.add(uid(), piece(index), 10, 0.0)
    assert caught.value.code == "bad_chunk"
    assert partials.bytes_held == 0


def test_more_bytes_than_named_are_refused_at_once():
    """I6: a partial never holds more than the size it names, however many chunks it names."""
    partials = Reassembly()
    with pytest.raises(RemoteWireError):
        partials.add(uid(), dataclasses.replace(piece(0), data=bytes(len(DATA) + 1)), 10, 0.0)
    assert partials.bytes_held == 0


def test_partials_of_a_device_are_bounded():
    """I6: a device's oldest partial gives way, other devices' do not."""
    partials = Reassembly()
    partials.add(uid(0, "other"), piece(0), 10, 0.0)
    for seq in range(PARTIALS_PER_DEVICE_MAX + 1):
        partials.add(uid(seq), piece(0), 10, 0.0)
    assert uid(0) not in partials
    assert uid(1) in partials
    assert uid(0, "other") in partials


def test_bytes_are_bounded_over_all_devices():
    """I6: when all partials together hold too much, the one that is longest without news gives way."""
    partials = Reassembly(bytes_max=2 * SIZE)
    partials.add(uid(1, "a"), piece(0), 10, 0.0)
    partials.add(uid(1, "b"), piece(0), 10, 1.0)
    partials.add(uid(1, "a"), piece(0), 10, 2.0)
    partials.add(uid(1, "c"), piece(0), 10, 3.0)
    assert [uid(1, d) in partials for d in "abc"] == [True, False, True]
    assert partials.bytes_held == 2 * SIZE


def test_idle_partials_are_asked_for_with_growing_pauses():
    """I1: silence leads to an ask, each ask doubles the pause, and a new chunk starts it again."""
    partials = Reassembly()
    partials.add(uid(), piece(0), 10, 0.0)
    assert partials.overdue(IDLE_S * 0.9) == []
    assert partials.overdue(IDLE_S) == [uid()]
    assert partials.overdue(IDLE_S * 2.9) == []
    assert partials.overdue(IDLE_S * 3) == [uid()]
    partials.add(uid(), piece(1), 10, 100.0)
    assert partials.overdue(100.0 + IDLE_S) == [uid()]


def test_abandoned_partials_are_forgotten():
    """I6: a partial without news for AGE_MAX_S is forgotten and not asked for any more."""
    partials = Reassembly()
    partials.add(uid(1), piece(0), 10, 0.0)
    partials.add(uid(2), piece(0), 10, 1.0)
    assert partials.overdue(AGE_MAX_S) == [uid(2)]
    assert uid(1) not in partials
    assert partials.bytes_held == SIZE
