"""Bytes of an update against the entropy bound, and the time to encode and to fold it.

    python bench/codec.py [--seeds 3] [--out FILE]          (make bench-codec)

The bound of a tensor of n values that sends k of them is n H(k/n) + k b bits, b bits a value with its sign; an
update's is the sum over its tensors, so it knows how densities differ, but not that values lie in clusters, which the
codec makes use of: it may be below. Updates are synthetic (tensors of log-normal scale, as layers have; a million in
rows of log-normal scale and mean) and real: what the real compressor makes of training the sensor CNN on smartwatch
recordings, and a LeNet and ResNet-8 on Fashion-MNIST, at first and after ten rounds of error feedback at the same
density. Other index coders run on the same positions in the same process.
JSON lines on stdout, tables at the end; times are the least of fifteen.
"""

import argparse
import gzip
import importlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # for examples/, which is not installed

from aggregator.demo import data as watch
from edge_client.compress import Compressed, compress
from edge_client.training import TrainingSession
from edge_client.wire import bits, leb128, nested, sparse
from edge_client.wire.weights import Sparse
from examples.models import MODELS
from firmware_tools.compiler import compile_training
from firmware_tools.layers import Net
from firmware_tools.zoo import cnn1d

DENSITIES = (0.001, 0.01, 0.05, 0.1)
FASHION = Path("/usr/share/datasets/fashion-mnist")  # Debian's dataset-fashion-mnist
REPEATS = 15
BASE = bytes(8)
HEADER_BYTES = 30  # of the envelope with its CRC, and of an update
ROUNDS = 10  # of error feedback before an update is measured


def milliseconds(call: Callable[[], object]) -> float:
    """The least time of a call: what else the machine does only adds to it."""
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - began))
    return min(times)


def layered(total: int, tensors: int, rng: np.random.Generator) -> list[np.ndarray]:
    """A synthetic training result: heavy tails, and a scale of its own for each tensor."""
    shares = rng.dirichlet(np.full(tensors, 0.5))
    sizes = np.maximum((shares * total).astype(int), 4)
    scales = rng.lognormal(0, 1, tensors)
    return [(rng.standard_t(3, n) * s).astype(np.float32) for n, s in zip(sizes, scales, strict=True)]


def lenet() -> object:
    """Two convolutions with pools and two dense layers on 28x28, 54 k parameters."""
    net = Net("lenet", (1, 28, 28), seed=0)
    x = net.add("Relu", net.conv("x", "conv1", (8, 1, 5, 5), pads=[2, 2, 2, 2]))
    x = net.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = net.add("Relu", net.conv(x, "conv2", (16, 8, 5, 5), pads=[2, 2, 2, 2]))
    x = net.add("Flatten", net.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]))
    x = net.add("Relu", net.dense(x, "dense1", (64, 784)))
    net.dense(x, "dense2", (10, 64), output="logits")
    return net.model((10,))


def fashion() -> tuple[np.ndarray, np.ndarray] | None:
    """Fashion-MNIST, float32 [60000, 1, 28, 28] and int64 labels; None where the package is not installed."""
    try:
        images = gzip.decompress((FASHION / "train-images-idx3-ubyte.gz").read_bytes())
        labels = gzip.decompress((FASHION / "train-labels-idx1-ubyte.gz").read_bytes())
    except FileNotFoundError:
        return None
    x = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 1, 28, 28)
    return (x / np.float32(255)).astype(np.float32), np.frombuffer(labels, np.uint8, offset=8).astype(
        np.int64
    )


