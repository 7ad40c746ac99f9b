"""What integrators are told of fleet and jobs."""

from aggregator.board import TELL_S, Board
from edge_client.wire import topics
from edge_client.wire.messages import DeviceState, FleetState


def test_integrators_are_told_what_changed_and_not_often(drive, bundle):
    """Everything at first, then only what changed, at most every TELL_S seconds; after a restart all of it again."""

    async def body(site):
        await site.start_job(bundle, buffer_size=1)
        board, engine = Board(), site.engine

        def told():
            return board.due(engine.fleet, engine.jobs, engine.store.records, site.clock.now)

        first = told()
        assert set(first) == {topics.fleet_state(), topics.job_state("job")}
        await site.say("dev-1", "state", DeviceState("ready", 1))
        await site.step()
        assert told() == {}
        site.clock.now += TELL_S
        assert told() == {topics.fleet_state(): FleetState({"ready": 1}, {"running": 1})}
        site.clock.now += TELL_S
        assert told() == {}
        await site.update("dev-1", 1)
        await site.step()
        site.clock.now += TELL_S
        (job,) = told().values()
        assert (job.version, job.updates) == (1, 1)
        assert await site.down(topics.fleet_state(), FleetState) == FleetState({"ready": 1}, {"running": 1})

    drive(body)
