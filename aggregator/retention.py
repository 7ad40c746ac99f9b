"""How much of the log is still needed. Pure."""

from collections.abc import Iterable

from aggregator.job import Job

LOG_KEPT = 256  # taken entries of a partition that stay for a person to look into
REFOLDED_MAX = 10_000  # that stay for a job to go back a version; of a job that idles for longer no more


def needed(partition: int, cursor: int, jobs: Iterable[Job]) -> int:
    """The offset below which no job folds an entry, nor folds it again when it loses its newest version."""
    offsets = [cursor - LOG_KEPT]
    for job in jobs:
        if job.buffered:
            offsets.append(job.folded.get(partition, 0))
        again = job.refolds(partition)
        if again is not None:
            offsets.append(max(again, cursor - REFOLDED_MAX))
    return max(min(offsets) + 1, 0)
