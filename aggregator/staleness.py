"""How much an update counts that was trained τ versions ago, s(τ). Pure.

| function | s(τ) | source |
|---|---|---|
| `constant` | 1 | FedAvg |
| `polynomial` | (1 + τ)^-a | FedAsync: Xie et al. 2019, §5.2; FedBuff: Nguyen et al. 2022, §5 |
| `hinge` | 1 up to τ = b, then 1 / (a (τ - b) + 1) | FedAsync: Xie et al. 2019, §5.2 |
| `threshold` | 1 up to τ = b, then `floor` | FLSim's threshold weighting |
"""

from collections.abc import Callable

Staleness = Callable[[int], float]

GROUP = "fedfleet.staleness"  # entry points of functions of one's own: τ to 0 … 1
FUNCTIONS = ("constant", "polynomial", "hinge", "threshold")


def function(name: str, *, exponent: float, start: int, floor: float) -> Staleness:
    """s(τ) by name: `exponent` is a, `start` is b; raises KeyError for a name that is not in FUNCTIONS."""
    table: dict[str, Staleness] = {
        "constant": lambda _: 1.0,
        "polynomial": lambda tau: float((1.0 + tau) ** -exponent),
        "hinge": lambda tau: 1.0 if tau <= start else 1.0 / (exponent * (tau - start) + 1.0),
        "threshold": lambda tau: 1.0 if tau <= start else floor,
    }
    return table[name]
