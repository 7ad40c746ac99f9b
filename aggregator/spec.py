"""What a person asks of a job, and everything that is checked before it starts (I2, I13)."""

import difflib
from typing import Any, Literal

import msgspec

from aggregator.errors import RefusedError
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
    "server_optimizer": "a server optimiser other than SGD",
}
UNSUPPORTED_STRATEGIES = ("fedavg", "fedasync", "calibrated", "fadas")


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


class JobSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A job: which bundle is trained on which data set, how updates are folded, and when it ends.

    The strategy `fedbuff` is buffered asynchronous aggregation (Nguyen et al. 2022, alg. 1): every
    `buffer_size` updates x ← x + server_lr · Σ s(τ)·Δ / Z with s(τ) = (1 + τ)^(-staleness_exponent); Z is
    the number of updates (`uniform`) or of samples (`samples`). Devices train from x̂, which follows x by deltas
    that carry the `downlink_density` share of all weights (hidden.py).
    """

    name: str
    bundle: str
    dataset: str
    cohort: str = "all"
    strategy: Literal["fedbuff"] = "fedbuff"
    buffer_size: int = 4
    concurrency: int = 8
    max_wait_s: float = 30.0
    staleness_exponent: float = 0.5
    staleness_max: int = 20
    server_lr: float = 1.0
    weighting: Literal["uniform", "samples"] = "uniform"
    norm_max: float = 100.0
    downlink_density: float = 1.0
    lease_s: float = 120.0
    retry_s: float = 15.0
    seed: int = 0
    training: TrainingSpec = TrainingSpec()
    end: EndSpec = EndSpec()


def parse(data: bytes) -> JobSpec:
    """Parse and check a JSON job spec.

    Raises RefusedError: `unsupported` for what is designed but not built (I13), `bad_spec` for the rest;
    the message names the field.
    """
    try:
        raw = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RefusedError("bad_spec", f"the job spec is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise RefusedError("bad_spec", "the job spec is not a JSON object")
    _refuse_unsupported(raw)
    _refuse_unknown(raw, JobSpec, "")
    for field, kind in (("training", TrainingSpec), ("end", EndSpec)):
        if isinstance(raw.get(field), dict):
            _refuse_unknown(raw[field], kind, f"{field}.")
    try:
        spec = msgspec.convert(raw, JobSpec)
    except msgspec.ValidationError as error:
        raise RefusedError("bad_spec", f"job spec: {error}") from error
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
    end, training = spec.end, spec.training
    bounds: tuple[tuple[str, float | None, float, float], ...] = (
        ("buffer_size", spec.buffer_size, 1, 100_000),
        ("concurrency", spec.concurrency, 1, 1_000_000),
        ("max_wait_s", spec.max_wait_s, 0.1, 7 * 86400),
        ("staleness_exponent", spec.staleness_exponent, 0, 10),
        ("staleness_max", spec.staleness_max, 0, 1000),
        ("server_lr", spec.server_lr, 1e-6, 100),
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
    for name, value, low, high in bounds:
        if value is not None and not low <= value <= high:
            raise RefusedError("bad_spec", f"{name} is {value}; it must be from {low:g} to {high:g}")
    if training.codec not in CODECS:
        raise RefusedError("bad_spec", f"training.codec is {training.codec!r}; known: {', '.join(CODECS)}")
    _check_sums(spec, spec.norm_max, "norm_max", "norm_max or buffer_size")


def check_bundle(spec: JobSpec, bundle: Manifest) -> None:
    """Check a spec against the bundle it names; raise RefusedError."""
    if spec.end.target_accuracy is not None and bundle.measure != "accuracy":
        raise RefusedError(
            "bad_spec",
            f"end.target_accuracy: a model trained with loss {bundle.loss} has no accuracy; use end.target_loss",
        )
    if bundle.statistics:
        _check_sums(spec, HALF_MAX, f"{HALF_MAX:g} (the largest change of a statistic)", "buffer_size")


def _check_sums(spec: JobSpec, value_max: float, name: str, remedy: str) -> None:
    """The integer sums of a full buffer must fit 64 bits (I2)."""
    weight_max = SAMPLES_MAX if spec.weighting == "samples" else 1
    if spec.buffer_size * value_max * weight_max >= 2.0 ** (63 - FRACTION_BITS):
        raise RefusedError(
            "bad_spec",
            f"buffer_size * {name} * {weight_max} samples must stay below 2**{63 - FRACTION_BITS}, "
            f"or the integer sums of a buffer could overflow: lower {remedy}",
        )


def _refuse_unsupported(raw: dict[str, Any]) -> None:
    for field, what in UNSUPPORTED_FIELDS.items():
        if field in raw:
            raise RefusedError("unsupported", f"{field}: {what} is not built yet; leave the field out")
    if raw.get("strategy") in UNSUPPORTED_STRATEGIES:
        raise RefusedError(
            "unsupported", f"strategy {raw['strategy']!r} is not built yet; 'fedbuff' is what there is"
        )


def _refuse_unknown(raw: dict[str, Any], kind: type[msgspec.Struct], prefix: str) -> None:
    known = kind.__struct_fields__
    for name in raw:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {prefix}{near[0]}?" if near else f"; known: {', '.join(known)}"
            raise RefusedError("bad_spec", f"unknown field {prefix}{name}{hint}")
