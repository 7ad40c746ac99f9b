"""Worker processes: what they are given is done in any order, and collected when its virtual time has come."""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import numpy as np

from aggregator.simulate import work
from aggregator.simulate.errors import SimulationError
from aggregator.simulate.sources import Data
from edge_client.trainer_protocol import Failed, Trained
from edge_client.wire.messages import Metrics

# Each worker is one thread; more would take the cores from the other workers.
THREADS = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")

T = TypeVar("T")


def share(data: Data, folder: Path) -> None:
    """Write the arrays to where workers map them."""
    for name in work.ARRAYS:
        array = getattr(data, name)
        if array is not None:
            np.save(folder / f"{name}.npy", array)


class Workers:
    """So many processes, started when first needed, over the data in a folder.

    They are spawned: ONNX Runtime sets its flags for a whole thread, which must not be the simulation's own.
    """

    def __init__(self, count: int, folder: Path) -> None:
        self._before = {name: os.environ.get(name) for name in THREADS}
        self._pool = ProcessPoolExecutor(
            count,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=work.prepare,
            initargs=(str(folder), os.getpid()),
        )

    def __enter__(self) -> Self:
        os.environ.update(THREADS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        for name, value in self._before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value

    def train(self, training: work.Training) -> "Future[Trained | Failed]":
        """Begin a participation."""
        return _submitted(lambda: self._pool.submit(work.perform_training, training))

    def evaluate(self, look: work.Look) -> "Future[Metrics]":
        """Begin an evaluation."""
        return _submitted(lambda: self._pool.submit(work.perform_look, look))


def result(future: "Future[T]") -> T:
    """What became of it; raise SimulationError when the process died."""
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise _died() from error


def _submitted(submit: "Callable[[], Future[T]]") -> "Future[T]":
    try:
        return submit()
    except BrokenProcessPool as error:
        raise _died() from error


def _died() -> SimulationError:
    return SimulationError("a worker process died, perhaps for want of memory: try fewer --workers")
