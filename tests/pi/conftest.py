"""The emulated Raspberry Pi as a fixture, with this checkout installed on it as a wheel."""

import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.pi import root

WAIT_S = 90.0  # of one emulated process; starting ONNX Runtime takes five seconds on a quiet machine
FIGURES = pytest.StashKey[dict[str, str]]()


@dataclass(frozen=True)
class Pi:
    """Runs Python as the emulated Cortex-A72 does."""

    made: Path
    site: Path  # where this checkout's wheel is unpacked
    figures: dict[str, str]  # what to report at the end

    @property
    def python(self):
        """The interpreter, a script that starts the emulator."""
        return self.made / "venv/bin/python3"

    @property
    def environment(self):
        """Environment variables under which the interpreter finds this checkout's wheel."""
        return {**os.environ, "PYTHONPATH": str(self.site), "PYTHONDONTWRITEBYTECODE": ""}

    def run(self, *arguments):
        """Output of an emulated Python that ended well within the deadline."""
        done = subprocess.run(
            [self.python, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            env=self.environment,
            check=False,
        )
        assert done.returncode == 0, f"{arguments}: code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="session")
def pi(tmp_path_factory, pytestconfig):
    """An emulated Raspberry Pi 4 on which this checkout is installed."""
    if why := root.obstacle():
        pytest.skip(f"no emulated Raspberry Pi here: {why}")
    made = root.find()
    if made is None:
        pytest.skip("the emulated Raspberry Pi is not made; `make test-pi` makes it, or says why it cannot")
    directory = tmp_path_factory.mktemp("pi")
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*wheel, "--no-deps", "--no-build-isolation", "--wheel-dir", directory, root.PROJECT], check=True
    )
    with zipfile.ZipFile(next(directory.glob("fedfleet-*.whl"))) as file:
        file.extractall(directory / "site")
    return Pi(made, directory / "site", pytestconfig.stash.setdefault(FIGURES, {}))


def pytest_terminal_summary(terminalreporter, config):
    """Report what was measured under emulation."""
    if figures := config.stash.get(FIGURES, {}):
        terminalreporter.section("emulated Raspberry Pi 4")
        for name, value in sorted(figures.items()):
            terminalreporter.write_line(f"{name}: {value}")
