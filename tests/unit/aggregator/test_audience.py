"""Fan-out or pull: what each costs a device decides, and only devices that follow are published to."""

import msgspec
import pytest

from aggregator.audience import FAN_BYTES, PULL_BYTES, Audience
from broker_bridge import cells
from edge_client.wire import topics
from edge_client.wire.messages import Assignment


class Paths:
    """Deltas of 1000 B, of which several merge to 700 B each."""

    def prices(self, holds, version):
        behind = version - holds
        return None if behind <= 0 else ([1000] * behind, 1000 if behind == 1 else 700 * behind)


def after(mode, behind, grants=60):
    audience, version, asked = Audience(mode), 0, []
    for turn in range(grants):
        version += behind
        asked.append(audience.grant("dev", version, float(turn), 10.0, Paths()))
    return audience, asked


@pytest.mark.parametrize(("mode", "behind", "follows"), [
    ("auto", 1, True), ("auto", 4, False), ("always", 4, True), ("never", 1, False)])  # fmt: skip
def test_devices_follow_where_deltas_one_by_one_are_no_more_bytes(mode, behind, follows):
    """Taking part in every version makes fan-out pay; coming back after several does not, unless asked for."""
    audience, asked = after(mode, behind)
    assert asked[-1] is follows
    assert audience.listens(60.0) is follows
    assert not audience.listens(59.0 + 10.0)


def test_nothing_is_assumed_before_it_is_measured():
    """The first assignments do not follow: whether it pays shows with a device's second one."""
    assert after("auto", 1, grants=2)[1] == [False, True]


def test_the_decision_follows_the_fleet():
    """A fleet that begins to come back late stops following within some grants."""
    audience, _ = after("auto", 1)
    version, turns = 60, 0
    while audience.pays:
        version, turns = version + 4, turns + 1
        audience.grant("dev", version, 100.0, 10.0, Paths())
    assert turns * 4 * (300 + FAN_BYTES) > PULL_BYTES
    assert turns < 20


def test_a_version_is_handed_out_only_while_somebody_follows(drive, bundle):
    """The delta's digest is in the fan-out cell when a device follows; it goes when the job ends."""

    async def body(site):
        job = await site.start_job(bundle, buffer_size=1, concurrency=2, lease_s=60, fanout="always")

        async def fanned():
            _, value = await site.ports.heads.load(cells.fan_key("job"))
            return value and msgspec.json.decode(value, type=cells.FanCell)

        await site.update("dev-2", 0)
        await site.step()
        assert not await fanned()
        await site.ask("dev-1", holds=1)
        await site.step()
        assert (await site.down(topics.assign("dev-1", "job"), Assignment)).follow
        await site.update("dev-2", 1)
        await site.step()
        assert await fanned() == cells.FanCell("all", 2, job.manifest.delta.digest)
        site.clock.now += 61
        await site.update("dev-2", 2)
        await site.step()
        assert (await fanned()).version == 2
        await site.engine.end("job", "enough")
        assert not await fanned()

    drive(body)
