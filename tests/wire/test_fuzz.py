"""A short run of the fuzzer; `make fuzz` is the long one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FUZZER = Path(__file__).parents[1] / "fuzz" / "decoders.py"
SECONDS = 20 if os.environ.get("CI") else 2
SEEDS = (1, 2, 3)  # each a process of its own, because the fuzzer, not what it tries, grows with every input


@pytest.mark.parametrize("seed", SEEDS)
def test_decoders_survive_hostile_bytes_guided_by_coverage(tmp_path, seed):
    """I6, I11: whatever arrives decodes or is a RemoteWireError, within the memory of a small process."""
    pytest.importorskip("atheris", reason="pip install atheris to fuzz the decoders")
    # A shell between: a process started from a large one counts that one's size as its own peak.
    command = ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, str(FUZZER)]
    command += [
        f"-max_total_time={SECONDS}",
        f"-seed={seed}",
        "-max_len=2000",
        "-rss_limit_mb=400",
    ]
    done = subprocess.run(
        [*command, f"-artifact_prefix={tmp_path}/"],
        capture_output=True,
        text=True,
        timeout=SECONDS + 60,
        check=False,
    )

    assert done.returncode == 0, done.stderr[-3000:]
    assert list(tmp_path.iterdir()) == []
