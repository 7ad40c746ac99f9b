"""What is installed on the emulated device: the base list, as pip resolves it for aarch64, and this checkout."""

import json

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.pi import root

# Run under emulation: what each distribution requires, and the processor it runs on.
REPORT = """
import json, platform
from importlib import metadata
print(json.dumps([platform.machine(), {d.name: d.requires or [] for d in metadata.distributions()}]))
"""


@pytest.fixture(scope="module")
def report(pi):
    return json.loads(pi.run("-c", REPORT))


def needed(installed, name, machine):
    """Names of all that a distribution needs without extras, itself included."""
    environment = {"platform_machine": machine, "extra": ""}
    found, waiting = set(), [name]
    while waiting:
        if (current := waiting.pop()) in found:
            continue
        found.add(current)
        requirements = map(Requirement, installed.get(current, []))
        waiting += [
            canonicalize_name(r.name)
            for r in requirements
            if r.marker is None or r.marker.evaluate(environment)
        ]
    return found


def test_a_device_installs_the_base_list_and_no_more(pi, report):
    """R-035: every distribution on the device is one that fedfleet without extras needs, and none of those is missing."""
    machine, distributions = report
    installed = {canonicalize_name(name): requires for name, requires in distributions.items()}
    size_bytes = sum(p.stat().st_size for p in (pi.made / "venv/lib").rglob("*") if p.is_file())
    pi.figures["on the disk, the device's Python packages"] = f"{size_bytes / 1e6:.0f} MB"

    assert machine == "aarch64"
    assert set(installed) == needed(installed, "fedfleet", machine)
    assert {canonicalize_name(Requirement(r).name) for r in root.requirements()} < set(installed)
    assert not {"onnx", "torch", "scipy", "fastapi"} & set(installed)


def test_the_trainer_needs_neither_onnx_nor_torch(pi):
    """The trainer's modules are imported whole where onnx and torch cannot be."""
    script = (
        "import edge_client.trainer_child, sys\n"
        "from importlib.util import find_spec\n"
        "print([find_spec(n) for n in ('onnx', 'torch')], 'onnxruntime' in sys.modules)\n"
    )

    assert pi.run("-c", script).strip() == "[None, None] True"
