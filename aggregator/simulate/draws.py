"""All randomness of a simulation, each stream from (seed, purpose, device, count): order and workers cannot matter.

Runs of several strategies with one seed therefore meet the same devices.
"""

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What a stream is for."""

    TEST = 1  # which samples are set apart for evaluation
    PARTITION = 2  # which device has which samples
    SPEED = 3
    SLOW = 4
    LINK = 5
    AVAILABILITY = 6
    MALICIOUS = 7
    START = 8  # when devices see the offer
    NEXT = 9  # which idle device asks next
    TASK = 10  # jitter and crash of one participation
    MESSAGE = 11  # what happens to one message


def rng(seed: int, purpose: Purpose, device: int = 0, count: int = 0) -> np.random.Generator:
    """The stream of this purpose; `count` numbers what one device draws for it."""
    return np.random.default_rng((seed, int(purpose), device, count))
