"""The TOML file of a simulation, read once into a frozen Config (docs/simulate.md)."""

import difflib
import tomllib
import typing
from pathlib import Path
from typing import Any, Literal

import msgspec

from aggregator import spec
from aggregator.errors import RefusedError
from aggregator.explain import explain
from aggregator.simulate.errors import SimulationError
from aggregator.spec import JobSpec
from edge_client.storage import without_path
from edge_client.wire import topics
from edge_client.wire.errors import LocalWireError

SEED_MAX = 2**31 - 1  # as of JobSpec.seed
DEVICES_MAX = 10_000_000  # names have seven digits
JOB, DATASET = "simulated", "simulated"  # unless [job] names others; their lengths count in topics


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of the file."""


class Dirichlet(Section, frozen=True, tag_field="kind", tag="dirichlet"):
    """Each device's class shares are drawn from Dir(alpha) (Hsu et al. 2019, arXiv:1909.06335 §3)."""

    alpha: float = 0.5


class Classes(Section, frozen=True, tag_field="kind", tag="classes"):
    """Each device has so many classes (McMahan et al. 2017, arXiv:1602.05629 §3)."""

    per_device: int = 2


class Natural(Section, frozen=True, tag_field="kind", tag="natural"):
    """One device an owner of the data."""


class Iid(Section, frozen=True, tag_field="kind", tag="iid"):
    """Samples are dealt at random."""


Partition = Dirichlet | Classes | Natural | Iid


class DataSection(Section, frozen=True):
    """Which samples there are and which device has which.

    `source` is fashion-mnist, watch, or the path of an .npz file. `quantity_sigma` is that of a log-normal factor of
    each device's number of samples; `holdout` and `gap` are as in a device's configuration; `test_share` of an
    .npz file without x_test and y_test is set apart.
    """

    source: str
    partition: Partition = Iid()
    samples_per_device: int | None = None
    quantity_sigma: float = 0.0
    holdout: float = 0.2
    gap: int = 0
    test_share: float = 0.2


class ModelSection(Section, frozen=True):
    """One of `builtin`, `bundle` and `onnx`; the rest as of `fedfleet bundle build` where it is given.

    `mean` and `deviation` are what samples are normalised by, one value each for the first axis of a sample.
    """

    builtin: Literal["mlp", "cnn", "exercise"] | None = None
    bundle: str | None = None
    onnx: str | None = None
    hidden: tuple[int, ...] = (100,)
    channels: tuple[int, ...] = (8, 16)
    dense: int = 64
    loss: Literal["cross_entropy", "bce_with_logits", "mse", "reconstruction"] | None = None
    optimizer: Literal["sgd", "momentum", "adam", "adamw"] | None = None
    momentum: float | None = None
    weight_decay: float | None = None
    proximal: float | None = None
    clip_norm: float | None = None
    quantize: Literal["int8", "int8-weights", "none"] | None = None
    trainable: tuple[str, ...] | None = None
    mean: tuple[float, ...] | None = None
    deviation: tuple[float, ...] | None = None


class LogNormal(Section, frozen=True, tag_field="kind", tag="lognormal"):
    """exp(sigma · N(0, 1)): half of the devices are slower than a factor of 1."""

    sigma: float = 1.0


class HalfNormal(Section, frozen=True, tag_field="kind", tag="halfnormal"):
    """|N(0, sigma)|, as in FLSim."""

    sigma: float = 1.0


class SpeedClasses(Section, frozen=True, tag_field="kind", tag="classes"):
    """Kinds of hardware: `shares` of the devices take `factors` times as long; equal shares unless given."""

    factors: tuple[float, ...]
    shares: tuple[float, ...] = ()


class Trace(Section, frozen=True, tag_field="kind", tag="trace"):
    """Each device takes a row of a CSV file with a header."""

    csv: str


class Fixed(Section, frozen=True, tag_field="kind", tag="fixed"):
    """All devices have the same link; a rate that is not given takes no time."""

    up_bytes_s: float | None = None
    down_bytes_s: float | None = None
    latency_s: float = 0.0


