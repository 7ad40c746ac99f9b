"""A fleet whose connections go through proxies and whose clocks can be set, and faults drawn from a seed."""

import contextlib
import json
import os
import random
import signal
import time
from pathlib import Path

import paho.mqtt.client as mqtt

from aggregator.supervise import Supervisor
from edge_client.wire import topics
from tests.chaos.conftest import Fleet, until
from tests.proxy import Proxy

HOME = Path(__file__).parent
CRASH, ROOT = HOME / "crash", HOME.parents[1]
DAY_S = 86_400
FAKETIME = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
# Waits that are long for the sake of real fleets and would only make a test long: nothing is decided by their length.
SHORT = {
    "broker_bridge.mqtt:KEEPALIVE_S": 3,
    "edge_client.outgoing:RECEIPT_WAIT_S": 5.0,
    "edge_client.transport:RETRY_MAX_S": 2.0,
    "edge_client.transport:SILENCE_FACTOR": 1.5,  # at 1 an idle connection ends before its first ping is answered
}


class _Server(Supervisor):
    """A supervisor whose bridge reaches the broker through a proxy."""

    def __init__(self, directory, kind, proxy):
        super().__init__(directory, 0, 0, kind)
        self._proxied = proxy
        self.proxy = None

    def _child(self, module, *arguments):
        if module == "broker_bridge":
            self.proxy = self._proxied(self.broker.port)
            arguments = (*arguments[:-1], f"127.0.0.1:{self.proxy.port}")
        return super()._child(module, *arguments)


class Clock:
    """What the processes of one side take for the time: the real one and a shift, which may change at any moment."""

    def __init__(self, path):
        self._path = path
        self.shift(0)

    def shift(self, seconds):
        """Set the clock; monotonic clocks go on."""
        fresh = self._path.with_suffix(".new")
        fresh.write_text(f"{seconds:+d}\n")
        fresh.replace(self._path)

    @property
    def environment(self):
        """What a process is started with to live by this clock."""
        return {
            "LD_PRELOAD": str(FAKETIME[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self._path),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_RESET": "1",
        }


class FaultyFleet(Fleet):
    """A server and devices, with `line` between the devices and the broker and `trunk` between it and the bridge."""

    def __init__(self, directory, kind, monkeypatch, *, line=Proxy, trunk=Proxy, clocks=False, short=True):
        super().__init__(directory, kind)
        monkeypatch.setenv("PYTHONPATH", f"{CRASH}{os.pathsep}{ROOT}")
        monkeypatch.setenv("CHAOS_SET", json.dumps(SHORT if short else {}))
        self.keepalive = 5 if short else 60
        self._monkeypatch, self._line = monkeypatch, line
        self.supervisor = _Server(directory / "server", kind, trunk)
        self.line = None
        self.clocks = {}
        if clocks:
            self.clocks = {side: Clock(directory / f"clock-{side}") for side in ("server", "devices")}

    @property
    def trunk(self):
        """The bridge's way to the broker."""
        return self.supervisor.proxy

    def start(self):
        with self._living("server"):
            super().start()
        self.line = self._line(self.mqtt_port)
        self.mqtt_port = self.line.port

    def tend(self):
        with self._living("server"):
            self.supervisor.tend()
        for name, daemon in list(self.daemons.items()):
            if daemon.poll() is not None:
                self.start_device(name)
        return True

    def start_device(self, name):
        with self._living("devices"):
            super().start_device(name)

    def close(self):
        try:
            super().close()
        finally:
            for proxy in (self.line, self.trunk):
                if proxy is not None:
                    proxy.close()

    def _living(self, side):
        """Start processes by this side's clock."""
        patch = self._monkeypatch.context()
        return _Environment(patch, self.clocks[side].environment if self.clocks else {})


class _Environment:
    def __init__(self, context, values):
        self._context, self._values = context, values

    def __enter__(self):
        patch = self._context.__enter__()
        for key, value in self._values.items():
            patch.setenv(key, value)

    def __exit__(self, *error):
        return self._context.__exit__(*error)


class Echo:
    """Sends again what devices sent, later and in another order, as a network of brokers may."""

    def __init__(self, fleet, rng):
        self._fleet, self._rng = fleet, rng
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="echo", protocol=mqtt.MQTTv5)
        self._client.reconnect_delay_set(1, 1)
        self._client.connect("127.0.0.1", fleet.supervisor.broker.port)
        self._client.loop_start()

    def repeat(self):
        """Some frames of before, the newest first as often as not."""
        seen = [(uid, frame) for uid, frames in self._fleet.ledger.frames.items() for frame in frames]
        for uid, frame in self._rng.sample(seen, min(5, len(seen))):
            self._client.publish(topics.update(topics.Uid.parse(uid), 0), frame, 1)

    def close(self):
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()


