"""Leases: places are limited, returned, and never blocked by a device that vanished."""

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

    assert leases.expire(59.9) == []
    assert leases.expire(60) == ["a"]
    assert grant(leases, 60, places=1) == ["b"]


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