class Always(Section, frozen=True, tag_field="kind", tag="always"):
    """Devices are always connected."""


class Diurnal(Section, frozen=True, tag_field="kind", tag="diurnal"):
    """Each device is connected for `share` of each day; `spread` is the share of a day over which they begin."""

    share: float = 0.5
    spread: float = 1.0
    day_s: float = 86400.0


class Churn(Section, frozen=True, tag_field="kind", tag="churn"):
    """Exponentially distributed times on and off, of these means."""

    on_s: float
    off_s: float


class Faults(Section, frozen=True):
    """Probabilities a message, or a participation (`crash`); seconds until a sender tries again or is back.

    A message is lost, comes twice, or comes `reorder_s` late on average, so that later ones overtake it.
    """

    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    crash: float = 0.0
    retry_s: float = 30.0
    reorder_s: float = 5.0
    crash_s: float = 60.0


class Malicious(Section, frozen=True):
    """A share of the devices that attack: their update turned round, enlarged, without numbers, or of wrong labels."""

    share: float = 0.0
    kind: Literal["sign-flip", "scale", "label-flip", "nan"] = "sign-flip"
    factor: float = 1.0


class FleetSection(Section, frozen=True):
    """Devices, how fast they are, and what goes wrong.

    A participation trains for steps · `step_s` · factor · (1 + `jitter` · Exp(1)) seconds. Devices see the offer
    within `start_s`; at most `asking_max` of them wait for a place at a time.
    """

    devices: int | None = None
    step_s: float = 0.1
    jitter: float = 0.0
    speed: LogNormal | HalfNormal | SpeedClasses | Trace = LogNormal()
    slow_share: float = 0.0
    slow_factor: float = 10.0
    link: Fixed | Trace = Fixed()
    availability: Always | Diurnal | Churn = Always()
    faults: Faults = Faults()
    malicious: Malicious = Malicious()
    start_s: float = 0.1
    asking_max: int = 10_000


class StopSection(Section, frozen=True):
    """When a run ends; the first that holds ends it. `seconds` are virtual."""

    uploads: int | None = None
    versions: int | None = None
    seconds: float | None = None
    target_accuracy: float | None = None


class EvaluateSection(Section, frozen=True):
    """The newest version is evaluated after each `every` uploads, on `samples` of the test data (all unless given)."""

    every: int = 20
    samples: int | None = None
    targets: tuple[float, ...] = ()


class Config(Section, frozen=True):
    """The whole file, with paths made absolute; `job` and `strategy` hold fields of a job spec."""

    data: DataSection
    model: ModelSection
    fleet: FleetSection
    stop: StopSection
    evaluate: EvaluateSection = EvaluateSection()
    job: dict[str, Any] = {}
    strategy: tuple[dict[str, Any], ...] = ()
    seeds: tuple[int, ...] = (0,)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the strategies, in order."""
        return tuple(s["name"] for s in self.strategy) or ("job",)

    def spec(self, label: str, seed: int, bundle: str) -> JobSpec:
        """The job of a strategy: [job] with the strategy's own fields on top; raise SimulationError."""
        own = next((dict(s) for s in self.strategy if s["name"] == label), {})
        own.pop("name", None)
        raw = {"name": JOB, "dataset": DATASET, "seed": seed, **_merged(self.job, own), "bundle": bundle}
        try:
            return spec.parse(msgspec.json.encode(raw))
        except RefusedError as error:
            raise SimulationError(f"strategy {label!r}: {error}") from error


