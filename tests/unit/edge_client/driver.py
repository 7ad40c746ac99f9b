"""A session as its tests drive it: event by event, on a clock of their own."""

import random

from edge_client import events as ev
from edge_client.job import Phase
from edge_client.session import Session
from edge_client.wire.topics import Uid
from tests.unit.edge_client.offers import BUNDLE, INFO, MODEL, TRAINED, assignment, offer


def stored(seq=1, ask=2, job="job"):
    """What the store says of a finished training."""
    uid = Uid("dev", job, "e" * 16, seq)
    twin = Uid("dev", job, "e" * 16, seq + 1)
    rows = (ev.Row(uid, "update", 5, published=False), ev.Row(twin, "evaluation", 5, published=False))
    return ev.Stored(job, rows, 3, ask)


class Driver:
    """A session with a clock and the actions of the last event."""

    def __init__(self):
        self.now = 100.0
        self.session = Session(
            device="dev",
            datasets=["demo"],
            jobs=[],
            rows=[],
            next_ask=1,
            first_rev=0,
            rng=random.Random(1),
        )

    def __call__(self, event, *, after=0.0):
        """Handle an event and return its actions."""
        self.now += after
        self.actions = self.session.handle(event, self.now)
        return self.actions

    def said(self):
        """States and reasons published by the last event."""
        return [(a.message.state, a.message.reason) for a in self.actions if self._is(a, "/task/")]

    def asks(self):
        """Asks published by the last event."""
        return [a.message for a in self.actions if self._is(a, "/ask")]

    def phase(self, job="job"):
        """The phase of a job."""
        return self.session.phase(job)

    def to(self, phase):
        """Bring a job to a phase."""
        steps = [
            (Phase.ASKING, (ev.Connected(), ev.DataKnown("demo", INFO), ev.OfferSeen(offer()))),
            (Phase.PULLING, (ev.Assigned(assignment(1)),)),
            (Phase.TRAINING, (ev.Pulled(BUNDLE.digest), ev.Pulled(MODEL.digest))),
            (Phase.UPLOADING, (ev.Answered("job", 1, TRAINED), stored())),
        ]
        for reached, events in steps:
            for event in events:
                self(event)
            if reached is phase:
                break
        assert self.phase() is phase
        return self

    @staticmethod
    def _is(action, part):
        return isinstance(action, ev.Publish) and part in action.topic
