"""A decoder of updates as docs/wire.md has them, a bit at a time and without the code under test."""

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from edge_client.wire import sparse
from edge_client.wire.weights import Sparse, SparseTensor

VECTORS = json.loads((Path(__file__).parent / "vectors" / "updates.json").read_text())
LEVEL_BITS = {1: 0, 2: 3, 3: 7}


class Bits:
    """Streams of bits, one after another (§6)."""

    def __init__(self, data):
        self.text = "".join(f"{byte:08b}" for byte in data)
        self.at = 0

    def take(self, width):
        self.at += width
        return int(self.text[self.at - width : self.at] or "0", 2)

    def unary(self):
        zeros = self.text.index("1", self.at) - self.at
        self.at += zeros + 1
        return zeros

    def align(self):
        padding = -self.at % 8
        assert self.take(padding) == 0

    def count(self):
        value, shift = 0, 0
        while True:
            byte = self.take(8)
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7


def nested_places(bits, taken, size):
    """§6, Nested places."""
    free = {0: 0, taken + 1: size - taken}
    step = 1 << max(taken.bit_length() - 1, 0)
    while step and 0 < taken < size:
        level = []
        for i in range(step, taken + 1, 2 * step):
            low, high = free[i - step], free[min(i + step, taken + 1)]
            level.append((i, low, high - low + 1, bits.take((high - low + 1).bit_length() - 1)))
        for i, low, m, y in level:
            s = 2 ** m.bit_length() - m
            x = 2 * y + bits.take(1) - s if y >= s else y
            v = x - s // 2
            free[i] = low + (v + m if v < 0 else v)
        step //= 2
    bits.align()
    return [free.get(i, 0) + i - 1 for i in range(1, taken + 1)]


def rice_parameter(n, k):
    """§6, Rice codes."""
    t = 9624 * (2 * (n - k) + k + 1) // (20000 * (k + 1))
    return min(max(0, t.bit_length() - 1), 31)


def read_gaps(bits, sizes, width):
    """(index, negative, level) of each value of each tensor, in the form gaps."""
    counts = [bits.count() for _ in sizes]
    kept = sum(counts)
    signs = [bits.take(1) for _ in range(kept)]
    bits.align()
    levels = [bits.take(width) + 1 for _ in range(kept)]
    bits.align()
    parameters = [rice_parameter(n, k) for n, k in zip(sizes, counts, strict=True) for _ in range(k % n)]
    remainders = [bits.take(r) for r in parameters]
    bits.align()
    gaps = [(bits.unary() << r) + rest for r, rest in zip(parameters, remainders, strict=True)]
    bits.align()
    tensors = []
    for n, k in zip(sizes, counts, strict=True):
        index, values = -1, []
        for _ in range(k):
            index += 1 + (gaps.pop(0) if k < n else 0)
            values.append((index, bool(signs.pop(0)), levels.pop(0)))
        tensors.append(values)
    return tensors


def read_nested(bits, sizes, width):
    """(index, negative, level) of each value of each tensor, in the form nested."""
    kept = bits.count()
    where = nested_places(bits, kept, 2 * sum(sizes))
    levels = [bits.take(width) + 1 for _ in range(kept)]
    bits.align()
    tensors, begin = [], 0
    for n in sizes:
        mine = [(p - 2 * begin, v) for p, v in zip(where, levels, strict=True) if 0 <= p - 2 * begin < 2 * n]
        tensors.append(sorted((p % n, p >= n, level) for p, level in mine))
        begin += n
    return tensors


def read(data, sizes, statistics):
    """(head, statistics, [(scale, values)…]) of an UPDATE frame of codec 1, 2 or 3 (§4, §7)."""
    length, crc = struct.unpack_from("<I", data, 4)[0], struct.unpack("<I", data[-4:])[0]
    assert (data[:3], length, crc) == (b"\xff\x01\x01", len(data) - 12, zlib.crc32(data[:-4]))
    version, tag, base, samples = struct.unpack_from("<II8sH", data, 8)
    observed = list(struct.unpack_from(f"<{statistics}e", data, 26))
    bits = Bits(data[26 + 2 * statistics : -4])
    form = read_gaps if data[3] & 0x80 else read_nested
    tensors = form(bits, sizes, LEVEL_BITS[data[3] & 0x7F])
    scales = [struct.unpack("<e", bits.take(16).to_bytes(2))[0] if values else 0.0 for values in tensors]
    assert bits.at == len(bits.text)
    return (version, base.hex(), tag, samples), observed, list(zip(scales, tensors, strict=True))


@pytest.mark.parametrize(
    "vector", [v for v in VECTORS if not v["codec"].startswith("dense")], ids=lambda v: v["name"]
)
def test_the_specification_reads_the_vectors(vector):
    """What the text says, done step by step, gives the values of every vector with kept values."""
    own = vector["sizes"][: vector["weights"]]
    observed = vector.get("statistics", [])
    head, changes, tensors = read(bytes.fromhex(vector["frame"]), own, len(observed))

    assert head == (vector["base_version"], vector["base_hash"], vector["tag"], vector["n_samples"])
    assert changes == observed
    for (scale, values), told in zip(tensors, vector["tensors"], strict=True):
        assert scale == told["scale"]
        levels = told.get("levels", [1] * len(told["indices"]))
        assert values == list(zip(told["indices"], told["negative"], levels, strict=True))


@pytest.mark.parametrize("codec", list(LEVEL_BITS))
@pytest.mark.parametrize("row", [1, 12])
def test_the_specification_reads_what_is_encoded(codec, row):
    """Larger updates as well, in the form each is less in: without structure, and in rows of one sign."""
    rng = np.random.default_rng(row)
    sizes, tensors = (3000, 24, 600), []
    for size in sizes:
        begins = np.flatnonzero(rng.random(size // row) < 0.06)
        indices = (row * begins[:, None] + np.arange(row)).ravel()
        negative = np.repeat(rng.random(len(begins)) < 0.5, row)
        levels = rng.integers(1, 2 ** LEVEL_BITS[codec] + 1, len(indices))
        tensors.append(SparseTensor(indices, negative, 0.25 if len(indices) else 0.0, levels))
    update = sparse.Update(3, bytes(8), 7, 100, Sparse.of(tensors))
    data = sparse.encode(update, sizes, sparse.Codec(codec))

    assert bool(data[3] & 0x80) == (row == 1)
    for (scale, values), tensor in zip(read(data, sizes, 0)[2], tensors, strict=True):
        assert scale == tensor.scale
        assert tensor.levels is not None
        assert values == list(
            zip(tensor.indices.tolist(), tensor.negative.tolist(), tensor.levels.tolist(), strict=True)
        )
