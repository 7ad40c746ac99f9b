"""Seconds from a fresh clone to the first committed version of the demo, set-up included.

    python bench/first_version.py

Clones this repository into a temporary directory, runs `make demo` there, and stops it once a version was committed.
"""

import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
DEADLINE_S = 600.0


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as directory:
        clone = Path(directory) / "fedfleet"
        started = time.monotonic()
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        log = clone / ".demo" / "run" / "server" / "aggregator.log"
        with subprocess.Popen(
            ["make", "demo"], cwd=clone, stdout=subprocess.DEVNULL, start_new_session=True
        ) as demo:
            marks: dict[str, float] = {}
            while "first version committed" not in marks:
                if demo.poll() is not None or time.monotonic() - started > DEADLINE_S:
                    raise SystemExit(f"the demo ended with {demo.poll()} before its first version")
                if log.exists():
                    marks.setdefault("server started", time.monotonic() - started)
                    if "version.committed" in log.read_text():
                        marks["first version committed"] = time.monotonic() - started
                time.sleep(0.1)
            os.killpg(demo.pid, signal.SIGTERM)
        for what, seconds in marks.items():
            print(f"{what}: {seconds:.1f} s after the clone began")


if __name__ == "__main__":
    main()
