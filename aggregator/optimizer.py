"""Server optimisers: a buffer's mean update becomes the step of the model. Pure, elementwise float64 (I2).

The mean update Δ stands for a negative gradient, so it is added. State is kept in slots, flat float64 arrays rounded
to float32 after each step, so that a restart computes on the very same numbers.

| optimiser | step | source |
|---|---|---|
| `sgd` | η Δ | FedBuff: Nguyen et al. 2022, alg. 1 |
| `momentum` | m ← μ m + Δ; η m | FedAvgM: Hsu et al. 2019, arXiv:1909.06335, §4.3 |
| `adam` | m ← β₁ m + (1 - β₁) Δ; v ← β₂ v + (1 - β₂) Δ²; η m / (√v + ε) | FedAdam: Reddi et al. 2021, alg. 2 |
| `yogi` | as Adam with v ← v - (1 - β₂) Δ² sign(v - Δ²) | FedYogi: Reddi et al. 2021, alg. 2 |
| `amsgrad` | as Adam with v̂ ← max(v̂, v); η m / (√v̂ + ε) | FADAS: Wang et al. 2024, alg. 1 |

With `delay_max` = τ_c the rate is min(η, 1 / τ) where τ, the largest delay in the buffer, is above τ_c (FADAS with
delay-adaptive learning rate, eq. 3).
"""

from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
Slots = dict[str, Doubles]
Name = Literal["sgd", "momentum", "adam", "yogi", "amsgrad"]

SLOTS: dict[Name, tuple[str, ...]] = {
    "sgd": (),
    "momentum": ("m",),
    "adam": ("m", "v"),
    "yogi": ("m", "v"),
    "amsgrad": ("m", "v", "v_max"),
}


class OptimizerSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The server optimiser and its constants; the rate η is the job's `server_lr`."""

    name: Name = "sgd"
    momentum: float = 0.5
    beta1: float = 0.9
    beta2: float = 0.99
    epsilon: float = 1e-3
    delay_max: int | None = None


def rate(spec: OptimizerSpec, learning_rate: float, delay: int) -> float:
    """The learning rate when the most delayed update of the buffer is `delay` versions old."""
    if spec.delay_max is None or delay <= spec.delay_max:
        return learning_rate
    return min(learning_rate, 1.0 / delay)


def step(spec: OptimizerSpec, mean: Doubles, slots: Slots) -> tuple[Doubles, Slots]:
    """The direction to add, before the rate, and the slots after it; missing slots are those of the first step."""
    if spec.name == "sgd":
        return mean, {}
    if spec.name == "momentum":
        m = _kept(spec.momentum * slots.get("m", 0.0) + mean)
        return m, {"m": m}
    m = _kept(spec.beta1 * slots.get("m", 0.0) + (1.0 - spec.beta1) * mean)
    square = mean * mean
    v = slots.get("v", np.full_like(mean, spec.epsilon**2))
    if spec.name == "yogi":
        v = _kept(v - (1.0 - spec.beta2) * square * np.sign(v - square))
    else:
        v = _kept(spec.beta2 * v + (1.0 - spec.beta2) * square)
    after = {"m": m, "v": v}
    if spec.name == "amsgrad":
        after["v_max"] = v = np.maximum(v, slots.get("v_max", 0.0))
    return m / (np.sqrt(v) + spec.epsilon), after


def _kept(values: Doubles) -> Doubles:
    """As they are when they were stored in between."""
    return values.astype(np.float32).astype(np.float64)
