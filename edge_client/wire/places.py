"""Where the values of a model's tensors lie, all tensors at once: indices become gaps, and gaps indices again.

A tensor that has every value has no gaps; `counts` and `sizes` are int64 by tensor, indices count from the start of
their own tensor.
"""

import numpy as np
import numpy.typing as npt

from edge_client.wire import bits
from edge_client.wire.errors import LocalWireError, RemoteWireError

Ints = npt.NDArray[np.int64]


def starts(counts: Ints) -> Ints:
    """Where each tensor's part begins."""
    begins: Ints = np.cumsum(counts) - counts
    return begins


def gaps(indices: Ints, counts: Ints, sizes: Ints) -> tuple[Ints, Ints]:
    """The gaps of the tensors that lack a value, and the Rice parameter of each.

    Raises LocalWireError when indices do not increase.
    """
    found = np.diff(indices, prepend=-1) - 1
    first = starts(counts)[counts > 0]
    found[first] = indices[first]
    if len(found) and int(found.min()) < 0:
        raise LocalWireError("indices of a tensor must increase")
    return found[np.repeat(counts < sizes, counts)], parameters(counts, sizes)


def parameters(counts: Ints, sizes: Ints) -> Ints:
    """The Rice parameter of each gap; its sum is the length in bits of their remainders."""
    return np.repeat(bits.parameters(counts, sizes), _coded(counts, sizes))


def indices(found: Ints, counts: Ints, sizes: Ints) -> Ints:
    """Inverse of `gaps`; raises RemoteWireError (`bad_index`)."""
    coded = _coded(counts, sizes)
    limit = np.repeat(sizes, coded)
    # A hostile gap could overflow the running sum, so each is bounded before it is added.
    if (found >= limit).any():
        raise RemoteWireError("bad_index", f"a gap of {int(found.max())} is larger than its tensor")
    ends = np.cumsum(found + 1)
    begins = starts(coded)
    before = np.where(begins > 0, ends[np.maximum(begins - 1, 0)] if len(ends) else 0, 0)
    sparse = ends - np.repeat(before, coded) - 1
    if (sparse >= limit).any():
        raise RemoteWireError("bad_index", "an index lies outside its tensor")
    places: Ints = np.arange(int(counts.sum()), dtype=np.int64) - np.repeat(starts(counts), counts)
    places[np.repeat(coded > 0, counts)] = sparse
    return places


def _coded(counts: Ints, sizes: Ints) -> Ints:
    """How many gaps each tensor has."""
    return np.where(counts < sizes, counts, 0)
