"""The optimisers a training graph can hold: from gradients to the next parameters and the next state.

`sgd`, `momentum`, `adam` (Kingma & Ba 2015, arXiv:1412.6980 alg. 1) and `adamw` (Loshchilov & Hutter 2019,
arXiv:1711.05101 alg. 2, the decay scaled by the learning rate as PyTorch does). Before any of them the gradient
may be pulled towards where training began (FedProx, Li et al. 2020, arXiv:1812.06127 eq. 2) and clipped by its
global norm (Pascanu et al. 2013, arXiv:1211.5063 alg. 1).
"""

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import numpy as np
from onnx import TensorProto

from edge_client.bundle import STEPS_TAKEN, OptimizerSpec
from firmware_tools.autodiff.graph import FLOAT, Graph, Shape
from firmware_tools.errors import OptionError

Kind = Literal["momentum", "sgd", "adam", "adamw"]
DECAY_SECOND = 0.999  # beta 2, the paper's value, which hardly anybody changes
EPSILON = 1e-8  # the paper's
LEARNING_RATES: dict[str, float] = {"momentum": 0.05, "sgd": 0.05, "adam": 0.001, "adamw": 0.001}
WEIGHT_DECAY = 0.01  # of adamw where none is given

Rule = Callable[[str, str], str]  # (parameter, gradient) to what is subtracted from the parameter


def specify(
    kind: str,
    *,
    momentum: float = 0.9,
    weight_decay: float | None = None,
    proximal: float = 0.0,
    clip_norm: float = 0.0,
) -> OptimizerSpec:
    """The optimiser of these options; raises OptionError.

    `momentum` in [0, 1) is the decay of the averaged gradient: of `momentum`, and beta 1 of Adam. `weight_decay`
    is for `adamw` alone, None its default. `proximal` is the factor mu of the pull towards the base, `clip_norm`
    the largest norm of the gradient with that pull; 0 leaves either out.
    """
    if kind not in get_args(Kind):
        raise OptionError(f"optimizer {kind!r} is not known; known: {', '.join(get_args(Kind))}")
    if not 0.0 <= momentum < 1.0:
        raise OptionError(f"momentum {momentum} is not in [0, 1)")
    if weight_decay is not None and kind != "adamw":
        raise OptionError(f"weight decay is adamw's; {kind} has none")
    decay = WEIGHT_DECAY if weight_decay is None and kind == "adamw" else weight_decay or 0.0
    for name, value in {"weight decay": decay, "proximal": proximal, "clip norm": clip_norm}.items():
        if not 0.0 <= value < np.inf:
            raise OptionError(f"{name} {value} is not a number of 0 or more")
    beta = 0.0 if kind == "sgd" else momentum
    return OptimizerSpec(kind, beta, decay, proximal, clip_norm)  # type: ignore[arg-type]  # kind is checked


def append_update(
    graph: Graph, spec: OptimizerSpec, shapes: Mapping[str, Shape], gradients: Mapping[str, str]
) -> None:
    """Append `<param>@next` for each gradient, and `<state>@next` for each state tensor of the optimiser."""
    change = _adam(graph, spec, shapes) if spec.adaptive else _descent(graph, spec)
    if spec.proximal:
        gradients = {p: _pulled(graph, p, g, spec.proximal) for p, g in gradients.items()}
    if spec.clip_norm:
        gradients = _clipped(graph, gradients, spec.clip_norm)
    for parameter, gradient in gradients.items():
        graph.add("Sub", parameter, change(parameter, gradient), output=f"{parameter}@next")


def _pulled(graph: Graph, parameter: str, gradient: str, mu: float) -> str:
    drift = graph.add("Sub", parameter, f"{parameter}@base")
    return graph.add("Add", gradient, graph.add("Mul", drift, graph.scalar(mu)))


def _clipped(graph: Graph, gradients: Mapping[str, str], norm_max: float) -> dict[str, str]:
    squares = [graph.add("ReduceSumSquare", g, keepdims=0) for g in gradients.values()]
    norm = graph.add("Sqrt", graph.add("Sum", *squares))
    limit = graph.scalar(norm_max)
    factor = graph.add("Div", limit, graph.add("Max", norm, limit))
    return {p: graph.add("Mul", g, factor) for p, g in gradients.items()}


def _descent(graph: Graph, spec: OptimizerSpec) -> Rule:
    def change(parameter: str, gradient: str) -> str:
        step = gradient
        if spec.kind == "momentum":
            kept = graph.add("Mul", f"{parameter}@momentum", graph.scalar(spec.momentum))
            step = graph.add("Add", kept, gradient, output=f"{parameter}@momentum@next")
        return graph.add("Mul", step, "learning_rate")

    return change


def _adam(graph: Graph, spec: OptimizerSpec, shapes: Mapping[str, Shape]) -> Rule:
    taken = graph.add("Add", STEPS_TAKEN, graph.scalar(1.0), output=f"{STEPS_TAKEN}@next")
    rate = graph.add("Div", "learning_rate", _unbias(graph, taken, spec.momentum))
    deviation = graph.add("Sqrt", _unbias(graph, taken, DECAY_SECOND))
    shrink = graph.add("Mul", "learning_rate", graph.scalar(spec.weight_decay))

    def change(parameter: str, gradient: str) -> str:
        mean = _average(graph, f"{parameter}@m", gradient, spec.momentum)
        square = _average(graph, f"{parameter}@v", graph.add("Mul", gradient, gradient), DECAY_SECOND)
        root = graph.add("Div", graph.add("Sqrt", square), deviation)
        direction = graph.add("Div", mean, graph.add("Add", root, graph.scalar(EPSILON)))
        step = graph.add("Mul", direction, rate)
        # Decaying biases and scales of normalisation only shifts what the weights have to make up for.
        if spec.weight_decay and len(shapes[parameter]) > 1:
            step = graph.add("Add", step, graph.add("Mul", parameter, shrink))
        return step

    return change


def _average(graph: Graph, slot: str, value: str, decay: float) -> str:
    kept = graph.add("Mul", slot, graph.scalar(decay))
    added = graph.add("Mul", value, graph.scalar(1.0 - decay))
    return graph.add("Add", kept, added, output=f"{slot}@next")


def _unbias(graph: Graph, taken: str, decay: float) -> str:
    """1 - decay^t, in double: in single precision the first steps would lose four of seven digits."""
    power = graph.add(
        "Pow", graph.constant(np.asarray(decay)), graph.add("Cast", taken, to=TensorProto.DOUBLE)
    )
    return graph.add("Cast", graph.add("Sub", graph.constant(np.asarray(1.0)), power), to=FLOAT)
