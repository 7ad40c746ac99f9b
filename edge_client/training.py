"""One compiled training graph in stock ONNX Runtime: parameters in, steps, parameters out.

numpy and onnxruntime only; one thread, because a device has other work to do. Parameters and optimiser state
stay in runtime-owned tensors between steps and are copied only when someone looks at them.
"""

import resource
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state

from edge_client.bundle import EVAL, PARAMS, TRAIN, Bundle, BundleError, open_bundle
from edge_client.wire import grid
from edge_client.wire.errors import RemoteWireError
from edge_client.wire.messages import Metrics

EVAL_BATCH = 128  # samples per evaluation call: bounds activation memory, and larger is no faster

# ONNX Runtime's exceptions share no base but Exception.
LOAD_ERRORS = (
    onnxruntime_pybind11_state.Fail,
    onnxruntime_pybind11_state.InvalidArgument,
    onnxruntime_pybind11_state.InvalidGraph,
    onnxruntime_pybind11_state.InvalidProtobuf,
    onnxruntime_pybind11_state.NotImplemented,
)

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


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
        self._names = tuple(t.name for t in manifest.tensors)
        self._shapes = {t.name: t.shape for t in manifest.tensors}
        self._slots = manifest.optimizer.state(self._shapes)
        self._base_names = tuple(manifest.optimizer.base(self._shapes))
        self._state_names = (*self._names, *self._slots)
        self._outputs = ["loss", *(f"{n}@next" for n in self._state_names)]
        self._state: dict[str, ort.OrtValue] = {}
        self._base: dict[str, ort.OrtValue] = {}
        self._train = _session(self.bundle, TRAIN, flush_denormals=self._flush)
        self._eval: ort.InferenceSession | None = None
        self.load(initial_params(self.bundle))
        self.reset_optimizer()

    @property
    def params(self) -> dict[str, Floats]:
        """Name to value, float32, in the order of the manifest; copies."""
        return {name: np.array(self._state[name].numpy()) for name in self._names}

    @property
    def memory_bytes(self) -> int:
        """Peak resident size of this process in bytes."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

    def load(self, params: Mapping[str, Floats]) -> None:
        """Replace all parameters; the optimiser state stays. Raises ValueError naming a tensor that misfits.

        A proximal term pulls towards what was loaded last.
        """
        for name in self._names:
            value = np.ascontiguousarray(params[name], dtype=np.float32)
            if value.shape != self._shapes[name]:
                raise ValueError(f"{name} has shape {value.shape} instead of {self._shapes[name]}")
            self._state[name] = ort.OrtValue.ortvalue_from_numpy(value.copy())
        # The runtime never writes into an input, so the base needs no copy.
        self._base = {n: self._state[n.removesuffix("@base")] for n in self._base_names}

    def reset_optimizer(self) -> None:
        """Set the optimiser state to zero."""
        for slot, shape in self._slots.items():
            self._state[slot] = ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, dtype=np.float32))

    def step(self, x: Floats, y: Labels, learning_rate: float) -> float:
        """One optimiser step on a mini-batch; returns the mean loss before it, without a proximal term.

        `x` float32 [n, *shape], `y` int64 [n].
        """
        feeds = {
            "x": ort.OrtValue.ortvalue_from_numpy(x),
            "y": ort.OrtValue.ortvalue_from_numpy(y),
            "learning_rate": ort.OrtValue.ortvalue_from_numpy(np.asarray(learning_rate, dtype=np.float32)),
            **self._state,
            **self._base,
        }
        results = self._train.run_with_ort_values(self._outputs, feeds)
        self._state = dict(zip(self._state_names, results[1:], strict=True))
        return float(results[0].numpy())

    def evaluate(self, x: Floats, y: Labels) -> Metrics:
        """Mean loss and accuracy over a data set, in batches; an empty one gives zeros.

        `x` float32 [n, *shape], `y` int64 [n].
        """
        if self._eval is None:
            self._eval = _session(self.bundle, EVAL, flush_denormals=self._flush)
        params = {name: self._state[name] for name in self._names}
        loss, correct = 0.0, 0
        for start in range(0, len(x), EVAL_BATCH):
            part = slice(start, start + EVAL_BATCH)
            feeds = {
                "x": ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(x[part])),
                "y": ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(y[part])),
                **params,
            }
            mean, hits = self._eval.run_with_ort_values(["loss", "correct"], feeds)
            loss += float(mean.numpy()) * len(x[part])
            correct += int(hits.numpy())
        count = max(len(x), 1)
        return Metrics(n=len(x), loss=loss / count, accuracy=correct / count)


def initial_grid(bundle: Bundle) -> tuple[grid.Grid, ...]:
    """Version 0 of the parameters on their grid, flat; raises BundleError."""
    try:
        return grid.apply(None, grid.decode(bundle.member(PARAMS), bundle.manifest.sizes), None)
    except RemoteWireError as error:
        raise BundleError(f"{bundle.path}: {PARAMS}: {error}") from error


def initial_params(bundle: Bundle) -> dict[str, Floats]:
    """Version 0 of the parameters, name to float32 array; raises BundleError."""
    pairs = zip(bundle.manifest.tensors, initial_grid(bundle), strict=True)
    return {t.name: grid.from_grid(v, t.step_exp).reshape(t.shape) for t, v in pairs}


def _session(bundle: Bundle, member: str, *, flush_denormals: bool) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.set_denormal_as_zero", str(int(flush_denormals)))
    try:
        return ort.InferenceSession(bundle.member(member), options, providers=["CPUExecutionProvider"])
    except LOAD_ERRORS as error:
        raise BundleError(f"{bundle.path}: {member} does not load: {error}") from error
