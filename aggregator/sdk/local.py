"""A whole fleet on one machine, for a notebook: `fedfleet up` and device daemons in a temporary directory.

All of it are processes of their own that die with this one, however it ends.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aggregator.sdk.errors import FleetError
from edge_client.wire.errors import LocalWireError
from edge_client.wire.topics import check_id

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

DEVICES_MAX = 64  # daemons of 30 MB, and as many trainers of 110 MB at the most
START_S = 60.0  # two seconds on a quiet machine
STOP_S = 15.0  # a daemon says farewell and ends its trainer in about a second
POLL_S = 0.1
TAIL_CHARACTERS = 2000  # of a log, shown when something does not start

Process = subprocess.Popen[bytes]


@dataclass(frozen=True)
class Shard:
    """One device's data: `x` float32 [n, …]; `y` what the bundle's loss wants.

    That is integers [n] (classes), 0 and 1 as integers [n, labels], floats [n, …] (values), or None.
    """

    x: "npt.NDArray[np.float32]"
    y: "npt.NDArray[Any] | None" = None


class Local:
    """The processes of a local fleet; raises FleetError (`local`) with the end of the log that says why."""

    def __init__(
        self, devices: int, data: str | Sequence[Shard], *, broker: str = "auto", dataset: str = "data"
    ) -> None:
        if isinstance(data, str) and data != "watch":
            raise FleetError("bad_argument", f"data is {data!r}; give 'watch' or a Shard for each device")
        if not 1 <= devices <= DEVICES_MAX:
            raise FleetError("bad_argument", f"{devices} devices; a local fleet has 1 to {DEVICES_MAX}")
        if not isinstance(data, str):
            _check(data, dataset)
        self.directory = Path(tempfile.mkdtemp(prefix="fedfleet-local-"))
        self._processes: list[Process] = []
        self._end = weakref.finalize(self, _end, self._processes, self.directory)
        try:
            tables = self._watch(devices) if isinstance(data, str) else self._own(data, dataset)
            facts = self._up(broker)
            self.url = facts["api"].removesuffix("/api/v1")
            for name, table in tables.items():
                self._device(name, table, int(facts["mqtt"].rpartition(":")[2]))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End all processes and delete the directory; again is harmless."""
        self._end()

    def _watch(self, devices: int) -> dict[str, str]:
        """The demo's recordings, written by a process of their own: this one need not load the demo."""
        command = [sys.executable, "-m", "aggregator.demo.shards", str(self.directory), str(devices)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise FleetError("local", done.stderr.strip()[-TAIL_CHARACTERS:])
        facts = json.loads((self.directory / "config.json").read_text())
        dataset = facts.pop("dataset")
        names = sorted(path.stem for path in self.directory.glob("*.npz"))
        return {name: _table(dataset, self.directory / f"{name}.npz", facts) for name in names}

    def _own(self, shards: Sequence[Shard], dataset: str) -> dict[str, str]:
        import numpy as np  # noqa: PLC0415 - who gives arrays has loaded it

        facts = {"shape": list(np.shape(shards[0].x)[1:]), **_answers([shard.y for shard in shards])}
        tables = {}
        for number, shard in enumerate(shards, 1):
            path = self.directory / f"device-{number}.npz"
            arrays: dict[str, Any] = {"x": np.asarray(shard.x, dtype=np.float32)}
            if shard.y is not None:
                y = np.asarray(shard.y).astype(_kind(facts))
                arrays["y"] = y.reshape(len(y), -1) if "values" in facts and y.ndim == 1 else y
            np.savez(path, **arrays)
            tables[path.stem] = _table(dataset, path, facts)
        return tables

    def _up(self, broker: str) -> dict[str, str]:
        arguments = ("up", "--state-dir", str(self.directory / "server"), "--broker", broker, "--json")
        log, out = self.directory / "up.log", self.directory / "up.json"
        process = self._start(("edge_client", *arguments, "--port", "0", "--mqtt-port", "0"), log, out)
        deadline = time.monotonic() + START_S
        while not out.read_text().endswith("}\n"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise FleetError("local", f"the server does not start: {log.read_text()[-TAIL_CHARACTERS:]}")
            time.sleep(POLL_S)
        facts: dict[str, str] = json.loads(out.read_text())
        return facts

    def _device(self, name: str, table: str, port: int) -> None:
        home = self.directory / name
        home.mkdir()
        config = home / "device.toml"
        config.write_text(
            f'[device]\nid = "{name}"\nstate_dir = "state"\n\n[broker]\nhost = "127.0.0.1"\nport = {port}\n\n{table}'
        )
        log = home / "daemon.log"
        self._start(("edge_client", "device", "run", "--config", str(config)), log, log)

    def _start(self, command: tuple[str, ...], log: Path, out: Path) -> Process:
        with log.open("ab") as errors, out.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "aggregator.child", str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                start_new_session=True,  # Ctrl+C in a notebook interrupts a cell, not the fleet
            )
        self._processes.append(process)
        return process


def _check(shards: Sequence[Shard], dataset: str) -> None:
    """Raise FleetError (`bad_argument`) for what a device would refuse, on which a job would wait in vain."""
    import numpy as np  # noqa: PLC0415 - who gives arrays has loaded it

    try:
        check_id(dataset, "dataset")
    except LocalWireError as error:
        raise FleetError("bad_argument", str(error)) from error
    if not 1 <= len(shards) <= DEVICES_MAX:
        raise FleetError("bad_argument", f"{len(shards)} shards; a local fleet has 1 to {DEVICES_MAX}")
    shapes = set()
    for number, shard in enumerate(shards):
        problem = _problem(shard)
        if problem:
            raise FleetError("bad_argument", f"data[{number}] {problem}")
        shapes.add(np.shape(shard.x)[1:])
    if len(shapes) > 1:
        raise FleetError("bad_argument", f"samples of data have several shapes: {sorted(shapes)}")


def _problem(shard: Any) -> str:
    """Why a device could not use it, "" when it can."""
    import numpy as np  # noqa: PLC0415 - who gives arrays has loaded it

    if not isinstance(shard, Shard):
        return f"is of type {type(shard).__name__}; give Shard(x, y)"
    for name, values in (("x", shard.x), ("y", shard.y)):
        array = np.asarray(0 if values is None and name == "y" else values)
        if array.dtype.kind not in "biuf":
            return f"has {name} of {array.dtype}; give numbers"
        if not np.isfinite(array).all():
            return f"has {name} that is not finite everywhere"
    if shard.y is not None and len(shard.x) != len(shard.y):
        return f"has {len(shard.x)} samples in x and {len(shard.y)} in y"
    return ""


def _answers(ys: "list[npt.NDArray[Any] | None]") -> dict[str, Any]:
    """What a device says of its `y` (docs/device.md): so many classes, so many labels, or values of a shape."""
    import numpy as np  # noqa: PLC0415 - who gives arrays has loaded it

    known = [np.asarray(y) for y in ys if y is not None]
    if not known:
        return {}
    if len(known) < len(ys):
        raise FleetError("bad_argument", "some shards have y and some have none")
    if not all(np.issubdtype(y.dtype, np.integer) for y in known):
        return {"values": list(known[0].shape[1:]) or [1]}
    if known[0].ndim == 2:
        return {"labels": known[0].shape[1]}
    return {"classes": max(int(y.max()) for y in known) + 1}


def _kind(facts: dict[str, Any]) -> str:
    """The type of `y` that goes with what is said of it."""
    return "int64" if "classes" in facts else "uint8" if "labels" in facts else "float32"


def _table(dataset: str, path: Path, facts: dict[str, Any]) -> str:
    """The `[data.…]` table of a device; JSON's strings, numbers and lists are TOML's, too."""
    lines = [f"{name} = {json.dumps(value)}" for name, value in {"path": str(path), **facts}.items()]
    return f"[data.{dataset}]\n" + "\n".join(lines) + "\n"


def _end(processes: list[Process], directory: Path) -> None:
    """End the devices, then the server, which was started first; and delete what they wrote."""
    for group in (processes[1:], processes[:1]):
        for process in group:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        for process in group:
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    processes.clear()
    shutil.rmtree(directory, ignore_errors=True)
