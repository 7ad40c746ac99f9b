"""Updates of many devices decoded at once."""

import asyncio

import numpy as np

from broker_bridge.decoding import Decoding
from edge_client.wire import sparse
from edge_client.wire.errors import RemoteWireError
from edge_client.wire.weights import Sparse, SparseTensor

SIZES = (40, 8)


def frames():
    """Four of one form, the last of them cut."""
    made = []
    for tag in range(4):
        kept = [
            SparseTensor(np.arange(tag, tag + 3), np.zeros(3, bool), 0.5),
            SparseTensor(np.arange(2), np.ones(2, bool), 1.0),
        ]
        made.append(
            sparse.encode(sparse.Update(1, bytes(8), tag, 10, Sparse.of(kept)), SIZES, sparse.Codec.TERNARY)
        )
    return [*made[:3], made[3][:-5]]


async def decoded():
    decoding = Decoding()
    return await asyncio.gather(*(decoding.decode(data, SIZES, 0) for data in frames()))


def test_each_of_many_gets_its_own_update_or_error():
    """I11: a damaged frame is refused for itself, and those beside it are decoded."""
    *updates, damaged = asyncio.run(decoded())

    assert [update.tag for update in updates] == [0, 1, 2]
    assert isinstance(damaged, RemoteWireError)


def test_nobody_waits_for_frames_that_cannot_be_decoded_together(monkeypatch):
    """I6: when decoding many meets a bug each is answered, and left to be decoded alone."""
    monkeypatch.setattr("edge_client.wire.rows.Table", None)

    assert asyncio.run(asyncio.wait_for(decoded(), 10)) == [None] * 4
