"""Leases: places are limited, returned, and never blocked by a device that vanished."""

from collections import Counter

import pytest

from aggregator.leases import Leases
from edge_client.wire.messages import Ask


def ask(number=1):
    return Ask(job="j", ask=number, n_samples=10)


def grant(leases, now, places=2):
    return [g.device for g in leases.grant(places=places, version=0, now=now, lease_s=60)]


def test_those_who_waited_longest_get_the_places():
    """Places go in the order of asking, up to the concurrency."""
    leases = Leases()
    for at, device in enumerate(("c", "a", "b")):
        leases.ask(device, ask(), at)

    assert grant(leases, 10) == ["c", "a"]
    assert grant(leases, 11) == []


def test_a_vanished_device_frees_its_place():
    """An expired lease goes to the next who waits."""
    leases = Leases()
    leases.ask("a", ask(), 0)
    assert grant(leases, 0, places=1) == ["a"]
    leases.ask("b", ask(), 1)

    assert leases.expire(59.9, 60) == []
    assert leases.expire(60, 60) == ["a"]
    assert grant(leases, 60, places=1) == ["b"]


def test_a_clock_set_back_makes_no_lease_longer():
    """A place given by a clock that was a day ahead is free once a lease given now would be over."""
    leases = Leases()
    leases.ask("a", ask(), 0)
    assert grant(leases, 86_400, places=1) == ["a"]

    assert leases.expire(0, 60) == []
    assert leases.expire(59.9, 60) == []
    assert leases.expire(60, 60) == ["a"]


def test_an_answer_of_before_the_clock_was_set_back_hides_no_ask():
    """A device that counts its asks anew is heard, though the clock was a day ahead when its last one was answered."""
    leases = Leases()
    leases.ask("a", ask(9), 86_400)
    assert grant(leases, 86_400) == ["a"]
    leases.release("a", 86_400)
    leases.ask("a", ask(1), 86_401)
    assert leases.waiting == {}
    leases.ask("a", ask(1), 0)

    assert grant(leases, 0) == ["a"]


def test_a_repeated_ask_is_granted_again():
    """A device that lost its assignment asks again with the same number and gets another."""
    leases = Leases()
    leases.ask("a", ask(3), 0)
    assert grant(leases, 0, places=1) == ["a"]

    leases.ask("a", ask(3), 5)

    assert grant(leases, 5, places=1) == ["a"]


def test_an_older_ask_is_ignored():
    """A late duplicate of an earlier ask takes no place away."""
    leases = Leases()
    leases.ask("a", ask(3), 0)
    grant(leases, 0)

    leases.ask("a", ask(2), 1)

    assert leases.held["a"].ask.ask == 3
    assert leases.waiting == {}


def test_a_fair_choice_prefers_who_contributed_least():
    """Of those who wait, who has contributed least gets the place, whenever it asked."""
    leases = Leases(policy="fair")
    for at, (device, done) in enumerate((("a", 5), ("b", 1), ("c", 1))):
        leases.ask(device, ask(), at, done)

    assert grant(leases, 10) == ["b", "c"]


def test_a_random_choice_is_seeded_and_reaches_everybody():
    """The same seed chooses the same devices; over many places each device has an equal chance."""

    def chosen(seed):
        leases = Leases(policy="random", seed=seed)
        for at in range(20):
            leases.ask(f"d{at:02}", ask(), at)
        return grant(leases, 100, places=5)

    assert chosen(1) == chosen(1) != chosen(2)
    counts = Counter(device for seed in range(400) for device in chosen(seed))
    assert len(counts) == 20
    assert all(60 <= count <= 140 for count in counts.values())  # 100 expected, deviation 9


@pytest.mark.parametrize("policy", ["round-robin", "random", "fair"])
def test_whoever_is_barred_goes_on_waiting(policy):
    """A device that has had its share of a buffer keeps its turn for the next."""
    leases = Leases(policy=policy)
    for at, device in enumerate("abc"):
        leases.ask(device, ask(), at)

    first = leases.grant(places=3, version=0, now=5, lease_s=60, barred={"b"})

    assert sorted(g.device for g in first) == ["a", "c"]
    assert grant(leases, 6, places=3) == ["b"]


@pytest.mark.parametrize("policy", ["round-robin", "random", "fair"])
def test_who_went_away_is_not_chosen(policy):
    """A device that disconnected while it waited gets no place until it asks again."""
    leases = Leases(policy=policy)
    for at, device in enumerate("ab"):
        leases.ask(device, ask(), at)
    leases.away("a")

    assert grant(leases, 5) == ["b"]
    leases.ask("a", ask(2), 6)
    assert grant(leases, 7) == ["a"]


def test_a_late_copy_of_an_answered_ask_takes_no_place():
    """A device that has given its update is not given a place by a copy of the ask before it; its next ask counts."""
    leases = Leases()
    leases.ask("a", ask(3), 0)
    assert grant(leases, 0) == ["a"]
    leases.release("a", 10)

    leases.ask("a", ask(3), 12)
    assert grant(leases, 12) == []
    leases.ask("a", ask(4), 13)
    assert grant(leases, 13) == ["a"]


def test_a_device_that_counts_anew_is_heard_after_a_while():
    """A device set up afresh begins with ask 1; it is a late copy for two minutes and then a device that asks."""
    leases = Leases()
    leases.ask("a", ask(9), 0)
    grant(leases, 0)
    leases.release("a", 10)

    leases.ask("a", ask(1), 20)
    assert grant(leases, 20) == []
    leases.ask("a", ask(1), 140)
    assert grant(leases, 140) == ["a"]


def test_an_ask_repeated_while_its_device_trained_takes_no_place():
    """A copy of an ask puts its device among those who wait; the update that it has trained takes it out again."""
    leases = Leases()
    leases.ask("a", ask(3), 0)
    grant(leases, 0)
    leases.ask("a", ask(3), 5)
    leases.release("a", 10)

    assert grant(leases, 10) == []
