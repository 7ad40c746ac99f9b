"""What the bridge must know of a job to judge what comes for it: the job's cells. Pure."""

from aggregator.job import Job
from broker_bridge.cells import JobCell, VersionCell


def job_cell(job: Job, state: str) -> JobCell:
    """The cell `job/<job>`; a paused job still takes the updates of devices that train already."""
    return JobCell(
        state="ended" if state == "ended" else "running",
        sizes=job.bundle.sizes,
        norm_max=job.spec.norm_max,
        staleness_max=job.spec.staleness_max,
        frame_bytes_max=job.frame_bytes_max(),
        statistics=len(job.bundle.statistics),
        measure=job.bundle.measure,
        blobs=(job.bundle_ref.digest,),
    )


def version_cell(job: Job) -> VersionCell:
    """The cell `version/<job>`."""
    return VersionCell(
        version=job.version, manifest=job.digest, hashes=job.hashes(), parent=job.manifest.parent
    )
