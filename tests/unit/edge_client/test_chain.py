"""Deltas handed out by the broker: which a device keeps, and what it makes of their packets."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.chain import DELTAS_MAX, Chain, Delta, Gather, read
from edge_client.wire import chunks, frame
from edge_client.wire.errors import RemoteWireError
from edge_client.wire.limits import FANOUT_BYTES_MAX


def delta(version, base=None, size=100):
    return Delta(version - 1 if base is None else base, version, f"{version:016x}", f"{version:064x}", size)


def framed(version, base, values=b"values"):
    return frame.encode(frame.Kind.DELTA, struct.pack("<II8s", version, base, b"hash of" + b"!") + values)


def packets(data, size):
    total = chunks.count(len(data), size)
    return [chunks.cut(data, i, size).encode() for i in range(total)]


def test_deltas_that_follow_are_kept_and_repeated_ones_known():
    """The newest version that can be built grows with each delta in order; a duplicate changes nothing."""
    chain = Chain(5)
    assert [chain.take(delta(v)) for v in (6, 7, 6, 7, 5, 8)] == [
        "kept",
        "kept",
        "known",
        "known",
        "known",
        "kept",
    ]
    assert chain.top == 8
    assert [d.version for d in chain.upto(7)] == [6, 7]
    assert chain.upto(5) == []
    assert chain.upto(9) is None
    assert chain.reaches(7, f"{7:016x}")
    assert not chain.reaches(7, "another")


def test_a_gap_is_told():
    """A delta that does not start at the newest version, or at nothing held, cannot be used."""
    assert Chain(5).take(delta(7)) == "gap"
    assert Chain(None).take(delta(1)) == "gap"


def test_what_is_kept_unapplied_is_bounded():
    """I6: so many deltas, and so many bytes of them, and then a pull is better."""
    chain = Chain(0)
    assert [chain.take(delta(v)) for v in range(1, DELTAS_MAX + 2)] == ["kept"] * DELTAS_MAX + ["gap"]
    chain = Chain(0)
    chain.take(delta(1, size=FANOUT_BYTES_MAX))
    assert chain.take(delta(2)) == "gap"


def test_a_new_base_keeps_what_goes_on_from_it():
    """Deltas up to the version that was built are used up; those that start elsewhere are worthless."""
    for base, left in ((7, [8, 9]), (9, []), (4, []), (None, []), (12, [])):
        chain = Chain(5)
        for version in (6, 7, 8, 9):
            chain.take(delta(version))
        chain.rebase(base)
        assert ([d.version for d in chain.deltas], chain.base) == (left, base)


def test_a_delta_says_where_it_leads():
    """Only a whole DELTA frame of one version, and of that of its topic, is taken."""
    found = read(framed(8, 7), 8)
    assert (found.base, found.version, found.model_hash) == (7, 8, b"hash of!".hex())
    keyframe = frame.encode(frame.Kind.KEYFRAME, framed(8, 8)[8:-4])
    for data in (
        framed(8, 6),
        framed(7, 6),
        framed(8, 7)[:-1],
        keyframe,
        frame.encode(frame.Kind.DELTA, b""),
    ):
        with pytest.raises(RemoteWireError):
            read(data, 8)


@given(st.binary(min_size=1, max_size=400), st.integers(1, 300), st.lists(st.integers(0, 50), max_size=4))
def test_chunks_in_order_are_the_delta(data, size, repeated):
    """A delta comes whole from its packets, some of which may come twice."""
    parts = packets(data, size)
    gather, got = Gather(), []
    for index, part in enumerate(parts):
        for again in range(1 + (index in repeated and index < len(parts) - 1)):
            got.append(gather.add("job", 3, index, part))
            assert again == 0 or got[-1] is None
    assert [g for g in got if g is not None] == [data]


def test_packets_that_do_not_follow_are_refused():
    """A missing, foreign, mislabelled or damaged chunk ends the delta, and the next one begins afresh."""
    data, other = bytes(range(250)), bytes(range(1, 251))
    parts, foreign = packets(data, 100), packets(other, 100)
    for wrong in ((1, parts[2]), (2, parts[2]), (1, foreign[1]), (1, parts[1][:-1]), (1, b"")):
        gather = Gather()
        assert gather.add("job", 3, 0, parts[0]) is None
        with pytest.raises(RemoteWireError):
            gather.add("job", 3, *wrong)
        assert [gather.add("job", 4, i, part) for i, part in enumerate(foreign)][-1] == other
    gather = Gather()
    gather.add("job", 3, 0, parts[0])
    with pytest.raises(RemoteWireError):
        gather.add("other", 3, 1, parts[1])


def test_a_delta_larger_than_its_limit_is_not_gathered():
    """I6: neither the size a chunk claims nor what chunks carry can make a device hold more."""
    liar = chunks.Chunk(0, 2, 10, bytes(8), bytes(11)).encode()
    huge = chunks.Chunk(0, 2, FANOUT_BYTES_MAX + 1, bytes(8), b"x").encode()
    for packet in (liar, huge):
        with pytest.raises(RemoteWireError):
            Gather().add("job", 3, 0, packet)
