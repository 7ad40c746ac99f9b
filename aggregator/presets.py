"""Strategies by name: each a setting of the same knobs (docs/strategies.md says which to choose, and why).

A strategy of one's own is a subclass of `strategy.Strategy` in the entry-point group `fedfleet.strategies`.
"""

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

GROUP = "fedfleet.strategies"

PRESETS: dict[str, dict[str, Any]] = {
    # McMahan et al. 2017, alg. 1; over-selection: Bonawitz et al. 2019, §2.2
    "fedavg": {
        "barrier": True,
        "over_selection": 1.3,
        "staleness": "constant",
        "staleness_max": 0,
        "weighting": "samples",
        "max_wait_s": 600.0,
    },
    # Xie et al. 2019, alg. 1, with its mixing weight of 0.6
    "fedasync": {
        "buffer_size": 1,
        "mixing": True,
        "server_lr": 0.6,
        "staleness": "polynomial",
        "staleness_max": 100,
    },
    # Nguyen et al. 2022, alg. 1
    "fedbuff": {},
    # CA2FL: Wang et al. 2024, alg. 2
    "calibrated": {"cache_weight": 1.0},
    # Wang et al. 2024 (FADAS), alg. 1, delay-adaptive
    "fadas": {
        "staleness": "constant",
        "server_lr": 0.003,
        "optimizer": {"name": "amsgrad", "delay_max": 10},
    },
}


def own() -> dict[str, EntryPoint]:
    """Strategies that other packages bring, by name."""
    return {point.name: point for point in entry_points(group=GROUP)}


def names() -> list[str]:
    """All strategies that a job may name."""
    return [*PRESETS, *(name for name in sorted(own()) if name not in PRESETS)]


def defaults(name: str) -> Mapping[str, Any]:
    """The fields that a strategy sets unless the job does; raises KeyError for an unknown one."""
    if name in PRESETS:
        return PRESETS[name]
    found: Mapping[str, Any] = own()[name].load().defaults
    return found


def filled(raw: Mapping[str, Any], preset: Mapping[str, Any]) -> dict[str, Any]:
    """`raw` with the preset's values where it says nothing, part by part."""
    out = dict(preset)
    for name, value in raw.items():
        below = out.get(name)
        out[name] = filled(value, below) if isinstance(value, dict) and isinstance(below, dict) else value
    return out