def clusters(total: int, rng: np.random.Generator) -> list[np.ndarray]:
    """A synthetic training result in clusters: rows of a hundred values have a scale and a mean of their own."""
    sizes = [total // 1000, total // 20, total // 5]
    return [
        (
            rng.standard_t(3, (n // 100, 100)) * rng.lognormal(0, 1.5, (n // 100, 1))
            + rng.standard_normal((n // 100, 1)) * rng.lognormal(0, 1.5, (n // 100, 1))
        )
        .astype(np.float32)
        .ravel()
        for n in (*sizes, total - sum(sizes))
    ]


class Training:
    """A network on one device, whose updates are all the server gets."""

    def __init__(self, session: TrainingSession, x: np.ndarray, y: np.ndarray) -> None:
        self.session, self.x, self.y = session, x, y
        self.rng = np.random.default_rng(0)
        self.names = [t.name for t in session.bundle.manifest.tensors]

    def steps(self, count: int) -> list[np.ndarray]:
        """The change of each tensor in so many steps."""
        before = self.session.params
        for _ in range(count):
            batch = self.rng.integers(0, len(self.y), 32)
            self.session.step(np.ascontiguousarray(self.x[batch]), self.y[batch], 0.02)
        return [(self.session.params[n] - before[n]).ravel() for n in self.names]

    def round(self, density: float, residual: bytes | None) -> tuple[list[np.ndarray], bytes]:
        """Train and take what was sent as the next base; the change that was compressed, and its residual."""
        before = self.session.params
        delta = self.steps(20)
        made = compress(delta, residual, density, 1e9)
        base = dict(before)
        for name, tensor in zip(self.names, made.weights.tensors, strict=True):
            base[name] = before[name] + tensor.dense(before[name].size).reshape(before[name].shape)
        self.session.load(base)
        left = np.zeros(sum(map(len, delta))) if residual is None else np.frombuffer(residual, "<f2")
        edges = np.cumsum([len(d) for d in delta])[:-1]
        told = [d + r for d, r in zip(delta, np.split(left.astype(np.float32), edges), strict=True)]
        return told, made.residual_accepted


def trainings() -> Iterator[tuple[str, Training]]:
    """The networks, each with its data, after forty steps."""
    shards, _ = watch.load()
    tasks = [("sensor CNN", cnn1d(6, watch.WINDOW, watch.CLASSES), shards[0].x, shards[0].y)]
    pictures = fashion()
    if pictures is None:
        print("install Debian's dataset-fashion-mnist for the LeNet and the ResNet-8")
    else:
        x, y = pictures[0][:4000], pictures[1][:4000]
        coloured = np.repeat(np.pad(x, ((0, 0), (0, 0), (2, 2), (2, 2))), 3, axis=1)
        tasks += [("LeNet", lenet(), x, y), ("ResNet-8", MODELS["resnet-8"](), coloured, y)]
    for name, model, x, y in tasks:
        with tempfile.TemporaryDirectory() as folder:
            session = TrainingSession(compile_training(model).save(Path(folder) / "net.bundle"))
        training = Training(session, x, y)
        training.steps(40)
        yield name, training


def measured(name: str, delta: list[np.ndarray], density: float, codec: str = "ternary") -> dict:
    """Size and time of one update."""
    made: Compressed = compress(delta, None, density, 1e9, codec)
    sizes = [len(d) for d in delta]
    update = sparse.Update(1, BASE, 7, 100, made.weights)
    frame = sparse.encode(update, sizes, made.codec)
    total, offsets = sum(sizes), np.cumsum([0, *sizes])
    sums = np.zeros(total, dtype=np.int64)
    row = {
        "name": name,
        "codec": codec,
        "d": total,
        "tensors": len(sizes),
        "density": density,
        "bytes": len(frame),
    }
    row["bits_per_parameter"] = 8 * len(frame) / total
    if isinstance(made.weights, Sparse):
        counts = made.weights.counts.tolist()
        least = sparse.bound_bytes(made.weights, np.array(sizes), frame[3])
        row["form"] = "gaps" if sparse.split(frame[3])[1] else "nested"
        told = counts if row["form"] == "gaps" else [sum(counts)]
        table = sum(len(leb128.encode(k)) for k in told) + 2 * sum(k > 0 for k in counts)
        row["streams_to_bound"] = (len(frame) - HEADER_BYTES - table) / least
        row["total_to_bound"] = len(frame) / least
    row["encode_ms"] = milliseconds(lambda: sparse.encode(update, sizes, made.codec))

    def fold() -> None:
        positions, values = sparse.decode(frame, sizes).weights.units(offsets)
        sums[positions] += values

    row["decode_and_fold_ms"] = milliseconds(fold)
    return row


def others(name: str, delta: list[np.ndarray], density: float) -> list[dict]:
    """Other coders of the same positions in one vector; sizes over its bound, encode and decode ms."""
    flat = np.abs(np.concatenate(delta))
    count = round(density * len(flat))
    positions = np.sort(np.argpartition(flat, -count)[-count:])
    share = count / len(flat)
    least = -len(flat) * (share * np.log2(share) + (1 - share) * np.log2(1 - share)) / 8
    gaps = np.diff(positions, prepend=-1) - 1
    (r,) = bits.parameters(np.array([count]), np.array([len(flat)])).tolist()
    widths = np.full(count, r)

    def ours() -> tuple[bytes, bytes]:
        return bits.pack_fixed(gaps & ((1 << r) - 1), widths), bits.pack_unary(gaps >> r)

    def back(coded: tuple[bytes, bytes]) -> np.ndarray:
        low, high = (
            bits.unpack_fixed(memoryview(coded[0]), widths),
            bits.unpack_unary(memoryview(coded[1]), count),
        )
        return np.cumsum((high << r | low) + 1) - 1

    rows = [
        ("split-stream Rice (ours: gaps)", ours, back, lambda c: len(c[0]) + len(c[1])),
        ("binary interpolative by levels (ours: nested)",
         lambda: bits.pack_fixed(*nested.fields(positions, len(flat))),
         lambda c: nested.read(memoryview(c), count, len(flat))[0], len),
    ]  # fmt: skip
    low_bits = max(0, int(np.log2(len(flat) / count)))
    rows.append(
        ("Elias-Fano (size only)", None, None, (count * low_bits + count + (len(flat) >> low_bits)) / 8)
    )
    try:
        zstd = importlib.import_module("zstandard")
        rows.append(("varint + zstd-3", lambda: zstd.ZstdCompressor(3).compress(varint(gaps)), None, len))
    except ImportError:
        print("pip install zstandard pyroaring constriction for the other coders")
        return []
    roaring, stream = importlib.import_module("pyroaring"), importlib.import_module("constriction").stream
    rows.append(("roaring", lambda: roaring.BitMap(positions.astype(np.uint32)).serialize(),
                 lambda c: np.array(roaring.BitMap.deserialize(c)), len))  # fmt: skip
    model, mask = stream.model.Bernoulli(count / len(flat)), np.zeros(len(flat), dtype=np.int32)
    mask[positions] = 1

    def range_coded() -> np.ndarray:
        coder = stream.queue.RangeEncoder()
        coder.encode(mask, model)
        return coder.get_compressed()

    rows.append(("range coder on the mask (constriction)", range_coded,
                 lambda c: np.flatnonzero(stream.queue.RangeDecoder(c).decode(model, len(flat))), lambda c: 4 * len(c)))  # fmt: skip
    out = []
    for coder, encode, decode, size in rows:
        if encode is None:
            out.append({"coder": coder, "name": name, "density": density, "to_bound": size / least})
            continue
        coded = encode()
        row = {
            "coder": coder,
            "name": name,
            "density": density,
            "to_bound": size(coded) / least,
            "encode_ms": milliseconds(encode),
        }
        if decode is not None:
            row["decode_ms"] = milliseconds(lambda: decode(coded))  # noqa: B023 - called at once
        out.append(row)
    return out


def varint(values: np.ndarray) -> bytes:
    """LEB128 of each value."""
    out = np.zeros((len(values), 5), dtype=np.uint8)
    count = np.maximum(1, -(-np.ceil(np.log2(values + 1.0)).astype(int) // 7))
    for i in range(5):
        out[:, i] = (values >> (7 * i)) & 0x7F | np.where(i < count - 1, 0x80, 0)
    return out[np.arange(5) < count[:, None]].tobytes()


def synthetic(seeds: int) -> Iterator[dict]:
    """Rows of updates that no training made."""
    for seed in range(seeds):
        for density in DENSITIES:
            for total, tensors in ((50_000, 8), (1_000_000, 20)):
                delta = layered(total, tensors, np.random.default_rng((seed, total)))
                yield measured(f"synthetic {total // 1000} k", delta, density) | {"seed": seed}
            delta = clusters(1_000_000, np.random.default_rng(seed))
            yield measured("synthetic 1000 k in rows", delta, density) | {"seed": seed}


def real() -> Iterator[dict]:
    """Rows of updates of networks in training: of the first round with each codec, and after rounds of feedback."""
    for name, training in trainings():
        start = training.session.params
        delta = training.steps(20)
        for density in DENSITIES:
            yield measured(name, delta, density)
        for codec in ("q4", "q8", "sign", "dense-fp16", "dense-fp32"):
            yield measured(name, delta, 0.01, codec)
        for density in (0.01, 0.05):
            training.session.load(start)
            residual = None
            for _ in range(ROUNDS):
                delta, residual = training.round(density, residual)
            yield measured(f"{name}, round {ROUNDS}", delta, density)


def main() -> None:
    """Measure all updates and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a JSON file for all rows")
    options = parser.parse_args()
    rows, coders = [], []
    for row in chain(synthetic(options.seeds), real()):
        rows.append(row)
        print(json.dumps(row), flush=True)
    for density in DENSITIES:
        coders += others("without structure", [np.random.default_rng(0).laplace(size=1_000_000)], density)
        coders += others("in rows", clusters(1_000_000, np.random.default_rng(0)), density)
    for row in coders:
        print(json.dumps(row))
    if options.out:
        options.out.write_text(json.dumps({"updates": rows, "coders": coders}, indent=1) + "\n")
    report(rows, coders)


def report(rows: list[dict], coders: list[dict]) -> None:
    """Tables in Markdown, medians over the seeds."""
    print(
        "\n| update | codec | parameters | density | bits/param | form | streams/bound | total/bound | encode ms | decode + fold ms |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for key in dict.fromkeys((r["name"], r["codec"], r["density"]) for r in rows):
        mine = [r for r in rows if (r["name"], r["codec"], r["density"]) == key]
        mid = {
            n: statistics.median(r[n] for r in mine) for n in mine[0] if isinstance(mine[0][n], int | float)
        }
        ratios = [f"{mid[n]:.3f}" if n in mid else "-" for n in ("streams_to_bound", "total_to_bound")]
        times = [f"{mid[n]:.2f}" for n in ("encode_ms", "decode_and_fold_ms")]
        cells = [
            key[0],
            key[1],
            f"{mid['d']:,.0f}",
            f"{100 * key[2]:g} %",
            f"{mid['bits_per_parameter']:.4f}",
        ]
        print("| " + " | ".join([*cells, mine[0].get("form", "-"), *ratios, *times]) + " |")
    print(
        "\n| coder of the places of 1 M | values | density | size/bound | encode ms | decode ms |\n|---|---|---|---|---|---|"
    )
    for row in coders:
        times = [f"{row[n]:.2f}" if n in row else "-" for n in ("encode_ms", "decode_ms")]
        print(
            "| "
            + " | ".join(
                [row["coder"], row["name"], f"{100 * row['density']:g} %", f"{row['to_bound']:.3f}", *times]
            )
            + " |"
        )


if __name__ == "__main__":
    main()
