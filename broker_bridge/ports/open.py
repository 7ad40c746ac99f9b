"""Chooses an engine by URL."""

from pathlib import Path

from broker_bridge.ports.memory import open_memory
from broker_bridge.ports.sqlite import open_sqlite
from broker_bridge.ports.types import PortError, Ports

PARTITIONS = 4  # of a new embedded engine: enough that a shard per core has work, few enough to poll
SQLITE = "sqlite:///"


def open_ports(url: str, partitions: int = PARTITIONS) -> Ports:
    """Open the engine that `url` names; `partitions` counts only when it is made by this call.

    `memory:` is a fresh engine that ends with the process. `sqlite:///fleet.db` is a path relative to the
    working directory, `sqlite:////var/lib/fedfleet/fleet.db` an absolute one; its blobs lie in `blobs/` beside
    it. Raises PortError for an unknown scheme and StorageError when the file cannot be used.
    """
    if url == "memory:":
        return open_memory(partitions)
    if url.startswith(SQLITE) and len(url) > len(SQLITE):
        return open_sqlite(Path(url.removeprefix(SQLITE)), partitions)
    raise PortError(f"no engine for {url!r}; known: 'memory:' and 'sqlite:///path/fleet.db'")