def load(path: Path) -> Config:
    """Read and check a file; raise SimulationError."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SimulationError(f"{path}: cannot be read: {without_path(error)}") from error
    except tomllib.TOMLDecodeError as error:
        raise SimulationError(f"{path}: not valid TOML: {error}") from error
    try:
        return parse(table, path.resolve().parent)
    except SimulationError as error:
        raise SimulationError(f"{path}: {error}") from error


def parse(table: dict[str, Any], folder: Path) -> Config:
    """Check what a file says; paths are relative to `folder`. Raise SimulationError."""
    _refuse_unknown(table, Config, "")
    try:
        config = msgspec.convert(table, Config)
    except msgspec.ValidationError as error:
        raise SimulationError(explain(error, Config)) from error
    _check(config)
    return _absolute(config, folder)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = dict(base)
    for key, value in over.items():
        inner = both.get(key)
        both[key] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return both


def _refuse_unknown(table: dict[str, Any], kind: type[msgspec.Struct], prefix: str) -> None:
    fields = {field.name: field.type for field in msgspec.structs.fields(kind)}
    known = [*fields, *([kind.__struct_config__.tag_field] if kind.__struct_config__.tag_field else [])]
    for key, value in table.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 1, 0.5)
            hint = f"; did you mean {prefix}{near[0]}?" if near else f"; known: {', '.join(known)}"
            raise SimulationError(f"unknown key {prefix}{key}{hint}")
        inner = _chosen(value, fields.get(key))
        if inner is not None:
            _refuse_unknown(value, inner, f"{prefix}{key}.")


def _chosen(value: Any, kind: Any) -> type[msgspec.Struct] | None:
    """The struct that this table is to become, where there is just one."""
    if not isinstance(value, dict):
        return None
    structs = [
        k for k in (typing.get_args(kind) or (kind,)) if isinstance(k, type) and issubclass(k, Section)
    ]
    if len(structs) > 1:
        structs = [k for k in structs if k.__struct_config__.tag == value.get("kind")]
    return structs[0] if len(structs) == 1 else None


def _check(config: Config) -> None:
    data, fleet, evaluate = config.data, config.fleet, config.evaluate
    faults, stop = fleet.faults, config.stop
    bounds: tuple[tuple[str, float | None, float, float], ...] = (
        ("data.samples_per_device", data.samples_per_device, 1, 1_000_000),
        ("data.quantity_sigma", data.quantity_sigma, 0, 3),
        ("data.holdout", data.holdout, 0, 0.9),
        ("data.gap", data.gap, 0, 1 << 20),
        ("data.test_share", data.test_share, 0.01, 0.9),
        ("fleet.devices", fleet.devices, 1, DEVICES_MAX),
        ("fleet.step_s", fleet.step_s, 1e-6, 86400),
        ("fleet.jitter", fleet.jitter, 0, 100),
        ("fleet.slow_share", fleet.slow_share, 0, 1),
        ("fleet.slow_factor", fleet.slow_factor, 1, 1e6),
        ("fleet.start_s", fleet.start_s, 0, 86400),
        ("fleet.asking_max", fleet.asking_max, 1, DEVICES_MAX),
        ("fleet.faults.loss", faults.loss, 0, 0.9),
        ("fleet.faults.duplicate", faults.duplicate, 0, 1),
        ("fleet.faults.reorder", faults.reorder, 0, 1),
        ("fleet.faults.crash", faults.crash, 0, 0.9),
        ("fleet.faults.retry_s", faults.retry_s, 1e-3, 86400),
        ("fleet.faults.reorder_s", faults.reorder_s, 0, 86400),
        ("fleet.faults.crash_s", faults.crash_s, 0, 7 * 86400),
        ("fleet.malicious.share", fleet.malicious.share, 0, 1),
        ("fleet.malicious.factor", fleet.malicious.factor, 0, 1e6),
        ("stop.uploads", stop.uploads, 1, 1e9),
        ("stop.versions", stop.versions, 1, 1e9),
        ("stop.seconds", stop.seconds, 1e-3, 1e10),
        ("stop.target_accuracy", stop.target_accuracy, 0, 1),
        ("evaluate.every", evaluate.every, 1, 1e9),
        ("evaluate.samples", evaluate.samples, 1, 1e9),
        *((f"evaluate.targets[{i}]", target, 0, 1) for i, target in enumerate(evaluate.targets)),
        *((f"seeds[{i}]", seed, 0, SEED_MAX) for i, seed in enumerate(config.seeds)),
        *_bounds_of_kinds(config),
    )
    for name, value, low, high in bounds:
        if value is not None and not low <= value <= high:
            raise SimulationError(f"{name} is {value}; it must be from {low:g} to {high:g}")
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        raise SimulationError("seeds: name at least one, and each once")
    if (stop.uploads, stop.versions, stop.seconds) == (None, None, None):
        raise SimulationError(
            "stop: say when runs end: uploads, versions or seconds (target_accuracy may never come)"
        )
    _check_names(config)


def _bounds_of_kinds(config: Config) -> list[tuple[str, float | None, float, float]]:
    """Bounds of what depends on a `kind`."""
    found: list[tuple[str, float | None, float, float]] = []
    match config.data.partition:
        case Dirichlet(alpha):
            found.append(("data.partition.alpha", alpha, 1e-3, 1e6))
        case Classes(per_device):
            found.append(("data.partition.per_device", per_device, 1, 65535))
    match config.fleet.speed:
        case LogNormal(sigma) | HalfNormal(sigma):
            found.append(("fleet.speed.sigma", sigma, 0, 5))
        case SpeedClasses(factors, shares):
            if not factors or (shares and len(shares) != len(factors)):
                raise SimulationError(
                    "fleet.speed: one factor at least, and as many shares as factors or none"
                )
            found += [("fleet.speed.factors", factor, 1e-3, 1e6) for factor in factors]
            found += [("fleet.speed.shares", share, 1e-9, 1e9) for share in shares]
    match config.fleet.link:
        case Fixed(up, down, latency):
            found += [("fleet.link.up_bytes_s", up, 1, 1e12), ("fleet.link.down_bytes_s", down, 1, 1e12)]
            found.append(("fleet.link.latency_s", latency, 0, 3600))
    match config.fleet.availability:
        case Diurnal(share, spread, day):
            found += [
                ("fleet.availability.share", share, 0.01, 1),
                ("fleet.availability.spread", spread, 0, 1),
            ]
            found.append(("fleet.availability.day_s", day, 1, 1e9))
        case Churn(on, off):
            found += [
                ("fleet.availability.on_s", on, 1e-3, 1e9),
                ("fleet.availability.off_s", off, 1e-3, 1e9),
            ]
    return found


def _check_names(config: Config) -> None:
    for i, strategy in enumerate(config.strategy):
        if not isinstance(strategy.get("name"), str):
            raise SimulationError(f"strategy[{i}]: it needs a name of its own")
        try:
            topics.check_id(strategy["name"], "name of a strategy")  # it names a file
        except LocalWireError as error:
            raise SimulationError(f"strategy[{i}]: {error}") from error
    if len(set(config.labels)) < len(config.labels):
        raise SimulationError("strategy: two have the same name")
    for where, table in (("job", config.job), *((f"strategy {s['name']!r}", s) for s in config.strategy)):
        for field, section in (("bundle", "model"), ("testset", "data")):
            if field in table:
                raise SimulationError(f"{where}: leave {field} out; it is what [{section}] says")
    given = [n for n in ("builtin", "bundle", "onnx") if getattr(config.model, n) is not None]
    if len(given) != 1:
        raise SimulationError(
            f"model: one of builtin, bundle and onnx is needed; given: {', '.join(given) or 'none'}"
        )


def _absolute(config: Config, folder: Path) -> Config:
    """Paths in the file are relative to the file."""
    replace = msgspec.structs.replace

    def whole(path: str | None) -> str | None:
        return None if path is None else str(folder / path)

    data, model, fleet = config.data, config.model, config.fleet
    if data.source not in ("fashion-mnist", "watch"):
        data = replace(data, source=whole(data.source))
    model = replace(model, bundle=whole(model.bundle), onnx=whole(model.onnx))
    if isinstance(fleet.speed, Trace):
        fleet = replace(fleet, speed=Trace(str(folder / fleet.speed.csv)))
    if isinstance(fleet.link, Trace):
        fleet = replace(fleet, link=Trace(str(folder / fleet.link.csv)))
    return replace(config, data=data, model=model, fleet=fleet)
