"""Split-stream Rice codes of non-negative integers, vectorised in numpy both ways.

Golomb (1966) with a power-of-two divisor, Rice & Plaunt (1971). A value v is coded as its quotient v >> r in
unary (that many 0 bits, then a 1) and its remainder in r bits. Quotients go to one bit stream and remainders
to another, so that each decodes with array operations and no loop over values. Bits fill bytes from the
most significant bit.
"""

import numpy as np
import numpy.typing as npt

from edge_client.wire.errors import RemoteWireError

R_MAX = 31  # the largest remainder width: a gap is below 2**32
_GOLDEN = 0.6180339887498949

Ints = npt.NDArray[np.int64]
Bits = npt.NDArray[np.uint8]


def parameter(mean: float) -> int:
    """The r that suits geometric values of this mean (Kiely 2004, eq. 8); 0 for a mean near zero."""
    if mean <= _GOLDEN:
        return 0
    r = int(np.floor(np.log2(np.log(_GOLDEN) / np.log(mean / (mean + 1.0))))) + 1
    return min(max(r, 0), R_MAX)


def quotient_bits(values: Ints, r: int) -> Bits:
    """Unary quotients as an array of 0/1 of length sum(v >> r) + len(values)."""
    ends = np.cumsum((values >> r) + 1) - 1
    bits = np.zeros(int(ends[-1]) + 1 if len(ends) else 0, dtype=np.uint8)
    bits[ends] = 1
    return bits


def remainder_bits(values: Ints, r: int) -> Bits:
    """Remainders as an array of 0/1 of length r * len(values), most significant bit first."""
    return fixed_bits(values & ((1 << r) - 1), r)


def fixed_bits(values: Ints, width: int) -> Bits:
    """Values below 2**width as an array of 0/1, most significant bit first."""
    shifts = np.arange(width - 1, -1, -1, dtype=np.int64)
    return ((values[:, None] >> shifts) & 1).astype(np.uint8).ravel()


def from_fixed_bits(bits: Bits, width: int) -> Ints:
    """Inverse of `fixed_bits`; int64 array of len(bits) / width values."""
    if width == 0:
        raise ValueError("values of zero width have no count")
    weights = np.int64(1) << np.arange(width - 1, -1, -1, dtype=np.int64)
    return bits.reshape(-1, width).astype(np.int64) @ weights


def decode(ends: Ints, remainders: Bits, r: int) -> Ints:
    """Values whose unary codes end at bit positions `ends`, counted from the first bit of these codes."""
    quotients = np.diff(ends, prepend=-1) - 1
    if r == 0:
        return quotients
    return (quotients << r) | from_fixed_bits(remainders, r)


class BitReader:
    """Takes bit runs from packed bytes in order; raises RemoteWireError (`bad_stream`) past the end."""

    def __init__(self, data: memoryview) -> None:
        self._bits: Bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8))
        self._at = 0

    def take(self, count: int) -> Bits:
        """The next `count` bits."""
        if count > len(self._bits) - self._at:
            raise RemoteWireError("bad_stream", "a bit stream ends before its last value")
        self._at += count
        return self._bits[self._at - count : self._at]

    def finish(self) -> None:
        """Check that only zero padding of less than a byte is left."""
        rest = self._bits[self._at :]
        if len(rest) >= 8 or rest.any():
            raise RemoteWireError("bad_stream", "a bit stream goes on after its last value")


class UnaryReader:
    """Takes runs of unary codes from packed bytes in order."""

    def __init__(self, data: memoryview, count: int) -> None:
        bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8))
        self._ends: Ints = np.flatnonzero(bits).astype(np.int64)
        self._at = 0
        if len(self._ends) != count:
            raise RemoteWireError(
                "bad_stream", f"the unary stream holds {len(self._ends)} values instead of {count}"
            )
        if len(bits) - (int(self._ends[-1]) + 1 if count else 0) >= 8:
            raise RemoteWireError("bad_stream", "the unary stream goes on after its last value")

    def take(self, count: int) -> Ints:
        """End positions of the next `count` codes, relative to the first bit of the first of them."""
        start = int(self._ends[self._at - 1]) + 1 if self._at else 0
        self._at += count
        return self._ends[self._at - count : self._at] - start
