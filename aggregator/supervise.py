"""Keeps broker, bridge and aggregator running as three processes over one state directory.

They share only the ports, so the same three run on a cluster without this.
"""

import asyncio
import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import structlog

from aggregator.restarts import Restarts
from aggregator.tokens import Tokens, is_loopback, no_tokens
from broker_bridge.broker import Broker, BrokerError, Kind, free_port
from broker_bridge.ports import PortError
from broker_bridge.ports.open import open_ports
from edge_client.storage import HeldError, hold

STOP_S = 4.5  # for all three; the bridge drains its window and the aggregator writes its memo in well under a second
BROKER_STOP_S = 1.0  # of it, after the others have said their farewells
POLL_S = 0.1
LOG_BYTES_MAX = 10_000_000  # a log above this is put aside as .old when its process starts
LOG_TAIL_BYTES = 2000

LOCK = "lock"

Process = subprocess.Popen[bytes]

log = structlog.get_logger()


class SupervisorError(Exception):
    """The server cannot start; the message says why and what to do."""


@dataclass
class Child:
    """A process that is kept alive; `launch` starts it and may raise BrokerError or OSError."""

    name: str
    launch: Callable[[], Process]
    log_path: Path
    process: Process | None = None
    started_at: float = 0.0
    restarts: Restarts = field(default_factory=Restarts)
    _dead: bool = False

    def start(self) -> None:
        """Start the process."""
        self.process = self.launch()
        self.started_at = time.monotonic()
        self._dead = False

    def tend(self) -> None:
        """Start the process again when it has died and its pause is over; never waits."""
        if self.process is None or self.process.poll() is None:
            return
        now = time.monotonic()
        if not self._dead:
            self._dead = True
            self._died(now - self.started_at, now, f"code {self.process.returncode}")
        if now < self.restarts.due_at:
            return
        try:
            self.start()
        except (BrokerError, OSError) as error:
            self._died(0.0, time.monotonic(), str(error))

    def ask_to_end(self) -> None:
        """Send SIGTERM."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()

    def end(self, deadline: float) -> None:
        """Wait until the process has ended, and kill it at the deadline (monotonic seconds)."""
        if self.process is None:
            return
        try:
            self.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            log.warning("process.killed", name=self.name, why="it did not end when asked")
            self.process.kill()
            self.process.wait()

    def last_words(self) -> str:
        """For a person: that it dies again and again, and the end of its log."""
        tail = b""
        with contextlib.suppress(FileNotFoundError):  # it never came to log anything
            tail = self.log_path.read_bytes()[-LOG_TAIL_BYTES:]
        return (
            f"{self.name} died {self.restarts.short_lives} times right after its start; {self.log_path} ends:\n"
            + (tail.decode(errors="replace").strip() or "(empty)")
        )

    def _died(self, lived_s: float, now: float, why: str) -> None:
        before = self.restarts.hopeless
        self.restarts.died(lived_s, now)
        log.warning("process.died", name=self.name, why=why, log=str(self.log_path))
        if self.restarts.hopeless and not before:  # once: the log has the rest
            log.error(self.last_words())


@dataclass
class Supervisor:
    """One server: `start`, then `tend` again and again, then `stop`. Port 0 chooses a free one."""

    state_dir: Path
    http_port: int
    mqtt_port: int
    broker_kind: Kind | str = "auto"
    http_host: str = "127.0.0.1"
    broker: Broker | None = None
    children: list[Child] = field(default_factory=list)
    _lock: IO[str] | None = None

    def start(self) -> None:
        """Start all three; raise SupervisorError or BrokerError, with nothing left running."""
        made = not self.state_dir.exists()
        try:
            self.state_dir.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(self.state_dir)
            self._check_host()
            with self._choose_ports():  # held, or a broker that may choose its port might choose this one
                broker = Child("broker", self._start_broker, self.state_dir / "broker" / "broker.log")
                self.children = [broker]
                broker.start()
            assert self.broker is not None
            ports = f"sqlite:///{self.state_dir.resolve() / 'fleet.db'}"
            cache = str(self.state_dir / "bundles")
            self.children += [
                self._child(
                    "aggregator",
                    *("--ports", ports, "--cache", cache),
                    *("--host", self.http_host, "--port", str(self.http_port)),
                ),
                self._child("broker_bridge", "--ports", ports, "--broker", f"127.0.0.1:{self.broker.port}"),
            ]
            for child in self.children[1:]:
                child.start()
        except OSError as error:
            self._give_up(made=made)
            raise SupervisorError(
                f"{error.filename or self.state_dir}: {error.strerror}; "
                "make it writable or make room, or choose another --state-dir"
            ) from error
        except BaseException:
            self._give_up(made=made)
            raise

    def _give_up(self, *, made: bool) -> None:
        """Leave no process, and no state directory that was made for nothing: one in which there is but the lock."""
        self.stop()
        with contextlib.suppress(OSError):
            if made and [path.name for path in self.state_dir.iterdir()] == [LOCK]:
                (self.state_dir / LOCK).unlink()
                self.state_dir.rmdir()

    def tend(self) -> None:
        """Start again what has died; returns at once."""
        for child in self.children:
            child.tend()

    def hopeless(self) -> Child | None:
        """A process that dies whenever it is started, if there is one."""
        return next((child for child in self.children if child.restarts.hopeless), None)

    def stop(self) -> None:
        """End all three within STOP_S, the broker last: it still takes the others' farewells."""
        deadline = time.monotonic() + STOP_S
        for group, until in ((self.children[1:], deadline - BROKER_STOP_S), (self.children[:1], deadline)):
            for child in group:
                child.ask_to_end()
            for child in group:
                child.end(until)
        if self._lock is not None:
            self._lock.close()

    @property
    def url(self) -> str:
        """Of the HTTP API, as this machine reaches it."""
        everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - no address is bound here
        host = everywhere.get(self.http_host, self.http_host)
        return f"http://[{host}]:{self.http_port}" if ":" in host else f"http://{host}:{self.http_port}"

    def _check_host(self) -> None:
        """Say now what the aggregator would die of: listening beyond this machine takes a token."""
        if is_loopback(self.http_host):
            return
        database = self.state_dir.resolve() / "fleet.db"
        if not database.exists():  # looking would make it
            raise SupervisorError(no_tokens(self.http_host, str(self.state_dir)))

        async def look() -> bool:
            ports = open_ports(f"sqlite:///{database}")
            try:
                return await Tokens(ports.heads).any()
            finally:
                await ports.close()

        try:
            if not asyncio.run(look()):
                raise SupervisorError(no_tokens(self.http_host, str(self.state_dir)))
        except PortError as error:
            raise SupervisorError(str(error)) from error

    def _choose_ports(self) -> socket.socket:
        """Settle on ports that are free, and return the API's, held."""
        if self.mqtt_port:
            if self.mqtt_port == self.http_port:
                raise SupervisorError(f"--port and --mqtt-port are both {self.http_port}; choose two")
            _hold(self.mqtt_port, "--mqtt-port").close()
        self.http_port = self.http_port or free_port()
        return _hold(self.http_port, "--port", self.http_host)

    def _start_broker(self) -> Process:
        before = self.broker
        self.broker = Broker.start(
            self.broker_kind,  # type: ignore[arg-type]  # click.Choice has checked it
            state_dir=self.state_dir / "broker",
            port=self.mqtt_port,
            port_v311=before.port_v311 if before is not None and before.kind == "iotcore" else 0,
        )
        self.mqtt_port = self.broker.port
        return self.broker.process

    def _child(self, module: str, *arguments: str) -> Child:
        command = [sys.executable, "-m", "aggregator.child", str(os.getpid()), module, *arguments]
        log_path = self.state_dir / f"{module}.log"

        def launch() -> Process:
            if log_path.exists() and log_path.stat().st_size > LOG_BYTES_MAX:
                log_path.replace(log_path.with_suffix(".log.old"))
            with log_path.open("ab") as output:
                return subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
                )

        return Child(module, launch, log_path)


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
    try:
        return hold(state_dir / LOCK)
    except HeldError as error:
        raise SupervisorError(
            f"{state_dir} is in use by another fedfleet server (process {error.pid or 'unknown'}); "
            "stop it, or choose another --state-dir"
        ) from error


def _hold(port: int, option: str, host: str = "127.0.0.1") -> socket.socket:
    """Listen on a port, so that nobody else gets it; raise SupervisorError."""
    held = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        held.bind((host, port))
        held.listen()  # two sockets that only bind may share a port
    except OSError as error:
        held.close()
        if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT) or isinstance(error, socket.gaierror):
            raise SupervisorError(
                f"{host} is not an address of this machine ({error.strerror}); choose another with --host"
            ) from error
        raise SupervisorError(
            f"port {port} is not free ({error.strerror}); stop what uses it, or choose another with {option}"
        ) from error
    return held
