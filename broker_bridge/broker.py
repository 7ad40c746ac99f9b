"""A loopback MQTT broker as a child process: `mosquitto` when it is installed, else `iotcore`.

It serves development, `fedfleet up` on one machine, and tests. Neither configuration authenticates anybody,
so both refuse any address but loopback; a fleet on a network brings its own broker.

`iotcore` (rumqttd) needs one port per protocol version: `port` speaks MQTT 5 and `port_v311` MQTT 3.1.1. With
`mosquitto` both are the same. iotcore keeps nothing on disk and gives a session up when its first connect
has clean start set; the receipts of the bridge make both harmless.
"""

import contextlib
import getpass
import ipaddress
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

Kind = Literal["mosquitto", "iotcore"]

PORTS = range(
    20_000, 32_000
)  # Linux gives those above to connections, which could take one while it is unused
TRIES_MAX = 100
READY_S = 10.0  # a broker accepts connections within 0.1 s; a loaded two-core machine gets a hundredfold
STOP_S = 5.0  # mosquitto writes its database on SIGTERM; after this it is killed
POLL_S = 0.02
PACKET_BYTES_MAX = 1024 * 1024  # sixteen chunks of CHUNK_BYTES: room for any control message, none for abuse
QUEUED_MESSAGES_MAX = 100_000  # per session; mosquitto's default 1000 silently drops acked messages
QUEUED_BYTES_MAX = 256 * 1024 * 1024  # per session, what a bridge that is away for a while may find waiting
INFLIGHT_MAX = 1000  # above any client's Receive Maximum, so that the client's window decides
AUTOSAVE_S = 30  # age of mosquitto's database after a kill -9; the bridge publishes retained cells again
LOG_TAIL_BYTES = 2000
_CHILD = Path(__file__).with_name("broker_child.py")
_DEBIAN_MOSQUITTO = "/usr/sbin/mosquitto"  # Debian puts it where an ordinary user's PATH does not look


class BrokerError(Exception):
    """The broker could not be started; the message says why and what to do."""


@dataclass
class Broker:
    """A running broker; `stop` it, or it ends with this process."""

    host: str
    port: int
    port_v311: int
    kind: Kind
    state_dir: Path
    process: subprocess.Popen[bytes]

    @classmethod
    def start(
        cls,
        kind: Literal["auto", "mosquitto", "iotcore"] = "auto",
        *,
        state_dir: Path,
        port: int = 0,
        port_v311: int = 0,
        host: str = "127.0.0.1",
    ) -> "Broker":
        """Start a broker and wait until it accepts connections; port 0 chooses a free one.

        `state_dir` gets its configuration, log and database. Start it from a thread that lives as long as
        the program (broker_child.py). Raises BrokerError.
        """
        _check_loopback(host)
        program = find_mosquitto()
        if kind == "mosquitto" and program is None:
            raise BrokerError("mosquitto is not installed: install it, or choose the broker 'iotcore'")
        chosen: Kind = "iotcore" if kind == "iotcore" or program is None else "mosquitto"
        if chosen == "iotcore" and find_spec("iotcore") is None:
            raise BrokerError(
                "there is no broker here: install mosquitto, or iotcore with: pip install 'fedfleet[server]'"
            )
        state_dir.mkdir(parents=True, exist_ok=True)
        port = _claim(host, port) if port else free_port(host)
        if chosen == "mosquitto":
            port_v311 = port
        else:
            port_v311 = _claim(host, port_v311) if port_v311 else free_port(host, taken=port)
        config = state_dir / ("mosquitto.conf" if chosen == "mosquitto" else "iotcore.toml")
        if chosen == "mosquitto":
            config.write_text(_mosquitto_config(host, port, state_dir))
            command = ["mosquitto", str(program), str(config)]
        else:
            config.write_text(_iotcore_config(host, port, port_v311))
            command = ["iotcore", str(config)]
        with (state_dir / "broker.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", str(_CHILD), str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl+C goes to the group; the parent stops us in its order
            )
        broker = cls(host, port, port_v311, chosen, state_dir, process)
        try:
            broker._wait_ready()
        except BaseException:
            broker.kill()
            raise
        return broker

    def stop(self) -> None:
        """Ask the broker to end, wait, and kill it when it does not; harmless when it has ended."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """End the broker at once, as a power cut would."""
        self.process.kill()
        self.process.wait()

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + READY_S
        for port in (self.port, self.port_v311):
            while not _accepts(self.host, port):
                code = self.process.poll()
                if code is not None:
                    raise BrokerError(f"{self.kind} ended with code {code} at start: {self._log_tail()}")
                if time.monotonic() > deadline:
                    raise BrokerError(f"{self.kind} took no connection in {READY_S:g} s: {self._log_tail()}")
                time.sleep(POLL_S)

    def _log_tail(self) -> str:
        data = (self.state_dir / "broker.log").read_bytes()[-LOG_TAIL_BYTES:]
        return data.decode(errors="replace").strip() or "it logged nothing"


def find_mosquitto() -> str | None:
    """Path of the installed mosquitto, None when there is none."""
    return shutil.which("mosquitto") or shutil.which(_DEBIAN_MOSQUITTO)


def free_port(host: str = "127.0.0.1", *, taken: int = 0) -> int:
    """A TCP port other than `taken` that nobody listens on at this moment; raise BrokerError when there is none."""
    for port in random.SystemRandom().sample(PORTS, TRIES_MAX):
        with contextlib.suppress(BrokerError):
            if port != taken:
                return _claim(host, port)
    raise BrokerError(f"no free port on {host} among {TRIES_MAX} tried from {PORTS[0]} on: name one")


def _check_loopback(host: str) -> None:
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise BrokerError(
            f"the built-in broker authenticates nobody and listens on loopback only, not on {host!r}; "
            "run your own broker for other machines"
        )


def _claim(host: str, port: int) -> int:
    """The port itself when it is free; raise BrokerError when not."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise BrokerError(
                f"port {port} on {host} is not free ({error.strerror}): "
                "stop the program that listens there, or choose another port"
            ) from error
    return port


def _accepts(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=1.0):
            return True
    except OSError:
        return False


def _mosquitto_config(host: str, port: int, state_dir: Path) -> str:
    # Under root mosquitto would change to its own user, which clears the parent-death signal and cannot
    # write the state directory; it is told to stay who it is.
    return f"""\
listener {port} {host}
allow_anonymous true
user {getpass.getuser()}
persistence true
persistence_location {state_dir.resolve()}/
autosave_interval {AUTOSAVE_S}
max_packet_size {PACKET_BYTES_MAX}
max_queued_messages {QUEUED_MESSAGES_MAX}
max_queued_bytes {QUEUED_BYTES_MAX}
max_inflight_messages {INFLIGHT_MAX}
connection_messages false
log_dest stderr
log_type error
log_type warning
"""


def _iotcore_config(host: str, port: int, port_v311: int) -> str:
    address = f"[{host}]" if ":" in host else host
    listeners = "".join(
        f"""
[{version}.1]
name = "{version}"
listen = "{address}:{number}"
next_connection_delay_ms = 1
[{version}.1.connections]
connection_timeout_ms = 60000
max_payload_size = {PACKET_BYTES_MAX}
max_inflight_count = {INFLIGHT_MAX}
dynamic_filters = true
"""
        for version, number in (("v5", port), ("v4", port_v311))
    )
    return f"""\
id = 0
[router]
id = 0
max_connections = 10010
max_outgoing_packet_count = 200
max_segment_size = {QUEUED_BYTES_MAX // 10}
max_segment_count = 10
{listeners}"""
