"""I2: a model is a function of the log, whatever the process that reads it goes through, for every strategy."""

import asyncio
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_bridge.ports.open import open_ports
from tests.unit.aggregator.conftest import Site

STRATEGIES = {
    "fedbuff": {},
    "fedavg": {"strategy": "fedavg"},
    "fedasync": {"strategy": "fedasync", "buffer_size": 1},
    "calibrated": {"strategy": "calibrated", "downlink_density": 0.1},
    "fadas": {"strategy": "fadas", "downlink_density": 0.1},
    "defended": {"robust": {"clip_factor": 0.5, "device_share_max": 0.3}, "downlink_density": 0.1},
}
UPDATES = 14


async def model(bundle, fields, updates, *, restarts=(), repeats=()):
    """The digests of all versions after these updates of (device, seed, versions behind)."""
    with tempfile.TemporaryDirectory() as cache:
        ports = open_ports("memory:")
        site = Site(ports, Path(cache))
        try:
            await site.engine.load()
            job = await site.start_job(bundle, **{"buffer_size": 3, **fields})
            for number, (device, seed, behind) in enumerate(updates):
                base = max(0, job.version - min(behind, job.spec.staleness_max))
                uid = site.uid(f"dev-{device}")
                for _ in range(2 if number in repeats else 1):  # a duplicate has the effect of one
                    await site.update(f"dev-{device}", seed, base, uid)
                await site.step()
                if number in restarts:
                    if seed % 2:  # else the newest memo is older than the newest version
                        await site.engine._save_memo()
                    site.fresh_engine()
                    await site.engine.load()
                    await site.step()
                    job = site.engine.jobs["job"]
            return [(r.version, r.manifest) for r in job.history.records], job.buffered
        finally:
            await ports.close()


@pytest.mark.parametrize("name", STRATEGIES)
@settings(max_examples=8)
@given(
    st.lists(
        st.tuples(st.integers(0, 6), st.integers(0, 99), st.integers(0, 2)),
        min_size=UPDATES,
        max_size=UPDATES,
    ),
    st.sets(st.integers(0, UPDATES - 1), max_size=5),
    st.sets(st.integers(0, UPDATES - 1), max_size=5),
)
def test_restarts_and_duplicates_leave_every_manifest_as_it_is(bundle, name, updates, restarts, repeats):
    """An engine that dies again and again while updates come twice writes the same manifests as one that never does."""
    fields = STRATEGIES[name]
    plain = asyncio.run(model(bundle, fields, updates))
    troubled = asyncio.run(model(bundle, fields, updates, restarts=restarts, repeats=repeats))

    assert troubled == plain
    assert len(plain[0]) > 1
