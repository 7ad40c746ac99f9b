"""A job as tests of the device see it: offer, assignment, and what its training gives."""

from edge_client.store import NewUpdate
from edge_client.trainer_protocol import Trained
from edge_client.wire.messages import (
    Assignment,
    BlobRef,
    DataSchema,
    DatasetInfo,
    Evaluation,
    Metrics,
    Offer,
    TrainingPlan,
)
from edge_client.wire.topics import Uid

SCHEMA = DataSchema((2, 8), 3, ("channel", "time"))
INFO = DatasetInfo("demo", SCHEMA, 40)
BUNDLE = BlobRef("b" * 64, 10)
MODEL = BlobRef("c" * 64, 10)
TRAINED = Trained(b"frame", b"accepted", b"kept", Evaluation(0, Metrics(1, 1.0, 0.0)))


def offer(job="job", data=SCHEMA):
    """An offer whose asks are repeated each 10 s."""
    return Offer(job, "demo", data, BUNDLE, 10.0)


def assignment(ask, job="job", not_before=0.0):
    """An answer to an ask, with a lease of 100 s."""
    plan = TrainingPlan(10, 4, 0.1, 0.1, 1.0)
    return Assignment(job, ask, 3, "00" * 8, BUNDLE, (MODEL,), plan, 100.0, not_before)


def finished(store, job="job", text=b"a"):
    """Store a finished training and return its uid."""
    uid = Uid("dev", job, store.epoch, store.next_seq)
    store.add_update(NewUpdate(uid, b"frame" + text, b"{}", 3, b"accepted" + text, b"kept" + text))
    return uid
