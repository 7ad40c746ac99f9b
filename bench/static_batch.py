"""A training step with the batch axis fixed when the session loads, and planned memory, beside what the trainer does.

    python bench/static_batch.py [--nets cnn1d,resnet8,…] [--runs 3] [--steps 60]

Each variant is a process of its own, and the processes take turns of a few steps (step/turns.py). Reported are medians
over the runs of the median step in processor time, which other work on the machine disturbs least, of its ratio to the
first within each run, and of the peak memory. The trainer's session is the first, or the third for long recurrences.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

BEGAN = time.perf_counter()
HERE = Path(__file__).parent / "step"
sys.path.insert(0, str(HERE))

from worker import BATCH, fedfleet, serve  # noqa: E402

from edge_client import training  # noqa: E402
from edge_client.bundle import Bundle  # noqa: E402
from edge_client.runtime import ort  # noqa: E402

# Whether the batch is fixed, and whether the runtime plans the memory of a step as one block.
VARIANTS = {
    "symbolic": (False, False),
    "static": (True, False),
    "symbolic, planned": (False, True),
    "static, planned": (True, True),
}


def work(variant: str, net: str, folder: Path) -> None:
    """Train in this process, as standard input says, with sessions of a variant instead of the trainer's own."""
    static, planned = VARIANTS[variant]

    def session(bundle: Bundle, member: str, *, flush_denormals: bool) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.set_denormal_as_zero", str(int(flush_denormals)))
        options.enable_mem_pattern = planned
        if static:
            options.add_free_dimension_override_by_name("batch", BATCH)
        return ort.InferenceSession(bundle.member(member), options, providers=["CPUExecutionProvider"])

    training._session = session  # noqa: SLF001 - all that differs from the trainer
    serve(fedfleet(net, folder), folder / f"{net}.npz", BEGAN, time.process_time)


def main() -> None:
    """Measure the networks of the command line."""
    from training import prepare  # noqa: PLC0415 - the measured processes have no compiler
    from turns import race  # noqa: PLC0415

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nets", default="cnn1d,resnet8,gru")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for net in options.nets.split(","):
            prepare(net, folder)
            plan = {v: [sys.executable, __file__, "--worker", v, net, name] for v in VARIANTS}
            races = [race(plan, options.steps) for _ in range(options.runs)]
            for variant in VARIANTS:
                found = [r[variant] for r in races]
                ratios = [r[variant]["ms"] / r["symbolic"]["ms"] for r in races]
                ms, peak = median(f["ms"] for f in found), median(f["peak_bytes"] / 1e6 for f in found)
                print(
                    f"{net:8s} {variant:18s} {ms:7.2f} ms, ratio {median(ratios):.3f} ({min(ratios):.3f} to "
                    f"{max(ratios):.3f}), peak {peak:.1f} MB, last loss {found[0]['loss']:.6f}",
                    flush=True,
                )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2], sys.argv[3], Path(sys.argv[4]))
    else:
        main()
