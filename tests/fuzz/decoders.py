"""Feeds hostile bytes to every decoder of the wire, guided by coverage (atheris).

    python tests/fuzz/decoders.py [CORPUS] -runs=10000000        (make fuzz)

Whatever arrives decodes or is a RemoteWireError; anything else is a finding, which libFuzzer writes to a file and
which then becomes a vector. The first byte picks the decoder, the rest is its input; bodies get a right envelope
half of the time, or the CRC would hide everything behind it. An update is also decoded together with a neighbour that
shares its beginning: what comes of each is what comes of it alone.
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import atheris
import numpy as np

with atheris.instrument_imports(include=["edge_client.wire"]):
    from edge_client.wire import chunks, frame, grid, messages, sparse, together
    from edge_client.wire.errors import RemoteWireError
    from edge_client.wire.weights import Dense, Sparse, SparseTensor

SIZES = (40, 1, 7, 3, 2)
STATISTICS = 2
MESSAGES = (messages.Ask, messages.Evaluation, messages.TaskStatus, messages.DeviceInfo, messages.DeviceState)
KINDS = (frame.Kind.UPDATE, frame.Kind.KEYFRAME, frame.Kind.DELTA, frame.Kind.CHUNK)
OWN = np.array(SIZES[: len(SIZES) - STATISTICS])


def one(data: bytes) -> None:
    """Try one input."""
    if not data:
        return
    which, body = data[0], data[1:]
    try:
        if which < 16:
            messages.decode(MESSAGES[which % len(MESSAGES)], body)
            return
        kind, codec = KINDS[which % 4], which >> 2 & 7 | (sparse.GAPS if which & 0x40 else 0)
        framed = frame.encode(kind, body, codec) if which & 0x80 else body
        if kind is frame.Kind.UPDATE:
            neighbour = frame.encode(kind, body[:-1] + bytes([body[-1] ^ 1]), codec) if body else framed
            beside_each_other([framed, neighbour])
            sparse.decode(framed, SIZES, STATISTICS).norm()
        elif kind is frame.Kind.CHUNK:
            chunks.decode(frame.decode(framed)[2])
        else:
            grid.apply(None, grid.decode(framed, SIZES), None)
    except RemoteWireError:
        pass


def beside_each_other(frames: list[bytes]) -> None:
    """Decode frames together and alone; the difference is a finding."""
    for data, found in zip(frames, together.decode(frames, SIZES, STATISTICS), strict=True):
        try:
            alone: together.Decoded = sparse.decode(data, SIZES, STATISTICS)
        except RemoteWireError as error:
            alone = error
        if described(found) != described(alone):
            raise AssertionError(f"together {described(found)}, alone {described(alone)}")


def described(decoded: together.Decoded) -> tuple[object, ...]:
    """What can be compared of an update, or of the reason against it."""
    if isinstance(decoded, RemoteWireError):
        return (decoded.code, str(decoded))
    head = (
        decoded.base_version,
        decoded.base_hash,
        decoded.tag,
        decoded.n_samples,
        decoded.statistics.tobytes(),
    )
    if isinstance(decoded.weights, Dense):
        return (*head, decoded.weights.values.tobytes())
    w = decoded.weights
    levels = None if w.levels is None else w.levels.tolist()
    return (*head, w.counts.tolist(), w.scales.tolist(), w.indices.tolist(), w.negative.tolist(), levels)


def seeds() -> Iterator[bytes]:
    """Sound inputs of every decoder, for the fuzzer to begin from."""
    rng = np.random.default_rng(0)
    head, changes = (3, bytes(8), 7, 100), np.ones(sum(SIZES[-STATISTICS:]), dtype=np.float16)
    for codec in sparse.Codec:
        for share in (0.0, 0.2, 1.0):
            made = [np.flatnonzero(rng.random(n) < share) for n in OWN]
            levels = [np.ones(len(m), dtype=np.int64) for m in made]
            weights = Sparse.of(
                [SparseTensor(m, m % 2 > 0, 0.5, v) for m, v in zip(made, levels, strict=True)]
            )
            if codec not in sparse.LEVEL_BITS:
                weights = Dense(rng.standard_normal(OWN.sum()).astype(np.float32))
            data = sparse.encode(sparse.Update(*head, weights, changes), OWN.tolist(), codec)
            yield bytes([0x80 | codec << 2 | (data[3] & sparse.GAPS) >> 1]) + frame.decode(data)[2]
            yield bytes([16]) + data
    old = [rng.integers(-9, 9, n).astype(np.int32) for n in SIZES]
    new = [v + rng.integers(0, 2, len(v)).astype(np.int32) for v in old]
    for kind, data in ((1, grid.encode_keyframe(4, new)), (2, grid.encode_delta(4, 3, new, old))):
        yield bytes([0x80 | kind]) + frame.decode(data)[2]
        yield bytes([16 | kind]) + data
    yield bytes([16 | 3]) + chunks.cut(bytes(100), 1, 40).encode()
    for i, text in enumerate(
        (b'{"job":"j","ask":1,"n_samples":3}', b'{"version":1,"before":{"n":1,"loss":0.5}}')
    ):
        yield bytes([i]) + text


def main() -> None:
    """Run libFuzzer with the arguments given; without a corpus directory it begins from `seeds`."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = list(sys.argv)
        if all(a.startswith("-") for a in arguments[1:]):
            for i, data in enumerate(seeds()):
                (Path(folder) / str(i)).write_bytes(data)
            arguments.append(folder)
        atheris.Setup(arguments, one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
