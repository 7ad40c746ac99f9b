"""The server as people run it: the aggregator alone, the whole of `fedfleet up`, and the `fedfleet` command."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx

from broker_bridge.broker import free_port
from broker_bridge.ports import Kind, open_ports
from broker_bridge.records import EventRecord, UpdateRecord, encode
from edge_client.wire import messages, topics
from firmware_tools.compiler import compile_training
from firmware_tools.zoo import cnn1d
from tests.e2e.conftest import EPOCH, until, update

FEDFLEET = Path(sys.executable).with_name("fedfleet")
WAIT_S = 30.0  # a start takes two seconds on a quiet machine
TRACEBACK = "Traceback (most recent call last)"


def small_bundle():
    """A bundle of 143 parameters for samples of 2 x 8 and three classes."""
    return compile_training(cnn1d(channels=2, length=8, classes=3, widths=(4, 4)))


def fedfleet(*arguments, code=0, cwd=None):
    """Run a command; its output once it ended with this exit code, and without a traceback."""
    done = subprocess.run(
        [FEDFLEET, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200"},
        check=False,
    )
    assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert TRACEBACK not in done.stdout + done.stderr
    return done


def processes(directory):
    """Process ids whose command line names this directory, zombies not counted."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            words = (path / "cmdline").read_bytes().decode(errors="replace")
            if str(directory) in words and int(path.name) != os.getpid():
                found.append(int(path.name))
    return found


class Aggregator:
    """`python -m aggregator` over one directory."""

    def __init__(self, directory):
        self.directory = directory
        self.url = f"sqlite:///{directory}/fleet.db"
        self.log = directory / "aggregator.log"
        self.temporary = directory / "tmp"
        self.temporary.mkdir(parents=True)

    def start(self, port=None):
        """Start it without waiting."""
        self.port = port or free_port()
        command = [sys.executable, "-m", "aggregator", "--ports", self.url, "--port", str(self.port)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, "TMPDIR": str(self.temporary)}
            )

    @contextlib.contextmanager
    def client(self):
        """A client of the API, once that answers."""
        with httpx.Client(base_url=f"http://127.0.0.1:{self.port}/api/v1", timeout=WAIT_S) as client:
            until(lambda: self.process.poll() is not None or answers(client), "the API answers", WAIT_S)
            assert self.process.poll() is None, self.log.read_text()
            yield client

    def stop(self):
        """SIGTERM; the exit code."""
        self.process.terminate()
        return self.process.wait(WAIT_S)

    def close(self):
        """End it in any way."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def append(self, *entries):
        """Append (device, uid, kind, record) to the log, as a bridge would."""

        async def main():
            ports = open_ports(self.url)
            try:
                for device, uid, kind, record in entries:
                    partition = topics.partition(device, ports.partitions)
                    await ports.log.append(partition, uid, kind, encode(record))
            finally:
                await ports.close()

        asyncio.run(main())

    def updates(self, job, sizes, count):
        """Append so many updates of version 0 of a job."""
        uids = [topics.Uid("dev-a", job, EPOCH, seq) for seq in range(1, count + 1)]
        frames = [update(uid, 0.01, base=0, sizes=sizes, k=3) for uid in uids]
        records = [UpdateRecord(time.time(), frame, len(frame)) for frame in frames]
        self.append(
            *(("dev-a", str(u), Kind.UPDATE, record) for u, record in zip(uids, records, strict=True))
        )

    def say(self, device, topic, message):
        """Append what a device says about itself."""
        record = EventRecord(time.time(), topic, device, "", messages.encode(message))
        self.append((device, f"event:{device}:{topic}", Kind.EVENT, record))


class Up:
    """`fedfleet up` on free ports."""

    def __init__(self, state_dir, *options):
        self.state_dir = state_dir
        self.output, self.errors = state_dir.parent / "up.out", state_dir.parent / "up.err"
        command = [FEDFLEET, "up", "--state-dir", state_dir, "--port", "0", "--mqtt-port", "0", "--json"]
        with self.output.open("wb") as output, self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [*map(str, command), *map(str, options)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                start_new_session=True,
            )
        try:
            self.facts = until(self._facts, "up says where it is", WAIT_S)
        except BaseException:
            self.close()
            raise
        self.server = self.facts["api"].removesuffix("/api/v1")

    def run(self, *arguments, code=0):
        """Run a command against this server."""
        return fedfleet(*arguments, "--server", self.server, code=code)

    def json(self, *arguments):
        """The JSON that a command prints."""
        return json.loads(self.run(*arguments, "--json").stdout)

    def interrupt(self):
        """Ctrl+C: SIGINT to the whole foreground group, as a terminal sends it; the exit code."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(WAIT_S)

    def terminate(self):
        """SIGTERM; the exit code."""
        self.process.terminate()
        return self.process.wait(WAIT_S)

    def close(self):
        """End it in any way."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def _facts(self):
        assert self.process.poll() is None, self.errors.read_text()
        text = self.output.read_text()
        return json.loads(text) if text.endswith("}\n") else None


def answers(client):
    """Whether the API answers."""
    try:
        return client.get("/health").is_success
    except httpx.TransportError:
        return False


def start(up, bundle, name, *options, code=0):
    """Start a job at the command line."""
    return up.run("job", "start", "--bundle", bundle, "--name", name, "--dataset", "d", *options, code=code)


def gone(directory):
    """Wait until no process of a server in this directory is left."""
    return until(lambda: not processes(directory), "no process of the server is left")


def refused(response, status, code, *words):
    """Check that an answer is a problem document which says these words."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    problem = response.json()
    assert set(problem) == {"type", "title", "status", "code", "detail"}
    assert (response.status_code, problem["status"], problem["code"]) == (status, status, code), problem
    assert [word for word in words if word not in problem["detail"]] == [], problem["detail"]
    return problem["detail"]
