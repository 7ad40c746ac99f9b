"""Control messages: readable JSON, tolerant of more, strict about types."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.wire import messages
from edge_client.wire.errors import LocalWireError, RemoteWireError
from edge_client.wire.messages import (
    Ask,
    Assignment,
    DeviceState,
    Evaluation,
    Metrics,
    Offer,
    Receipt,
    TaskStatus,
)

KINDS = (Ask, Assignment, DeviceState, Evaluation, Offer, Receipt, TaskStatus)


def test_a_message_is_plain_json():
    """Anyone can read a control message with a generic MQTT client."""
    data = messages.encode(Evaluation(3, Metrics(10, 0.5, 0.9), steps=20))

    assert json.loads(data) == {"version": 3, "before": {"n": 10, "loss": 0.5, "accuracy": 0.9}, "steps": 20}


def test_unknown_keys_are_ignored():
    """A newer peer may say more."""
    assert messages.decode(Ask, b'{"job":"j","ask":1,"n_samples":5,"mood":"good"}') == Ask("j", 1, 5)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b'{"job":"j","ask":"one","n_samples":5}', "$.ask"),
        (b'{"job":"j","n_samples":5}', "`ask`"),
        (b'{"job":7,"ask":1,"n_samples":5}', "$.job"),
        (b"[]", "Ask"),
        (b"\xff", "Ask"),
        (b"", "Ask"),
    ],
)
def test_a_wrong_type_names_the_field(data, word):
    """The refusal says which field of which message is wrong."""
    with pytest.raises(RemoteWireError) as caught:
        messages.decode(Ask, data)

    assert caught.value.code == "bad_message"
    assert word in str(caught.value)


def test_size_is_limited_both_ways():
    """I6: a control message has a limit, on the way out and on the way in."""
    with pytest.raises(LocalWireError):
        messages.encode(TaskStatus("failed", 1, reason="x" * 70_000))
    with pytest.raises(RemoteWireError) as caught:
        messages.decode(TaskStatus, b'"' + b"x" * 70_000 + b'"')
    assert caught.value.code == "too_large"


@given(st.binary(max_size=200), st.sampled_from(KINDS))
def test_garbage_is_refused_never_a_crash(data, kind):
    """I11: any bytes decode or are refused."""
    with contextlib.suppress(RemoteWireError):
        messages.decode(kind, data)
