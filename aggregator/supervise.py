"""Keeps broker, bridge and aggregator running as three processes over one state directory.

They share only the ports, so the same three run on a cluster without this.
"""

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import structlog

from broker_bridge.broker import Broker, BrokerError, Kind

RESTART_S_MIN = 0.2  # first pause before a dead process is started again; doubles up to RESTART_S_MAX
RESTART_S_MAX = 10.0
HEALTHY_S = 10.0  # a process that lived this long is restarted without delay
STOP_S = 10.0  # the bridge drains its window and the aggregator writes its memo in well under a second
POLL_S = 0.1

log = structlog.get_logger()


class SupervisorError(Exception):
    """The server cannot start; the message says why and what to do."""


@dataclass
class Child:
    """A process that is kept alive."""

    name: str
    command: list[str]
    log_path: Path
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    pause_s: float = RESTART_S_MIN
    restarts: int = 0

    def start(self) -> None:
        """Start the process, its output appended to its log."""
        with self.log_path.open("ab") as output:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        self.started_at = time.monotonic()

    def stop(self) -> None:
        """Ask the process to end, and kill it when it does not."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@dataclass
class Supervisor:
    """One server: `start`, then `tend` again and again, then `stop`."""

    state_dir: Path
    http_port: int
    mqtt_port: int
    broker_kind: Kind | str = "auto"
    broker: Broker | None = None
    children: list[Child] = field(default_factory=list)
    _lock: IO[str] | None = None

    def start(self) -> None:
        """Start all three; raise SupervisorError or BrokerError, with nothing left running."""
        self.state_dir.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self.state_dir)
        _check_free(self.http_port, "--port")
        try:
            self._start_broker()
            assert self.broker is not None
            ports = f"sqlite:///{self.state_dir.resolve() / 'fleet.db'}"
            self.children = [
                self._child("aggregator", "--ports", ports, "--port", str(self.http_port)),
                self._child("broker_bridge", "--ports", ports, "--broker", f"127.0.0.1:{self.broker.port}"),
            ]
            for child in self.children:
                child.start()
        except BaseException:
            self.stop()
            raise

    def tend(self) -> None:
        """Start again what has died."""
        if self.broker is not None and self.broker.process.poll() is not None:
            log.warning("broker.died", code=self.broker.process.returncode)
            try:
                self._start_broker()
            except BrokerError as error:
                log.error("broker.not_started", error=str(error))  # noqa: TRY400 - tried again at the next look
                time.sleep(RESTART_S_MIN)
        for child in self.children:
            assert child.process is not None
            code = child.process.poll()
            if code is None:
                continue
            if time.monotonic() - child.started_at > HEALTHY_S:
                child.pause_s = RESTART_S_MIN
            log.warning("process.died", name=child.name, code=code, log=str(child.log_path))
            time.sleep(child.pause_s)
            child.pause_s = min(2 * child.pause_s, RESTART_S_MAX)
            child.restarts += 1
            child.start()

    def stop(self) -> None:
        """End all three, the broker last."""
        for child in reversed(self.children):
            child.stop()
        if self.broker is not None:
            self.broker.stop()
        if self._lock is not None:
            self._lock.close()

    def _start_broker(self) -> None:
        self.broker = Broker.start(
            self.broker_kind,  # type: ignore[arg-type]  # click.Choice has checked it
            state_dir=self.state_dir / "broker",
            port=self.mqtt_port,
        )
        self.mqtt_port = self.broker.port

    def _child(self, module: str, *arguments: str) -> Child:
        command = [sys.executable, "-m", "aggregator.child", str(os.getpid()), module, *arguments]
        return Child(module, command, self.state_dir / f"{module}.log")


@contextlib.contextmanager
def until_signalled() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT into a list instead of dying of them."""
    seen: list[int] = []
    before = {
        number: signal.signal(number, lambda received, _: seen.append(received))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _lock(state_dir: Path) -> IO[str]:
    lock = (state_dir / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise SupervisorError(
            f"{state_dir} is in use by another fedfleet server; stop it, or choose another --state-dir"
        ) from error
    return lock


def _check_free(port: int, option: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise SupervisorError(
                f"port {port} is in use; stop what uses it, or choose another with {option}"
            ) from error
