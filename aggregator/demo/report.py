"""The demo's result: the table, the gate, and the figures as JSON."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from rich.table import Table

# Set from the recorded runs in bench/demo.md.
CENTRALISED_POINTS_MAX = 6.0  # federated may be this many points below centralised
LOCAL_POINTS_MIN = 15.0  # federated must be this many points above local-only
INT8_POINTS_MAX = 0.5  # the INT8 file may lose this much against the model it was made from
BYTES_RATIO_MIN = 40.0  # bytes per update must be so many times below dense fp32
DOWN_RATIO_MIN = 4.0  # all that goes down, bundles included, against a dense fp32 model a participation
SECONDS_MAX = 300.0


@dataclass(frozen=True)
class Result:
    """What a run came to. Accuracies are shares on the unseen subjects; bytes are MQTT payloads."""

    local_only: float
    federated: float
    centralised: float
    int8: float
    versions: int
    updates: int
    bytes_up: int
    bytes_down: int
    bytes_up_dense: int
    bytes_per_update: float
    bytes_int8_model: int
    parameters: int
    staleness_mean: float
    chosen_version: int
    end: str
    seconds: float

    def write_json(self, path: Path) -> None:
        """Write the figures as one JSON object."""
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self)) + b"\n")


def failures(result: Result) -> list[str]:
    """Conditions that do not hold, in words; empty when the demo passed."""
    below = 100 * (result.centralised - result.federated)
    above = 100 * (result.federated - result.local_only)
    lost = 100 * (result.federated - result.int8)
    ratio = 4 * result.parameters / result.bytes_per_update
    down = result.bytes_up_dense / max(1, result.bytes_down)
    checks = (
        (
            below <= CENTRALISED_POINTS_MAX,
            f"federated is {below:.1f} points below centralised (at most {CENTRALISED_POINTS_MAX:g})",
        ),
        (
            above >= LOCAL_POINTS_MIN,
            f"federated is {above:.1f} points above local-only (at least {LOCAL_POINTS_MIN:g})",
        ),
        (lost <= INT8_POINTS_MAX, f"the INT8 model loses {lost:.2f} points (at most {INT8_POINTS_MAX:g})"),
        (
            ratio >= BYTES_RATIO_MIN,
            f"updates are {ratio:.1f} times below dense fp32 (at least {BYTES_RATIO_MIN:g})",
        ),
        (
            down >= DOWN_RATIO_MIN,
            f"what goes down is {down:.1f} times below dense fp32 (at least {DOWN_RATIO_MIN:g})",
        ),
        (result.seconds <= SECONDS_MAX, f"the run took {result.seconds:.0f} s (at most {SECONDS_MAX:g})"),
    )
    return [words for held, words in checks if not held]


def table(result: Result) -> Table:
    """The result for people."""
    shown = Table(title="Accuracy on two people no device ever saw", title_justify="left")
    shown.add_column("training")
    shown.add_column("accuracy", justify="right")
    shown.add_column("what leaves a device")
    shown.add_row("local only (mean of the devices)", _percent(result.local_only), "nothing")
    shown.add_row(
        "[bold]federated[/bold]",
        f"[bold]{_percent(result.federated)}[/bold]",
        f"{result.bytes_per_update:,.0f} B an update, dense fp32 would be {4 * result.parameters:,} B "
        f"({4 * result.parameters / result.bytes_per_update:.0f}x)",
    )
    shown.add_row(
        "  as INT8 ONNX file", _percent(result.int8), f"{result.bytes_int8_model:,} B through ONNX Runtime"
    )
    shown.add_row("centralised", _percent(result.centralised), "all raw data")
    return shown


def facts(result: Result) -> Table:
    """The run in figures."""
    shown = Table.grid(padding=(0, 2))
    dense = result.bytes_up_dense
    rows: tuple[tuple[str, Any], ...] = (
        ("versions", f"{result.versions}, of {result.updates} updates; {result.end}"),
        ("chosen", f"version {result.chosen_version}, by the devices' own hold-outs"),
        ("staleness", f"{result.staleness_mean:.2f} versions on average"),
        ("up", f"{_against(result.bytes_up, dense)} dense fp32 updates; with asks, status and evaluations"),
        ("down", f"{_against(result.bytes_down, dense)} dense fp32 models; with bundles and all messages"),
        ("time", f"{result.seconds:.0f} s"),
    )
    for label, value in rows:
        shown.add_row(f"[bold]{label}[/bold]", value)
    return shown


def _against(size: int, dense: int) -> str:
    return f"{size:,} B, {dense / max(1, size):.0f} times below {dense:,} B of"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"
