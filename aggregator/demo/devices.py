"""The demo's devices: each a real daemon in a process of its own, on its own shard and state directory."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from aggregator.demo import data, plan
from aggregator.demo.data import Shard

STOP_S = 15.0  # a daemon says farewell and ends its trainer in about a second; sixteen share two cores

_CONFIG = """\
[device]
id = "{id}"
state_dir = "state"

[broker]
host = "127.0.0.1"
port = {port}

[data.{dataset}]
path = "shard.npz"
shape = [6, {window}]
classes = {classes}
axes = ["channel", "time"]
holdout = {holdout}
gap = {gap}
"""


class Devices:
    """Daemons, one a shard; use as a context so that none is left behind."""

    def __init__(self, directory: Path, shards: Sequence[Shard], mqtt_port: int) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        self._homes = []
        for shard in shards:
            home = directory / shard.name
            home.mkdir(parents=True)
            shard.save(home / "shard.npz")
            config = _CONFIG.format(
                id=shard.name,
                port=mqtt_port,
                dataset=data.DATASET,
                window=data.WINDOW,
                classes=data.CLASSES,
                holdout=plan.HOLDOUT,
                gap=plan.GAP,
            )
            (home / "device.toml").write_text(config)
            self._homes.append(home)

    def __enter__(self) -> Self:
        for home in self._homes:
            with (home / "daemon.log").open("wb") as log:
                command = [sys.executable, "-m", "edge_client", "device", "run", "--config"]
                self._processes.append(
                    subprocess.Popen(
                        [*command, str(home / "device.toml")],
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
                )
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def dead(self) -> list[str]:
        """Names of daemons that ended."""
        return [
            home.name
            for home, process in zip(self._homes, self._processes, strict=True)
            if process.poll() is not None
        ]
