"""Topics: built and parsed back, names checked, partitions stable."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.wire import topics
from edge_client.wire.errors import LocalWireError, RemoteWireError
from edge_client.wire.topics import Uid

names = st.from_regex(r"[a-z0-9-]{1,64}", fullmatch=True)
numbers = st.integers(0, 2**32 - 1)
uids = st.builds(Uid, names, names, st.from_regex(r"[0-9a-f]{16}", fullmatch=True), numbers)


@given(uids, numbers)
def test_what_is_built_parses_back(uid, index):
    """Every topic a device publishes to names the same things when it is read."""
    device, job = uid.device, uid.job

    assert topics.parse_up(topics.state(device)) == topics.StateTopic(device)
    assert topics.parse_up(topics.info(device)) == topics.InfoTopic(device)
    assert topics.parse_up(topics.ask(device)) == topics.AskTopic(device)
    assert topics.parse_up(topics.get(device)) == topics.GetTopic(device)
    assert topics.parse_up(topics.task(device, job)) == topics.TaskTopic(device, job)
    assert topics.parse_up(topics.evaluation(uid)) == topics.EvaluationTopic(uid)
    assert topics.parse_up(topics.update(uid, index)) == topics.UpdateTopic(uid, index)
    assert Uid.parse(str(uid)) == uid


@given(names, names, st.binary(min_size=32, max_size=32), numbers)
def test_what_a_server_publishes_parses_on_a_device(device, job, digest, index):
    """Every topic a device reads names the same things when it is read."""
    assert topics.parse_down(topics.assign(device, job)) == topics.AssignTopic(job)
    assert topics.parse_down(topics.end(device, job)) == topics.EndTopic(job)
    assert topics.parse_down(topics.receipt(device)) == topics.ReceiptTopic()
    assert topics.parse_down(topics.delta(device, job, index, 7)) == topics.DeltaTopic(device, job, index, 7)
    assert topics.parse_down(topics.blob(device, digest.hex(), index)) == topics.BlobTopic(
        digest.hex(), index
    )
    assert topics.parse_down(topics.offer(device, job)) == topics.OfferTopic(device, job)
    assert topics.parse_down(topics.service_state(job)) == topics.ServiceTopic(job)


@given(st.text(max_size=200))
def test_any_text_parses_or_is_refused(text):
    """I6: a topic from the network is understood or refused, never a crash."""
    for parse in (topics.parse_up, topics.parse_down):
        for topic in (text, f"{topics.ROOT}/d/{text}", f"{topics.ROOT}/c/x/{text}"):
            with contextlib.suppress(RemoteWireError):
                parse(topic)


@pytest.mark.parametrize("name", ["", "A", "a/b", "a+", "#", "ä", "a" * 65, "a b"])
def test_names_that_could_escape_a_topic_are_refused(name):
    """I12: a name is 1 to 64 of a-z, 0-9 and '-', so that it cannot reach another device's topics."""
    with pytest.raises(LocalWireError, match="device"):
        topics.check_id(name, "device")
    with pytest.raises(RemoteWireError):
        topics.parse_up(f"{topics.ROOT}/d/{name}/ask")


@pytest.mark.parametrize("seq", ["-1", "01", "4294967296", "1.0", "", "٣"])
def test_sequence_numbers_have_one_spelling(seq):
    """I12: two spellings of a number would be two names for one update."""
    with pytest.raises(RemoteWireError):
        topics.parse_up(f"{topics.ROOT}/d/a/up/j/{'0' * 16}/{seq}/0")


def test_partitions_are_stable():
    """A device's entries stay in one order for ever: these values are part of the contract."""
    assert [topics.partition(f"device-{n}", 64) for n in range(5)] == [18, 41, 63, 54, 30]
