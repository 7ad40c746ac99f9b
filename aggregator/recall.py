"""The journal of before a restart, from what the log still has."""

import msgspec
import structlog

from aggregator.deadletters import DeadLetters, Place
from aggregator.journal import Journal, happened_at
from aggregator.retention import LOG_KEPT
from broker_bridge.ports import UpdateLog
from edge_client.wire.errors import RemoteWireError

log = structlog.get_logger()


async def recall(journal: Journal, updates: UpdateLog, cursor: dict[int, int], dead: DeadLetters) -> None:
    """Have the journal note the entries up to `cursor` (partition: offset) that are left, but those put aside."""
    recent = []
    for partition, offset in cursor.items():
        known = await updates.read(partition, max(0, offset - LOG_KEPT), LOG_KEPT)
        recent += [
            (partition, entry)
            for entry in known
            if entry.offset <= offset and Place(partition, entry.offset) not in dead
        ]
    try:
        for partition, entry in sorted(recent, key=lambda found: happened_at(found[1])):
            journal.take(partition, entry, live=False)
    except (msgspec.DecodeError, RemoteWireError) as error:  # damaged since it was taken
        log.error("journal.incomplete", error=str(error))  # noqa: TRY400 - the message says what
