"""docs/device.md says what the code does: every key, every phase."""

from collections import defaultdict
from pathlib import Path

import msgspec

from edge_client.commands import device
from edge_client.config import BrokerSection, DataSection, DeviceSection, TrainerSection
from edge_client.phases import TABLE

TEXT = (Path(__file__).parents[3] / "docs" / "device.md").read_text()


def diagram():
    """The session's table as Mermaid lines; the end of a job, possible everywhere, is left to the text."""
    edges = defaultdict(set)
    for (phase, event), row in TABLE.items():
        for target in row.to:
            if event.__name__ not in {"JobEnded", "OfferWithdrawn"}:
                edges[str(phase), str(target)].add(event.__name__)
    return [f"    {a} --> {b}: {', '.join(sorted(events))}" for (a, b), events in sorted(edges.items())]


def test_every_configuration_key_is_documented_with_its_default():
    """A key that is added without a line in the reference fails here."""
    sections = {
        "device": DeviceSection,
        "broker": BrokerSection,
        "trainer": TrainerSection,
        "data": DataSection,
    }
    for section, kind in sections.items():
        for field in msgspec.structs.fields(kind):
            name = f"data.<name>.{field.name}" if section == "data" else f"{section}.{field.name}"
            line = next((line for line in TEXT.splitlines() if line.startswith(f"| `{name}` |")), "")
            assert line, f"{name} is not documented"
            if field.default is not msgspec.NODEFAULT and field.default not in {"", (), None}:
                assert f"`{field.default}`" in line, f"{name}: its default is {field.default}"


def test_state_diagram_is_the_sessions_table():
    """The diagram is the table: a rule that is added without its arrow fails here."""
    shown = [line for line in TEXT.splitlines() if " --> " in line and "[*]" not in line]
    assert shown == diagram(), "\n".join(diagram())


def test_every_command_is_documented():
    """Each sub-command of `fedfleet device` is named, and its help has an example and its exit codes."""
    for name, command in device.commands.items():
        assert f"fedfleet device {name}" in TEXT
        assert f"Example: fedfleet device {name}" in command.help
        assert "Exit codes" in command.help
