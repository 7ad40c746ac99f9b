"""The uplink as a device measures it, and the density it chooses by it."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.link import VALUE_BITS, Link, Meter, density, update_bytes
from edge_client.wire.messages import TrainingPlan, UplinkPlan
from edge_client.wire.sparse import CODECS, LEVEL_BITS

PARAMETERS = 25_000
PLAN = TrainingPlan(10, 4, 0.1, 0.05, 1.0, uplink=UplinkPlan(PARAMETERS, 10.0, 0.001, 0.05))


def test_codecs_whose_size_follows_the_density_are_known():
    """Each sparse codec's bits a value are those of its format; `sign` keeps every value whatever the density."""
    sparse = {name: 1 + LEVEL_BITS[c] for name, c in CODECS.items() if c in LEVEL_BITS and name != "sign"}
    assert sparse == VALUE_BITS


def test_an_unmeasured_or_fast_link_sends_the_jobs_density():
    """Nothing is thinned out without need."""
    assert density(None, PLAN) == density(1e9, PLAN) == 0.05
    assert density(1.0, msgspec.structs.replace(PLAN, uplink=None)) == 0.05
    assert density(1.0, msgspec.structs.replace(PLAN, codec="dense-fp16")) == 0.05


def test_a_slow_link_sends_what_fits_and_never_less_than_the_floor():
    """The update fits the budget; where even the least does not, the least is sent."""
    chosen = density(50.0, PLAN)
    assert 0.001 < chosen < 0.05
    assert update_bytes(PARAMETERS, chosen, 1) == pytest.approx(500, rel=1e-3)
    assert density(0.1, PLAN) == 0.001


def test_a_fast_link_sends_up_to_the_named_most():
    """With a most above the job's density, a link that has room sends more."""
    plan = msgspec.structs.replace(PLAN, uplink=UplinkPlan(PARAMETERS, 10.0, 0.001, 0.4))
    assert density(1e6, plan) == 0.4
    assert 0.05 < density(200.0, plan) < 0.4


@given(st.floats(0.01, 1e7), st.floats(0.01, 1e7), st.sampled_from(sorted(VALUE_BITS)), st.floats(1e-5, 1))
def test_the_choice_is_within_its_bounds_and_grows_with_the_rate(one, other, codec, most):
    """A faster link never sends less, whatever the codec and the job's density."""
    plan = TrainingPlan(1, 1, 0.1, most, 1.0, codec=codec, uplink=UplinkPlan(PARAMETERS, 3.0, 1e-5, most))
    slow, fast = sorted((one, other))
    assert 1e-5 * (1 - 1e-9) <= density(slow, plan) <= density(fast, plan) <= most


def test_the_rate_follows_the_link():
    """A link that became ten times slower is seen within a few updates, a single slow one does not decide."""
    link = Link()
    assert link.rate is None
    for _ in range(10):
        link = link.measured(1000, 1.0)
    assert link.rate == pytest.approx(1000)
    assert link.measured(1000, 4.0).rate > 400
    for _ in range(12):
        link = link.measured(1000, 10.0)
    assert link.rate == pytest.approx(100, rel=0.1)


def test_an_update_is_timed_from_its_first_packet_to_its_last_acknowledgement():
    """Acknowledgements come in any order and among others; those of an update that was given up count nowhere."""
    meter = Meter()
    meter.begin(0.0)
    meter.sent(1, 500)
    meter.begin(10.0)
    meter.sent(5, 100)
    meter.sent(6, 50)
    assert meter.acknowledged(5, 10.5) is None
    assert meter.acknowledged(1, 10.6) is None
    meter.sent(7, 25)
    meter.end()
    assert meter.acknowledged(7, 11.0) is None
    assert meter.acknowledged(6, 12.0) == (175, 2.0)
    assert meter.acknowledged(6, 13.0) is None
