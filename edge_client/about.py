"""What the device says of itself."""

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from edge_client.wire.messages import CODECS, PROTOCOL, DatasetInfo, DeviceInfo


def device(datasets: Mapping[str, DatasetInfo]) -> DeviceInfo:
    """Software, machine, and these data sets by name."""
    return DeviceInfo(
        software=f"fedfleet {_installed('fedfleet')}",
        protocol=PROTOCOL,
        arch=platform.machine(),
        runtime=f"onnxruntime {_installed('onnxruntime')}",
        codecs=CODECS,
        datasets=tuple(datasets[name] for name in sorted(datasets)),
    )


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a source tree
        return "unknown"
