"""The device's configuration: one TOML file, read once into a frozen DeviceConfig (docs/device.md).

Says exactly what is wrong and where. It does not open data sets and does not reach the broker: that is
`fedfleet device check`.
"""

import difflib
import tomllib
import typing
from pathlib import Path
from typing import Any, Literal

import msgspec

from edge_client.storage import without_path
from edge_client.wire import topics
from edge_client.wire.errors import LocalWireError
from edge_client.wire.messages import DataSchema

Protocol = Literal["auto", "5", "3.1.1"]
PASSWORD_BYTES_MAX = 64 * 1024  # a password of MQTT is at most 65535 bytes


class ConfigError(Exception):
    """The configuration cannot be used; the message names file, key and remedy."""


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of the file."""


class DeviceSection(_Section, frozen=True):
    """Who this device is, and where it keeps its state."""

    id: str
    state_dir: str
    cohort: str = "all"


class BrokerSection(_Section, frozen=True):
    """How to reach the MQTT broker; `keepalive` is in seconds."""

    host: str
    port: int = 1883
    username: str = ""
    password_file: str = ""
    protocol: Protocol = "auto"
    keepalive: int = 60


class DataSection(_Section, frozen=True):
    """A data set that the custodian of this device lends to jobs that ask for it by name.

    `shape` is of one sample. At most one of `classes`, `labels` and `values` says what it is labelled with: one of
    so many classes, any of so many labels, or float32 values of this shape. `holdout` is the share of each recording
    kept for evaluation, `gap` the number of samples before it that are used for neither.
    """

    path: str
    shape: tuple[int, ...]
    classes: int | None = None
    labels: int | None = None
    values: tuple[int, ...] | None = None
    axes: tuple[str, ...] = ()
    holdout: float = 0.2
    gap: int = 1

    @property
    def schema(self) -> DataSchema:
        """What a job's data schema is compared with."""
        if self.classes is not None:
            return DataSchema(self.shape, self.classes, self.axes)
        if self.labels is not None:
            return DataSchema(self.shape, self.labels, self.axes, "labels")
        if self.values is not None:
            return DataSchema(self.shape, 0, self.axes, "values", self.values)
        return DataSchema(self.shape, 0, self.axes, "none")


class TrainerSection(_Section, frozen=True):
    """What the training process may use: niceness, MB of writable memory, seconds it may idle before it stops."""

    nice: int = 10
    memory_max_mb: int = 512
    idle_s: float = 60.0


class DeviceConfig(_Section, frozen=True):
    """The whole file, with paths made absolute."""

    device: DeviceSection
    broker: BrokerSection
    data: dict[str, DataSection] = {}
    trainer: TrainerSection = TrainerSection()

    @property
    def state_dir(self) -> Path:
        """Directory of the state database, blobs and workspaces."""
        return Path(self.device.state_dir)

    def password(self) -> str | None:
        """Read the broker password; None without a password file. Raise ConfigError when unreadable."""
        if not self.broker.password_file:
            return None
        path = Path(self.broker.password_file)
        try:
            if path.stat().st_mode & 0o077:
                raise ConfigError(f"{path}: others can read this password; run: chmod 600 {path}")
            with path.open("rb") as file:
                return file.read(PASSWORD_BYTES_MAX).decode().rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"broker.password_file: cannot read {path}: {without_path(error)}") from error


def load(path: Path) -> DeviceConfig:
    """Read and check a configuration file; raise ConfigError."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {without_path(error)}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    _reject_unknown(table, DeviceConfig, "", path)
    try:
        config = msgspec.convert(table, DeviceConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {_locate(str(error))}") from error
    try:
        _check(config)
    except (ConfigError, LocalWireError) as error:
        raise ConfigError(f"{path}: {error}") from error
    return _absolute(config, path.resolve().parent)


def _reject_unknown(table: dict[str, Any], kind: type[msgspec.Struct], prefix: str, path: Path) -> None:
    fields = {field.name: field.type for field in msgspec.structs.fields(kind)}
    for key, value in table.items():
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1, cutoff=0.5)
            hint = f"; did you mean {prefix}{near[0]}?" if near else f"; known are {', '.join(fields)}"
            raise ConfigError(f"{path}: unknown key {prefix}{key}{hint}")
        if not isinstance(value, dict):
            continue
        inner = fields[key]
        if typing.get_origin(inner) is dict:
            section = typing.get_args(inner)[1]
            for name, entry in value.items():
                if isinstance(entry, dict):
                    _reject_unknown(entry, section, f"{prefix}{key}.{name}.", path)
        elif isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            _reject_unknown(value, inner, f"{prefix}{key}.", path)


def _locate(message: str) -> str:
    """Turn msgspec's "… - at `$.broker.port`" around, so that the key comes first."""
    what, _, where = message.partition(" - at `$")
    key = where.rstrip("`").lstrip(".")
    return f"{key}: {what[:1].lower()}{what[1:]}" if key else what


def _check(config: DeviceConfig) -> None:
    topics.check_id(config.device.id, "device.id")
    topics.check_id(config.device.cohort, "device.cohort")
    _within("broker.port", config.broker.port, 1, 65535)
    _within("broker.keepalive", config.broker.keepalive, 5, 3600)
    _within("trainer.nice", config.trainer.nice, 0, 19)
    _within("trainer.memory_max_mb", config.trainer.memory_max_mb, 64, 1 << 20)
    _within("trainer.idle_s", config.trainer.idle_s, 0, 86400)
    for name, data in config.data.items():
        topics.check_id(name, f"data set name data.{name}:")
        _within(f"data.{name}.holdout", data.holdout, 0.0, 0.9)
        _within(f"data.{name}.gap", data.gap, 0, 1 << 20)
        if not data.shape or min(data.shape) < 1:
            raise ConfigError(
                f"data.{name}.shape: {list(data.shape)} has no samples; each extent is at least 1"
            )
        _check_target(f"data.{name}", data)
        if data.axes and len(data.axes) != len(data.shape):
            raise ConfigError(f"data.{name}.axes: {len(data.axes)} names for {len(data.shape)} axes of shape")


def _check_target(key: str, data: DataSection) -> None:
    given = [name for name in ("classes", "labels", "values") if getattr(data, name) is not None]
    if len(given) > 1:
        raise ConfigError(f"{key}: {' and '.join(given)} are given; samples have at most one of them")
    if data.classes is not None:
        _within(f"{key}.classes", data.classes, 2, 65535)
    if data.labels is not None:
        _within(f"{key}.labels", data.labels, 1, 65535)
    if data.values is not None and (not data.values or min(data.values) < 1):
        raise ConfigError(
            f"{key}.values: {list(data.values)} has no values; for one value a sample write [1]"
        )


def _within(key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{key}: {value} is not between {low} and {high}")


def _absolute(config: DeviceConfig, folder: Path) -> DeviceConfig:
    """Paths in the file are relative to the file, wherever the daemon is started."""
    replace = msgspec.structs.replace
    password = config.broker.password_file
    return replace(
        config,
        device=replace(config.device, state_dir=str(folder / config.device.state_dir)),
        broker=replace(config.broker, password_file=str(folder / password) if password else ""),
        data={name: replace(data, path=str(folder / data.path)) for name, data in config.data.items()},
    )
