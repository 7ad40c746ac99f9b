"""`fedfleet up`: what it needs, what it brings back, and whom it lets in."""

import json
import os
import signal
import socket
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import until
from tests.e2e.server import Up, fedfleet, gone, processes, small_bundle, start


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle") / "small.bundle"
    path.write_bytes(small_bundle().to_bytes())
    return path


def test_state_that_cannot_be_read_is_shown_from_the_log(tmp_path):
    """A server that dies whenever it is started shows why instead of waiting for a deadline."""
    state = tmp_path / "state"
    state.mkdir()
    (state / "fleet.db").write_bytes(b"not a database" * 1000)
    done = fedfleet("up", "--state-dir", state, "--port", 0, "--mqtt-port", 0, code=1)

    assert "died 3 times right after its start" in done.stderr
    assert "fleet.db" in done.stderr
    assert processes(tmp_path) == []


def test_a_server_goes_on_where_it_was(bundle, tmp_path):
    """I3: after Ctrl+C and a new start the job is there at its version; kill -9 then leaves no process behind."""
    up = Up(tmp_path / "state")
    try:
        start(up, bundle, "one")
        before = up.json("job", "show", "one")
        assert up.interrupt() == 0, up.errors.read_text()
        gone(tmp_path)
        lost = [
            line
            for line in (tmp_path / "state" / "broker_bridge.log").read_text().splitlines()
            if "lost" in line
        ]
        assert [line for line in lost if "Normal disconnection" not in line] == []  # the broker went last
        assert not list((tmp_path / "state").glob("bundles/tmp*"))

        up = Up(tmp_path / "state")
        after = up.json("job", "show", "one")
        assert (after["state"], after["version"]) == ("running", 0)
        assert after["versions"] == before["versions"]

        os.kill(up.process.pid, signal.SIGKILL)
        up.process.wait()
        gone(tmp_path)
    finally:
        up.close()


def test_a_job_that_cannot_be_loaded_is_named(bundle, tmp_path):
    """A server whose job is damaged beyond help says so at its start and in the list of jobs, with what to do."""
    up = Up(tmp_path / "state")
    try:
        start(up, bundle, "one")
        assert up.interrupt() == 0, up.errors.read_text()
        for path in (tmp_path / "state" / "blobs").rglob("*"):
            if path.is_file():
                path.write_bytes(b"damaged")

        up = Up(tmp_path / "state")
        until(lambda: "job one cannot be loaded" in up.errors.read_text(), "it is said")
        assert "fedfleet doctor --state-dir" in up.errors.read_text()
        listed = up.run("job", "list").stdout
        assert ("one" in listed, "damaged" in listed) == (True, True)
        doctor = fedfleet("doctor", "--state-dir", tmp_path / "state", code=1)
        assert "PROBLEM  job one" in doctor.stdout
        assert up.interrupt() == 0, up.errors.read_text()
    finally:
        up.close()


def test_what_dies_is_started_again_and_named(tmp_path):
    """A killed aggregator and a killed broker come back on their ports, and stderr says that they died."""
    up = Up(tmp_path / "state", "--broker", "iotcore" if find_spec("iotcore") else "auto")
    try:
        address = up.facts["mqtt_v311"].split(":")
        for word in (b"aggregator\0--ports", b"broker_child.py"):
            (victim,) = [pid for pid in processes(tmp_path) if word in command(pid)]
            os.kill(victim, signal.SIGKILL)
            until(
                lambda v=victim, w=word: [p for p in processes(tmp_path) if p != v and w in command(p)],
                "back",
            )
        until(lambda: serves(up), "both answer again")
        until(lambda: listens(address[0], int(address[1])), "the old port for MQTT 3.1.1 takes connections")

        assert up.errors.read_text().count("process.died") == 2
        assert up.terminate() == 0
        assert up.output.read_text().count("{") == 1
    finally:
        up.close()
        gone(tmp_path)


def command(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it ended meanwhile
        return b""


def serves(up):
    try:
        return httpx.get(f"{up.facts['api']}/health").is_success
    except httpx.TransportError:
        return False


def listens(host, port):
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


def test_a_token_from_first_to_last(bundle, tmp_path):
    """A token made while the server runs is needed from then on, shows in lists without itself, and can be revoked."""
    up = Up(tmp_path / "state")
    try:
        place = ("--state-dir", up.state_dir)
        made = fedfleet("token", "create", "--name", "ci", "--role", "viewer", "--expires", "12h", *place)
        text = made.stdout.strip()
        assert text.startswith("ff_")
        assert "needed" in up.run("job", "list", code=1).stderr
        assert up.run("job", "list", "--token", text).stdout.startswith("no jobs yet")
        job = ("job", "start", "--bundle", bundle, "--name", "x", "--dataset", "d")
        assert "needs the role operator" in up.run(*job, "--token", text, code=1).stderr
        (listed,) = json.loads(fedfleet("token", "list", "--json", *place).stdout)
        assert (listed["name"], listed["role"]) == ("ci", "viewer")
        assert text.split("_", 2)[2] not in fedfleet("token", "list", *place).stdout
        admin = fedfleet("token", "create", "--name", "boss", "--role", "admin", *place).stdout.strip()
        headers = {"Authorization": f"Bearer {admin}"}
        entries = httpx.get(f"{up.facts['api']}/audit", headers=headers).json()["audit"]
        assert [(e["action"], e["path"]) for e in entries] == [
            ("create_token", "boss"),
            ("create_token", "ci"),
        ]
        fedfleet("token", "revoke", "boss", *place)
        assert httpx.get(f"{up.facts['api']}/audit", headers=headers).status_code == 401
        taken = fedfleet("token", "create", "--name", "ci", *place, code=1).stderr
        assert "there is a token named ci" in taken
        assert "12h" in fedfleet("token", "create", "--name", "x", "--expires", "12", *place, code=2).stderr
        assert "revoked" in fedfleet("token", "revoke", "ci", *place).stdout
        assert "there are: none" in fedfleet("token", "revoke", "ci", *place, code=1).stderr
        assert "unauthorized" not in up.run("job", "list").stdout
        nowhere = fedfleet("token", "list", "--state-dir", tmp_path / "no", code=1).stderr
        assert "is not a state directory" in nowhere
    finally:
        up.close()
        gone(tmp_path)


def test_a_server_beyond_loopback_needs_a_token_before_it_starts(tmp_path):
    """`up --host` without a token says which command makes one; with one it serves those who have it."""
    state = tmp_path / "state"
    refused = fedfleet("up", "--state-dir", state, "--host", "0.0.0.0", "--port", 0, "--mqtt-port", 0, code=1)
    assert f"fedfleet token create --name me --role admin --state-dir {state}" in refused.stderr
    other = fedfleet("up", "--state-dir", state, "--host", "192.0.2.1", "--port", 0, "--mqtt-port", 0, code=1)
    assert "no token yet" in other.stderr
    assert not state.exists()

    token = fedfleet("token", "create", "--name", "me", "--state-dir", state).stdout.strip()
    other = fedfleet("up", "--state-dir", state, "--host", "192.0.2.1", "--port", 0, "--mqtt-port", 0, code=1)
    assert "192.0.2.1 is not an address of this machine" in other.stderr
    up = Up(state, "--host", "0.0.0.0")
    try:
        assert httpx.get(f"{up.facts['api']}/jobs").status_code == 401
        assert "no jobs yet" in up.run("job", "list", "--token", token).stdout
    finally:
        up.close()
        gone(tmp_path)
