"""The engines that the contract suite runs over."""

from collections.abc import Callable
from pathlib import Path

import pytest

from broker_bridge.ports import Ports, open_ports


@pytest.fixture(params=["memory", "sqlite"])
def new_ports(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Ports]:
    """Opens a fresh engine of each kind; it is called inside the test's event loop."""
    url = "memory:" if request.param == "memory" else f"sqlite:///{tmp_path}/fleet.db"
    return lambda: open_ports(url)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A file that two engines open as two processes would."""
    return f"sqlite:///{tmp_path}/fleet.db"
