"""The three ports that bridge and aggregator share, and nothing else: UpdateLog, Heads, Blobs.

An engine is chosen by URL (`open_ports`). One contract suite (tests/contract) runs over every engine.
"""

from broker_bridge.ports.open import open_ports
from broker_bridge.ports.types import (
    FORGOTTEN,
    REMEMBERED,
    Blobs,
    Change,
    Conflict,
    CorruptBlob,
    CorruptStorage,
    Digest,
    Entry,
    Heads,
    Kind,
    Mark,
    MissingBlob,
    PortError,
    Ports,
    StorageError,
    StorageFull,
    UpdateLog,
)

__all__ = [
    "FORGOTTEN",
    "REMEMBERED",
    "Blobs",
    "Change",
    "Conflict",
    "CorruptBlob",
    "CorruptStorage",
    "Digest",
    "Entry",
    "Heads",
    "Kind",
    "Mark",
    "MissingBlob",
    "PortError",
    "Ports",
    "StorageError",
    "StorageFull",
    "UpdateLog",
    "open_ports",
]
