"""The example notebooks, executed cell by cell in a kernel of their own."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.e2e.server import processes

NOTEBOOKS = Path(__file__).parents[2] / "examples" / "notebooks"
NEEDS = {"pytorch.ipynb": ("torch", "onnxscript", "pandas"), "strategies.ipynb": ("pandas",)}
WAIT_S = 280


def test_each_notebook_says_what_it_needs():
    """A notebook that is added is tested here."""
    assert {path.name for path in NOTEBOOKS.glob("*.ipynb")} == set(NEEDS)


@pytest.mark.timeout(300)  # a notebook is a whole fleet, three jobs long
@pytest.mark.parametrize("name", NEEDS)
def test_a_notebook_runs_to_its_end(name, tmp_path):
    """Every cell of an example works as it is written, shows what it says, and leaves no process."""
    for module in ("nbconvert", "ipykernel", *NEEDS[name]):
        if find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    copy, temporary = tmp_path / name, tmp_path / "tmp"
    copy.write_text((NOTEBOOKS / name).read_text())  # what a notebook writes lies beside it
    temporary.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--inplace", str(copy)],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
        env={**os.environ, "TMPDIR": str(temporary)},
    )

    assert done.returncode == 0, done.stderr[-4000:]
    executed = copy.read_text()
    assert "text/html" in executed
    assert '"output_type": "error"' not in executed
    assert processes(temporary) == []
    assert list(temporary.glob("fedfleet-*")) == []
