"""What the aggregator remembers of devices that work at the same time.

    python bench/in_flight.py [--out FILE]          (make bench-aggregation runs it too)

Jobs with 10 to 10 000 places and half as many updates a version. Devices answer in the order of their grants, each with
a ternary update at 1 % of 54 314 parameters; after twelve versions every place is taken and the buffer one update short
of the next. JSON lines on stdout: memory of Python and numpy then (tracemalloc), and the bytes that each device in flight
adds to the smallest job's, beside one dense float32 update, which a server pays that keeps updates until it averages.
"""

import argparse
import gc
import hashlib
import json
import tracemalloc
from collections import deque
from pathlib import Path

import msgspec
import numpy as np

from aggregator import spec, versions
from aggregator.job import Job
from aggregator.simulate.models import cnn
from edge_client.bundle import PARAMS
from edge_client.compress import Compressed, compress
from edge_client.wire import sparse
from edge_client.wire.messages import Ask, BlobRef
from firmware_tools.compiler import compile_training

PLACES = (10, 100, 1_000, 10_000)
VERSIONS = 12
BODIES = 64  # different updates; more would only take longer to make
DENSITY = 0.01


def new_job(places: int) -> Job:
    """LeNet's form, 54 314 parameters."""
    bundle = compile_training(cnn((1, 28, 28), 10, (8, 16), 64, 0))
    raw = {
        "name": "job",
        "dataset": "data",
        "bundle": "0" * 64,
        "concurrency": places,
        "buffer_size": places // 2,
    }
    manifest, state = versions.first("job", bundle.members[PARAMS], bundle.manifest.sizes, 0.0)
    job_spec = spec.parse(msgspec.json.encode(raw))
    return Job(job_spec, bundle.manifest, BlobRef("0" * 64, 1), 0.0, ("0" * 64, manifest, state))


def updates(sizes: tuple[int, ...]) -> list[Compressed]:
    """Of heavy-tailed values."""
    made = []
    for seed in range(BODIES):
        rng = np.random.default_rng(seed)
        delta = [rng.standard_t(3, n).astype(np.float32) * 1e-3 for n in sizes]
        made.append(compress(delta, None, DENSITY, 100.0))
    return made


def drive(job: Job, places: int, bodies: list[Compressed]) -> None:
    """Grants and answers until every place is taken and the buffer lacks one update."""
    sizes = job.bundle.sizes
    for n in range(places + 1):
        job.ask(f"device-{n}", Ask("job", 1, 100), 0.0)
    working: deque[tuple[str, int]] = deque()
    number = 0
    while job.version < VERSIONS or job.buffered < job.spec.buffer_size - 1:
        number += 1
        now = 0.001 * number
        working += [(device, assigned.version) for device, assigned in job.grant(now)]
        job.paths.take_fresh()
        device, base = working.popleft()
        made = bodies[number % BODIES]
        base_hash = bytes.fromhex(job.recent[base].model_hash)[:8]
        frame = sparse.encode(sparse.Update(base, base_hash, number, 100, made.weights), sizes, made.codec)
        job.update(device, frame, len(frame), now)
        job.ask(device, Ask("job", number + 1, 100), now)
        if job.due(now, draining=False):
            sealed = job.seal(now, {0: number})
            job.advance(sealed, hashlib.sha256(versions.encode(sealed.manifest)).hexdigest())
    job.grant(now)
    job.paths.take_fresh()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    lines = []
    smallest = None
    for places in PLACES:
        job = new_job(places)
        bodies = updates(job.bundle.sizes)
        del job
        gc.collect()
        tracemalloc.start()
        job = new_job(places)
        drive(job, places, bodies)
        gc.collect()
        used, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        smallest = smallest or (places, used)
        row = {
            "in_flight": len(job.leases.held),
            "memory_mb": used / 1e6,
            "buckets": len(job.learner.buffer.fold.buckets),
        }
        if places > smallest[0]:
            each = (used - smallest[1]) / (places - smallest[0])
            row |= {"bytes_a_device": each, "to_dense_update": each / (4 * job.bundle.parameters)}
        lines.append(json.dumps(row))
        print(lines[-1], flush=True)
    if arguments.out is not None:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
