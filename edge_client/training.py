"""One compiled training graph in stock ONNX Runtime: parameters in, steps, parameters out.

numpy and onnxruntime only; one thread, because a device has other work to do. All that a step keeps lies in two
sets of tensors: each step reads one and writes the other, so nothing is allocated or copied between steps.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_client.bundle import EVAL, PARAMS, TRAIN, Bundle, BundleError, open_bundle
from edge_client.figures import Figures
from edge_client.runtime import LOAD_ERRORS, ort
from edge_client.target import Targets, check_batch
from edge_client.wire import grid
from edge_client.wire.errors import RemoteWireError
from edge_client.wire.messages import Metrics

# Planning all of a step's memory as one block pays only for graphs of thousands of small nodes, unrolled recurrences
# above all (6.2 instead of 7.4 ms). Others run as fast without, and the block can come on top of what the first step
# took: 166 instead of 119 MB for a ResNet-8. A graph of 2,500 nodes is at least this long, one of 1,000 shorter.
PLANNED_BYTES_MIN = 150_000
EVAL_BATCH = 128  # samples per evaluation call: bounds activation memory, and larger is no faster

Floats = npt.NDArray[np.float32]


class DivergedError(ArithmeticError):
    """The loss of a step is not finite; parameters and optimiser are as they were before it."""


class TrainingSession:
    """Trains the model of a bundle. Not thread-safe.

    Starts at version 0 of the parameters with a zero optimiser state. Raises BundleError when the bundle does
    not open or its graphs do not load.

    `flush_denormals` keeps tiny gradients from running at a tenth of the speed. It is for a process of its own:
    the runtime sets the flag for the whole calling thread, numpy included, at the first session of a process.
    """

    def __init__(self, bundle_path: str | Path, *, flush_denormals: bool = False) -> None:
        self._flush = flush_denormals
        self.bundle: Bundle = open_bundle(Path(bundle_path))
        manifest = self.bundle.manifest
        self._names = tuple(t.name for t in manifest.table)
        self._shapes = {t.name: t.shape for t in manifest.table}
        trained = {t.name: t.shape for t in manifest.tensors}
        self._slots = manifest.optimizer.state(trained)
        kept = {**self._shapes, **self._slots}
        self._state, self._next = _zeros(kept), _zeros(kept)
        self._base = _zeros(manifest.optimizer.base(trained))
        self._loss, self._rate = _zeros({"loss": (), "rate": ()}).values()
        self._train = _session(self.bundle, TRAIN, flush_denormals=self._flush)
        self._ahead = self._bound(self._state, self._next)
        self._back = self._bound(self._next, self._state)
        # What the first step took piece by piece is given back, before later ones take it as planned.
        self._first: ort.RunOptions | None = ort.RunOptions()
        self._first.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._eval: ort.InferenceSession | None = None
        self.load(initial_params(self.bundle))

    @property
    def params(self) -> dict[str, Floats]:
        """Name to value, float32, in the order of the manifest: trained tensors, then statistics; copies."""
        return {name: np.array(self._state[name].numpy()) for name in self._names}

    @property
    def memory_bytes(self) -> int:
        """Peak resident size of this process in bytes."""
        # getrusage's ru_maxrss begins with the size of the process that started this one.
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024

    def load(self, params: Mapping[str, Floats]) -> None:
        """Replace all parameters; the optimiser state stays. Raises ValueError naming a tensor that misfits.

        A proximal term pulls towards what was loaded last.
        """
        for name in self._names:
            value = np.ascontiguousarray(params[name], dtype=np.float32)
            if value.shape != self._shapes[name]:
                raise ValueError(f"{name} has shape {value.shape} instead of {self._shapes[name]}")
            self._state[name].update_inplace(value)
        for name, base in self._base.items():
            base.update_inplace(self._state[name.removesuffix("@base")].numpy())

    def reset_optimizer(self) -> None:
        """Set the optimiser state to zero."""
        for slot, shape in self._slots.items():
            self._state[slot].update_inplace(np.zeros(shape, dtype=np.float32))

    def step(self, x: Floats, y: Targets | None, learning_rate: float) -> float:
        """One optimiser step on a mini-batch; returns the mean loss before it, without a proximal term.

        `x` float32 [n, *shape]; `y` int64 [n] of classes, uint8 [n, labels] of 0 and 1, float32 [n, *target_shape],
        or None, as the bundle's loss wants. Raises ValueError saying what does not fit, and DivergedError.
        """
        check_batch(self.bundle.manifest.data, x, y)
        self._rate.update_inplace(np.asarray(learning_rate, dtype=np.float32))
        # The runtime reads a batch where the caller has it.
        self._ahead.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(x)))
        if y is not None:
            self._ahead.bind_ortvalue_input("y", ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(y)))
        self._train.run_with_iobinding(self._ahead, self._first)
        self._first = None
        loss = float(self._loss.numpy())
        if not math.isfinite(loss):
            raise DivergedError("the loss is not finite; a smaller learning rate or a clip norm may help")
        self._state, self._next = self._next, self._state
        self._ahead, self._back = self._back, self._ahead
        return loss

    def evaluate(self, x: Floats, y: Targets | None) -> Metrics:
        """Mean figures over a data set, in batches; an empty one gives zeros. Arguments and errors as of step."""
        if self._eval is None:
            self._eval = _session(self.bundle, EVAL, flush_denormals=self._flush)
        manifest = self.bundle.manifest
        check_batch(manifest.data, x, y)
        params = {name: self._state[name] for name in self._names}
        figures = Figures(manifest)
        for start in range(0, len(x), EVAL_BATCH):
            part = slice(start, start + EVAL_BATCH)
            feeds = {"x": ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(x[part])), **params}
            if y is not None:
                feeds["y"] = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(y[part]))
            outputs = self._eval.run_with_ort_values(list(figures.wanted), feeds)
            figures.add(len(x[part]), *(value.numpy() for value in outputs))
        return figures.mean()

    def _bound(self, source: Mapping[str, ort.OrtValue], target: Mapping[str, ort.OrtValue]) -> ort.IOBinding:
        """A step that reads its state from one set and writes it to the other; x and y are bound later."""
        binding = self._train.io_binding()
        try:
            for name, value in {"learning_rate": self._rate, **source, **self._base}.items():
                binding.bind_ortvalue_input(name, value)
        except RuntimeError as error:
            raise BundleError(f"{self.bundle.path}: {TRAIN} is not of this manifest: {error}") from error
        for name, value in {"loss": self._loss, **{f"{n}@next": v for n, v in target.items()}}.items():
            binding.bind_ortvalue_output(name, value)
        return binding


def initial_grid(bundle: Bundle) -> tuple[grid.Grid, ...]:
    """Version 0 of the parameters on their grid, flat; raises BundleError."""
    try:
        return grid.apply(None, grid.decode(bundle.member(PARAMS), bundle.manifest.sizes), None)
    except RemoteWireError as error:
        raise BundleError(f"{bundle.path}: {PARAMS}: {error}") from error


def initial_params(bundle: Bundle) -> dict[str, Floats]:
    """Version 0 of the parameters, name to float32 array; raises BundleError."""
    pairs = zip(bundle.manifest.table, initial_grid(bundle), strict=True)
    return {t.name: grid.from_grid(v, t.step_exp).reshape(t.shape) for t, v in pairs}


def _zeros(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, ort.OrtValue]:
    """Tensors of the runtime's own making, which it aligns as its kernels like it."""
    values = {n: ort.OrtValue.ortvalue_from_shape_and_type(s, np.float32) for n, s in shapes.items()}
    for name, value in values.items():
        value.update_inplace(np.zeros(shapes[name], dtype=np.float32))
    return values


def _session(bundle: Bundle, member: str, *, flush_denormals: bool) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.set_denormal_as_zero", str(int(flush_denormals)))
    graph = bundle.member(member)
    options.enable_mem_pattern = len(graph) >= PLANNED_BYTES_MIN
    try:
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except LOAD_ERRORS as error:
        raise BundleError(f"{bundle.path}: {member} does not load: {error}") from error