class Storm:
    """Faults one after another, drawn from a seed; `log` has each as it struck."""

    def __init__(self, fleet, seed):
        self.fleet, self.rng, self.log = fleet, random.Random(seed), []
        self.echo = Echo(fleet, self.rng)
        self.kinds = [
            self.kill_device, self.kill_trainer, self.stop_trainer, self.stop_device, self.kill_server, self.stop_server, self.kill_broker,
            self.stop_broker, self.wipe_broker, self.cut_line, self.cut_trunk, self.hang_line, self.hang_trunk,
            self.repeat,
        ]  # fmt: skip
        if fleet.clocks:
            self.kinds.append(self.set_clock)

    def strike(self):
        """The next fault; each kind comes once before one comes again."""
        if len(self.log) % len(self.kinds) == 0:
            self.rng.shuffle(self.kinds)
        kind = self.kinds[len(self.log) % len(self.kinds)]
        self.log.append(kind.__name__)
        kind()
        self.pause(0.5)

    def pause(self, most_s):
        """Let them work for a while, and start again what died."""
        end = time.monotonic() + self.rng.uniform(0, most_s)
        while self.fleet.tend() and time.monotonic() < end:
            time.sleep(0.05)

    def _hold(self, pid):
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(self.rng.uniform(0.1, 1.5))  # how long it hangs is the fault, not a wait
        finally:
            os.kill(pid, signal.SIGCONT)

    def _device(self):
        return self.rng.choice(sorted(self.fleet.daemons))

    def _server(self):
        child = self.rng.choice([c for c in self.fleet.supervisor.children if c.name != "broker"])
        return child.process

    def kill_device(self):
        """SIGKILL a daemon."""
        self.fleet.kill_device(name := self._device())
        self.fleet.start_device(name)

    def stop_device(self):
        """SIGSTOP a daemon for a while."""
        self._hold(self.fleet.daemons[self._device()].pid)

    def kill_trainer(self):
        """SIGKILL a trainer child, when one runs."""
        self._to_a_trainer(lambda pid: os.kill(pid, signal.SIGKILL))

    def stop_trainer(self):
        """SIGSTOP one for a while."""
        self._to_a_trainer(self._hold)

    def _to_a_trainer(self, fault):
        pids = [pid for daemon in self.fleet.daemons.values() for pid in children(daemon.pid)]
        if pids:
            with contextlib.suppress(ProcessLookupError):  # it ended by itself
                fault(self.rng.choice(pids))

    def kill_server(self):
        """SIGKILL bridge, or aggregator and with it the API."""
        process = self._server()
        if process.poll() is None:
            process.kill()
            process.wait()

    def stop_server(self):
        """SIGSTOP one of them for a while."""
        process = self._server()
        if process.poll() is None:
            self._hold(process.pid)

    def kill_broker(self):
        """SIGKILL the broker; mosquitto comes back with the database it last wrote."""
        broker = self.fleet.supervisor.broker
        if broker.process.poll() is None:
            broker.kill()

    def wipe_broker(self):
        """SIGKILL the broker, which comes back without its database."""
        self.kill_broker()
        (self.fleet.supervisor.broker.state_dir / "mosquitto.db").unlink(missing_ok=True)

    def stop_broker(self):
        """SIGSTOP the broker for a while."""
        process = self.fleet.supervisor.broker.process
        if process.poll() is None:
            self._hold(process.pid)

    def cut_line(self):
        """Reset the devices' connections in the middle of what they carry."""
        self.fleet.line.cut()

    def cut_trunk(self):
        """The same for the bridge's."""
        self.fleet.trunk.cut()

    def hang_line(self):
        """Leave the devices' connections half open."""
        self.fleet.line.hang()

    def hang_trunk(self):
        """The same for the bridge's."""
        self.fleet.trunk.hang()

    def repeat(self):
        """Duplicates, in another order."""
        self.echo.repeat()

    def set_clock(self):
        """Set the clock of a side a day ahead or back, or right."""
        side = self.rng.choice(sorted(self.fleet.clocks))
        self.fleet.clocks[side].shift(self.rng.choice((-DAY_S, 0, DAY_S)))

    def close(self):
        """End it."""
        self.echo.close()


def children(pid):
    """Process ids of a process's children."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:  # it ended meanwhile
        return []


def settled(fleet, versions, seconds):
    """Wait until there are so many more versions, whatever is down being started again."""
    until(lambda: fleet.tend() and fleet.healthy(), "the API answers", seconds)
    now = until(lambda: fleet.tend() and fleet.job(), "the job is there", seconds)["version"]
    until(
        lambda: fleet.tend() and (j := fleet.job()) and j["version"] >= now + versions,
        "more versions",
        seconds,
    )
