"""What a person asks of a job, and everything that is checked before it starts (I2, I13)."""

import difflib
from importlib.metadata import entry_points
from typing import Any, Literal

import msgspec

from aggregator import presets, staleness
from aggregator.audience import Mode
from aggregator.cache import CACHE_DEVICES_MAX
from aggregator.errors import RefusedError
from aggregator.explain import explain
from aggregator.fold import UNIT_BITS
from aggregator.optimizer import OptimizerSpec
from edge_client.bundle import Manifest
from edge_client.wire import topics
from edge_client.wire.errors import LocalWireError
from edge_client.wire.limits import FRACTION_BITS, HALF_MAX, SAMPLES_MAX
from edge_client.wire.messages import CODECS

LOSS_MAX = 1e30  # far above any loss of float32 that still means something

# Named in the design, not built yet: asking for one is refused, never silently run without (I13).
UNSUPPORTED_FIELDS = {
    "privacy": "differential privacy",
    "secure_aggregation": "secure aggregation",
    "signing": "signed updates",
    "rollout": "staged roll-out",
    "personalization": "personalisation",
}
# Each takes a coordinate's middle values, and most devices did not send that coordinate.
SPARSE_RULES = ("median", "trimmed-mean", "krum")
BASES_BYTES_MAX = 1 << 30  # models of past versions that mixing keeps in memory


class TrainingSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Local training; None takes the bundle's value.

    `codec` is how updates travel; a device that does not speak it sends ternary ones. `density_first` begins a
    warm-up: a device's first `warmup` updates carry more, falling to `density`. A device that has measured its uplink
    sends as much as it publishes within `uplink_budget_s`, from `density_min` to `density_max` (None: `density`).
    """

    steps: int = 20
    batch_size: int | None = None
    learning_rate: float | None = None
    density: float = 0.05
    density_first: float | None = None
    warmup: int = 10
    uplink_budget_s: float | None = 10.0
    density_min: float = 0.001
    density_max: float | None = None
    codec: str = CODECS[0]


class EndSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a job ends; the first condition that holds ends it.

    `target_accuracy`, `target_loss` and `patience` look at the devices' own hold-outs (history.py), never at other
    data. A model without an accuracy is judged by its loss.
    """

    versions_max: int | None = None
    deadline_s: float | None = None
    target_accuracy: float | None = None
    target_loss: float | None = None
    patience: int | None = None  # versions without a better hold-out accuracy, or a lower loss


class RobustSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Defences inside a buffer, as weights (bounds.py); null switches one off.

    An update whose L2 norm is above `clip_factor` times the `clip_quantile` of recent norms is scaled down to that. Of
    one device no more than `device_share_max` of a buffer count, once there are devices enough to fill it.
    """

    rule: str = "mean"
    clip_factor: float | None = 3.0
    clip_quantile: float = 0.5
    device_share_max: float | None = 0.5


class SelectionSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which of the willing devices train (leases.py), and when."""

    policy: Literal["round-robin", "random", "fair"] = "round-robin"
    samples_min: int = 1
    pace_s: float = 0.0


class JobSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A job: which bundle is trained on which data set, how updates are aggregated, and when it ends.

    Every strategy is a setting of one buffered aggregator (presets.py). A version is made of `buffer_size` updates, or
    after `max_wait_s` of at least `quorum`: x ← x + step(mean) with mean = Σ s(τ)·(Δ - β·h) / Z + β·H, where s is
    the `staleness` function with a = `staleness_exponent` and b = `staleness_start`, h what the device sent before,
    H the mean of that over devices, β the `cache_weight`, and Z the weight of all updates (`normalizer` `count`) or
    Σ s(τ) (`weight`), each weighing 1 or its samples (`weighting`). `step` is the server's `optimizer` with the rate
    `server_lr`. With `mixing` Δ is taken from the newest model rather than from the update's base. With a `barrier`
    devices train in rounds: `over_selection` times the buffer's size of them begin, and whoever is not among the
    first is refused as stale. Devices train from x̂, which follows x by deltas that carry the `downlink_density`
    share of all weights (hidden.py), pulled, or handed out by the broker (`fanout`). `testset` is the digest of a data
    set on which the server evaluates versions.
    """

    name: str
    bundle: str
    dataset: str
    cohort: str = "all"
    strategy: str = "fedbuff"
    buffer_size: int = 4
    concurrency: int = 8
    max_wait_s: float = 30.0
    quorum: int = 1
    barrier: bool = False
    over_selection: float = 1.0
    staleness: str = "polynomial"
    staleness_exponent: float = 0.5
    staleness_start: int = 4
    staleness_floor: float = 0.1
    staleness_max: int = 20
    cache_weight: float = 0.0
    mixing: bool = False
    normalizer: Literal["count", "weight"] = "count"
    weighting: Literal["uniform", "samples"] = "uniform"
    server_lr: float = 1.0
    optimizer: OptimizerSpec = OptimizerSpec()
    robust: RobustSpec = RobustSpec()
    selection: SelectionSpec = SelectionSpec()
    testset: str | None = None
    norm_max: float = 100.0
    downlink_density: float = 1.0
    fanout: Mode = "auto"
    lease_s: float = 120.0
    retry_s: float = 15.0
    seed: int = 0
    training: TrainingSpec = TrainingSpec()
    end: EndSpec = EndSpec()


PARTS: dict[str, type[msgspec.Struct]] = {
    "optimizer": OptimizerSpec,
    "robust": RobustSpec,
    "selection": SelectionSpec,
    "training": TrainingSpec,
    "end": EndSpec,
}


def parse(data: bytes) -> JobSpec:
    """Parse and check a JSON job spec; fields it leaves out are the strategy's.

    Raises RefusedError: `unsupported` for what is designed but not built (I13), `bad_spec` for the rest;
    the message names the field.
    """
    try:
        raw = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RefusedError("bad_spec", f"the job spec is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise RefusedError("bad_spec", "the job spec is not a JSON object")
    name = raw.get("strategy", "fedbuff")
    try:
        raw = presets.filled(raw, presets.defaults(name))
    except (KeyError, TypeError) as error:
        raise RefusedError(
            "bad_spec", f"unknown strategy {name!r}; known: {', '.join(presets.names())}"
        ) from error
    _refuse_unsupported(raw)
    _refuse_unknown(raw, JobSpec, "")
    for field, kind in PARTS.items():
        if isinstance(raw.get(field), dict):
            _refuse_unknown(raw[field], kind, f"{field}.")
    try:
        spec = msgspec.convert(raw, JobSpec)
    except msgspec.ValidationError as error:
        raise RefusedError("bad_spec", f"job spec: {explain(error, JobSpec)}") from error
    check(spec)
    return spec


def check(spec: JobSpec) -> None:
    """Check the values of a spec; raise RefusedError naming the first that cannot be."""
    try:
        topics.check_id(spec.name, "job name")
        topics.check_id(spec.dataset, "dataset")
        topics.check_id(spec.cohort, "cohort")
    except LocalWireError as error:
        raise RefusedError("bad_spec", str(error)) from error
    for name, value, low, high in _bounds(spec):
        if value is not None and not low <= value <= high:
            raise RefusedError("bad_spec", f"{name} is {value}; it must be from {low:g} to {high:g}")
    if spec.training.codec not in CODECS:
        raise RefusedError(
            "bad_spec", f"training.codec is {spec.training.codec!r}; known: {', '.join(CODECS)}"
        )
    functions = (*staleness.FUNCTIONS, *(point.name for point in entry_points(group=staleness.GROUP)))
    if spec.staleness not in functions:
        raise RefusedError("bad_spec", f"staleness is {spec.staleness!r}; known: {', '.join(functions)}")
    _check_combination(spec)
    remedy = "norm_max or buffer_size"
    _check_sum(spec, spec.buffer_size, spec.norm_max, UNIT_BITS, what="buffer_size * norm_max", remedy=remedy)
    if spec.cache_weight > 0:
        what, remedy = (
            f"{CACHE_DEVICES_MAX} cached devices * norm_max",
            "norm_max, or take weighting 'uniform'",
        )
        _check_sum(spec, CACHE_DEVICES_MAX, spec.norm_max, UNIT_BITS, what=what, remedy=remedy)


def _bounds(spec: JobSpec) -> tuple[tuple[str, float | None, float, float], ...]:
    end, training, optimizer = spec.end, spec.training, spec.optimizer
    robust, selection = spec.robust, spec.selection
    return (
        ("buffer_size", spec.buffer_size, 1, 100_000),
        ("concurrency", spec.concurrency, 1, 1_000_000),
        ("max_wait_s", spec.max_wait_s, 0.1, 7 * 86400),
        ("quorum", spec.quorum, 1, spec.buffer_size),
        ("over_selection", spec.over_selection, 1, 10),
        ("staleness_exponent", spec.staleness_exponent, 0, 10),
        ("staleness_start", spec.staleness_start, 0, 1000),
        ("staleness_floor", spec.staleness_floor, 0, 1),
        ("staleness_max", spec.staleness_max, 0, 1000),
        ("cache_weight", spec.cache_weight, 0, 1),
        ("server_lr", spec.server_lr, 1e-6, 100),
        ("optimizer.momentum", optimizer.momentum, 0, 0.999),
        ("optimizer.beta1", optimizer.beta1, 0, 0.9999),
        ("optimizer.beta2", optimizer.beta2, 0, 0.99999),
        ("optimizer.epsilon", optimizer.epsilon, 1e-12, 1),
        ("optimizer.delay_max", optimizer.delay_max, 0, 1000),
        ("robust.clip_factor", robust.clip_factor, 0.1, 1000),
        ("robust.clip_quantile", robust.clip_quantile, 0.01, 1),
        ("robust.device_share_max", robust.device_share_max, 0.001, 1),
        ("selection.samples_min", selection.samples_min, 1, 2**31 - 1),
        ("selection.pace_s", selection.pace_s, 0, 86400),
        ("norm_max", spec.norm_max, 1e-6, 1e6),
        ("downlink_density", spec.downlink_density, 1e-5, 1),
        ("lease_s", spec.lease_s, 1, 7 * 86400),
        ("retry_s", spec.retry_s, 0.5, 86400),
        ("seed", spec.seed, 0, 2**31 - 1),
        ("training.steps", training.steps, 1, 1_000_000),
        ("training.batch_size", training.batch_size, 1, 65536),
        ("training.learning_rate", training.learning_rate, 1e-9, 100),
        ("training.density", training.density, 1e-5, 1),
        ("training.density_first", training.density_first, training.density, 1),
        ("training.warmup", training.warmup, 1, 10_000),
        ("training.uplink_budget_s", training.uplink_budget_s, 0.1, 86400),
        ("training.density_min", training.density_min, 1e-5, 1),
        ("training.density_max", training.density_max, training.density, 1),
        ("end.versions_max", end.versions_max, 1, 10_000_000),
        ("end.deadline_s", end.deadline_s, 1, 10 * 365 * 86400),
        ("end.target_accuracy", end.target_accuracy, 0, 1),
        ("end.target_loss", end.target_loss, 0, LOSS_MAX),
        ("end.patience", end.patience, 1, 1_000_000),
    )


def _check_combination(spec: JobSpec) -> None:
    """Settings that are each sound and together break a promise."""
    if spec.robust.rule in SPARSE_RULES:
        raise RefusedError(
            "bad_spec",
            f"robust.rule {spec.robust.rule!r}: updates are sparse, so the middle of a coordinate's values is nearly "
            "always 0 and the model would stand still; leave it at 'mean', whose norm clipping and device share bound "
            "what one device can do",
        )
    if spec.robust.rule != "mean":
        raise RefusedError("bad_spec", f"robust.rule is {spec.robust.rule!r}; there is 'mean'")
    if spec.over_selection > 1 and not spec.barrier:
        raise RefusedError(
            "bad_spec", "over_selection is for rounds: set barrier, or leave it at 1 and raise concurrency"
        )
    if spec.staleness_max == 0 and not spec.barrier and spec.buffer_size > spec.concurrency:
        raise RefusedError(
            "bad_spec",
            f"staleness_max 0 with buffer_size {spec.buffer_size} > concurrency {spec.concurrency}: each version makes "
            "all training under way worthless; raise staleness_max, or set barrier for rounds",
        )
    if spec.mixing and (spec.cache_weight > 0 or spec.optimizer.name != "sgd"):
        raise RefusedError(
            "bad_spec",
            "mixing averages models, which needs cache_weight 0 and optimizer sgd; or set mixing to false",
        )


def check_bundle(spec: JobSpec, bundle: Manifest) -> None:
    """Check a spec against the bundle it names; raise RefusedError."""
    if spec.end.target_accuracy is not None and bundle.measure != "accuracy":
        raise RefusedError(
            "bad_spec",
            f"end.target_accuracy: a model trained with loss {bundle.loss} has no accuracy; use end.target_loss",
        )
    if bundle.statistics:
        what = f"{HALF_MAX:g} (the largest change of a statistic)"
        _check_sum(
            spec,
            spec.buffer_size,
            HALF_MAX,
            FRACTION_BITS,
            what=f"buffer_size * {what}",
            remedy="buffer_size",
        )
    bases = 4 * bundle.parameters * (spec.staleness_max + 1)
    if spec.mixing and bases > BASES_BYTES_MAX:
        raise RefusedError(
            "bad_spec",
            f"mixing keeps staleness_max + 1 models in memory, here {bases:,} B of at most {BASES_BYTES_MAX:,}; "
            "lower staleness_max, or set mixing to false",
        )


def _check_sum(
    spec: JobSpec, updates: int, value_max: float, unit_bits: int, *, what: str, remedy: str
) -> None:
    """Integer sums over so many updates must fit 64 bits (I2)."""
    weight_max = SAMPLES_MAX if spec.weighting == "samples" else 1
    if updates * value_max * weight_max >= 2.0 ** (63 - unit_bits):
        raise RefusedError(
            "bad_spec",
            f"{what} * {weight_max} samples must stay below 2**{63 - unit_bits}, "
            f"or integer sums could overflow: lower {remedy}",
        )


def _refuse_unsupported(raw: dict[str, Any]) -> None:
    for field, what in UNSUPPORTED_FIELDS.items():
        if field not in raw:
            continue
        if field in ("privacy", "secure_aggregation") and raw.get("cache_weight"):
            raise RefusedError(
                "bad_spec",
                f"cache_weight {raw['cache_weight']} breaks {what}: what a device sent once would count in every later "
                "version; use strategy 'fedbuff', or set cache_weight to 0",
            )
        raise RefusedError("unsupported", f"{field}: {what} is not built yet; leave the field out")


def _refuse_unknown(raw: dict[str, Any], kind: type[msgspec.Struct], prefix: str) -> None:
    known = kind.__struct_fields__
    for name in raw:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {prefix}{near[0]}?" if near else f"; known: {', '.join(known)}"
            raise RefusedError("bad_spec", f"unknown field {prefix}{name}{hint}")
