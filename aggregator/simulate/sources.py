"""Where a simulation's samples come from."""

import gzip
import hashlib
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aggregator.demo import data as watch
from aggregator.simulate.config import DataSection
from aggregator.simulate.draws import Purpose, rng
from aggregator.simulate.errors import SimulationError
from edge_client.target import Targets

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
_IMAGES, _LABELS = 0x803, 0x801  # magic numbers of idx files of bytes in three and in one dimension
NPZ_ARRAYS = ("x", "y", "owner", "segment", "x_test", "y_test")

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Data:
    """`x` float32 [n, *shape] and `y` as the model wants it, or None; the same for evaluation on the server.

    `owner` int64 [n] says whose a sample is, `segment` int64 [n] of which recording, where that is known.
    """

    x: Floats
    y: Targets | None
    x_test: Floats
    y_test: Targets | None
    owner: Ints | None = None
    segment: Ints | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of all arrays, hex."""
        total = hashlib.sha256()
        for array in (self.x, self.y, self.x_test, self.y_test, self.owner, self.segment):
            if array is not None:
                total.update(f"{array.dtype}{array.shape}".encode())
                total.update(np.ascontiguousarray(array).data)
        return total.hexdigest()


def load(section: DataSection) -> Data:
    """The data that a configuration names; raise SimulationError."""
    if section.source == "fashion-mnist":
        return _fashion_mnist(FASHION_MNIST)
    if section.source == "watch":
        return _watch()
    return _npz(Path(section.source), section.test_share)


def _fashion_mnist(folder: Path) -> Data:
    """Xiao et al. 2017 (arXiv:1708.07747), from Debian's package; pixels from 0 to 1, shape [1, 28, 28]."""
    x, y, x_test, y_test = (
        _idx(folder / f"{part}-{kind}.gz", magic)
        for part in ("train", "t10k")
        for kind, magic in (("images-idx3-ubyte", _IMAGES), ("labels-idx1-ubyte", _LABELS))
    )
    return Data(_pixels(x), y.astype(np.int64), _pixels(x_test), y_test.astype(np.int64))


def _pixels(values: npt.NDArray[np.uint8]) -> Floats:
    return values[:, None].astype(np.float32) / np.float32(255)


def _idx(path: Path, magic: int) -> npt.NDArray[np.uint8]:
    try:
        raw = gzip.decompress(path.read_bytes())
    except FileNotFoundError:
        raise SimulationError(
            f"data.source fashion-mnist: {path} is missing; run: apt-get install dataset-fashion-mnist"
        ) from None
    except (OSError, EOFError) as error:
        raise SimulationError(f"data.source fashion-mnist: {path} cannot be read: {error}") from error
    head = struct.Struct(f">{1 + (magic & 0xFF)}I")
    found, *shape = head.unpack_from(raw) if len(raw) >= head.size else (0,)
    if found != magic or len(raw) - head.size != np.prod(shape, dtype=np.int64):
        raise SimulationError(f"data.source fashion-mnist: {path} is not the file of dataset-fashion-mnist")
    return np.frombuffer(raw, dtype=np.uint8, offset=head.size).reshape(shape)


def _watch() -> Data:
    """The demo's recordings: an owner is one arm of one person, two people are for evaluation."""
    try:
        shards, unseen = watch.load()
    except watch.DataError as error:
        raise SimulationError(f"data.source watch: {error}") from error
    owner = np.repeat(np.arange(len(shards)), [len(s.y) for s in shards])
    return Data(
        np.concatenate([s.x for s in shards]),
        np.concatenate([s.y for s in shards]),
        unseen.x,
        unseen.y,
        owner.astype(np.int64),
        np.concatenate([s.segment for s in shards]),
    )


def _npz(path: Path, test_share: float) -> Data:
    arrays = _read(path)
    _check(arrays, path)
    x, y, owner, segment = (arrays.get(name) for name in ("x", "y", "owner", "segment"))
    assert x is not None
    if "x_test" in arrays:
        return Data(x, y, arrays["x_test"], arrays.get("y_test"), owner, segment)
    count = max(1, round(test_share * len(x)))
    if count >= len(x):
        raise SimulationError(f"{path}: {len(x)} samples leave none to train on beside those for evaluation")
    order = rng(0, Purpose.TEST).permutation(len(x))
    test, rest = order[:count], np.sort(order[count:])
    y_test = None if y is None else y[test]
    y, owner, segment = (None if array is None else array[rest] for array in (y, owner, segment))
    return Data(x[rest], y, x[test], y_test, owner, segment)


def _check(arrays: dict[str, npt.NDArray[Any]], path: Path) -> None:
    """What does not depend on the model; owners and segments are numbered from 0 on."""
    x = arrays.get("x")
    if x is None or x.dtype != np.float32 or x.ndim < 2 or not len(x):
        form = "missing" if x is None else f"{x.dtype} {list(x.shape)}"
        raise SimulationError(f"{path}: x is {form}, not float32 [n, …] with an axis after the samples")
    for name in ("y", "owner", "segment"):
        if name in arrays and len(arrays[name]) != len(x):
            raise SimulationError(f"{path}: {name} has {len(arrays[name])} entries for {len(x)} samples of x")
    for name in ("owner", "segment"):
        if name not in arrays:
            continue
        if arrays[name].ndim != 1 or arrays[name].dtype.kind not in "iuU":
            form = f"{arrays[name].dtype} {list(arrays[name].shape)}"
            raise SimulationError(f"{path}: {name} is {form}, not integers or texts [n]")
        arrays[name] = np.unique(arrays[name], return_inverse=True)[1].astype(np.int64)
    if not all(np.isfinite(arrays[name]).all() for name in ("x", "x_test") if name in arrays):
        raise SimulationError(f"{path}: x holds values that are not finite")
    if "x_test" in arrays and ("y" in arrays) != ("y_test" in arrays):
        raise SimulationError(f"{path}: x_test needs a y_test just when there is a y")


def _read(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in NPZ_ARRAYS if name in archive.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        known = "fashion-mnist, watch, or the path of an .npz file"
        raise SimulationError(f"data.source: {path} cannot be read ({error}); it is {known}") from error
