"""Starts measuring processes and lets them take turns."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

HERE = Path(__file__).parent
SLICE = 5  # steps before the next process has its turn
WARM_UP = 2  # slices that do not count: memory is planned and pages are touched in them
TIMEOUT_S = 600
REASON_MAX = 2000  # characters of a failed process's last words


class MeasurementError(Exception):
    """A measuring process ended with an error; the message is its last lines."""


def run(script: str, *arguments: object, python: str = sys.executable) -> Any:
    """What a process prints as its last line, as JSON; raises MeasurementError."""
    command = [python, str(HERE / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if done.returncode:
        raise MeasurementError(f"{' '.join(command[1:])}:\n{done.stderr.strip()[-REASON_MAX:]}")
    return json.loads(done.stdout.splitlines()[-1])


class Contestant:
    """A process that trains as many steps as it is told and waits in between."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.first = self._answer()
        self.last = self.first

    def train(self, steps: int) -> list[float]:
        """Milliseconds of each step; raises MeasurementError."""
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        self.last = self._answer()
        return self.last["ms"]

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        while line and not line.startswith("{"):
            line = self._process.stdout.readline()
        if not line:
            reason = self._process.stderr.read().strip()[-REASON_MAX:]
            raise MeasurementError(f"{' '.join(self._command[1:])}:\n{reason}")
        return json.loads(line)

    def stop(self) -> None:
        """End it by closing its input."""
        self._process.communicate()


def race(commands: Mapping[str, Sequence[str]], steps: int) -> dict[str, dict[str, Any]]:
    """One process for each command, started one after the other, training in turns of SLICE steps.

    Medians and 5 % quantiles in milliseconds, seconds to the end of the first step, peak memory and last loss.
    """
    contestants = {key: Contestant(command) for key, command in commands.items()}
    times: dict[str, list[float]] = {key: [] for key in commands}
    try:
        for turn in range(WARM_UP + -(-steps // SLICE)):
            for key, contestant in contestants.items():
                taken = contestant.train(SLICE)
                if turn >= WARM_UP:
                    times[key] += taken
    finally:
        for contestant in contestants.values():
            contestant.stop()
    return {
        key: {
            "ms": median(times[key]),
            "ms_5": float(np.percentile(times[key], 5)),
            "first_step_s": contestant.first["first_step_s"],
            "peak_bytes": contestant.last["peak_bytes"],
            "loss": contestant.last["loss"],
        }
        for key, contestant in contestants.items()
    }
