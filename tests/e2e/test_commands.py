"""The `fedfleet` command as people run it: a process of its own, with its words and exit codes."""

import fcntl
import functools
import http.server
import json
import os
import re
import signal
import socket
import subprocess
import threading

import httpx
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from broker_bridge.broker import find_mosquitto, free_port
from tests.e2e.conftest import until
from tests.e2e.server import FEDFLEET, Up, fedfleet, processes, small_bundle, start


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle") / "small.bundle"
    path.write_bytes(small_bundle().to_bytes())
    return path


@pytest.fixture(scope="module")
def up(tmp_path_factory):
    """One `fedfleet up` for the tests that only ask it things."""
    up = Up(tmp_path_factory.mktemp("up") / "state")
    try:
        yield up
        assert up.terminate() == 0, up.errors.read_text()
        assert processes(up.state_dir) == []
    finally:
        up.close()


@pytest.fixture
def taken():
    """A port somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


# -- up -------------------------------------------------------------------------------------------------


def test_up_says_where_it_is(up):
    """`up --json` prints one document, whose addresses answer."""
    assert set(up.facts) == {"dashboard", "api", "mqtt", "mqtt_v311", "broker", "state_dir"}
    assert up.facts["broker"] == ("mosquitto" if find_mosquitto() else "iotcore")
    assert httpx.get(f"{up.facts['api']}/health").json()["status"] == "ok"
    assert "<title>fedfleet</title>" in httpx.get(up.facts["dashboard"]).text
    for address in (up.facts["mqtt"], up.facts["mqtt_v311"]):
        host, port = address.split(":")
        socket.create_connection((host, int(port)), timeout=5).close()
    assert len(processes(up.state_dir)) == 4  # and itself


def test_up_is_refused_where_one_runs(up):
    """I3: a second server on the same state directory says so, and the first is not disturbed."""
    done = fedfleet("up", "--state-dir", up.state_dir, "--port", 0, "--mqtt-port", 0, code=1)

    assert f"in use by another fedfleet server (process {up.process.pid})" in done.stderr
    assert "--state-dir" in done.stderr
    assert httpx.get(f"{up.facts['api']}/health").is_success


def test_a_doctor_finds_nothing_wrong_with_a_running_server(up, bundle):
    """`doctor` works beside the server, and its exit code and JSON say that all is well."""
    start(up, bundle, "looked-at")
    found = json.loads(fedfleet("doctor", "--state-dir", up.state_dir, "--json").stdout)

    assert {"database fleet.db", "job looked-at", "log", "memo"} <= {finding["what"] for finding in found}
    assert [finding for finding in found if not finding["ok"]] == []
    done = fedfleet("doctor", "--state-dir", up.state_dir / "bundles", code=2)
    assert "no server has run here" in done.stderr


@pytest.mark.parametrize("option", ["--port", "--mqtt-port"])
def test_a_taken_port_is_named_with_its_remedy(option, taken, tmp_path):
    """Whichever port is taken, `up` names it and its option, and leaves neither process nor file."""
    ports = {"--port": 0, "--mqtt-port": 0, option: taken}
    words = [str(word) for pair in ports.items() for word in pair]
    done = fedfleet("up", "--state-dir", tmp_path / "state", *words, code=1)

    assert f"port {taken} is not free" in done.stderr
    assert f"choose another with {option}" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_state_directory_that_cannot_be_is_named(tmp_path):
    """A state directory that cannot be written ends `up` with its name and what to do."""
    (tmp_path / "file").write_text("")
    done = fedfleet("up", "--state-dir", tmp_path / "file" / "state", code=1)

    assert str(tmp_path / "file") in done.stderr
    assert "choose another --state-dir" in done.stderr


# -- token ----------------------------------------------------------------------------------------------


# -- job and model --------------------------------------------------------------------------------------


def test_a_job_from_start_to_stop(up, bundle):
    """Each `job` command does its part, in words and as JSON, and `watch` returns when the job is over."""
    started = up.json(
        "job",
        "start",
        "--bundle",
        bundle,
        "--name",
        "whole",
        "--dataset",
        "d",
        "--steps",
        "7",
        "--patience",
        "9",
        "--downlink-density",
        "0.25",
    )
    listed = up.json("job", "list")
    shown = up.json("job", "show", "whole")
    words = up.run("job", "show", "whole").stdout
    table = up.run("job", "list").stdout
    stopped = up.json("job", "stop", "whole")
    watched = up.run("job", "watch", "whole").stdout

    assert started["spec"]["training"]["steps"] == 7
    assert started["spec"]["end"]["patience"] == 9
    assert started["spec"]["cohort"] == "all"
    assert started["spec"]["downlink_density"] == 0.25
    assert "deltas of 25 % of the weights, lag 0" in words
    assert "whole" in [job["name"] for job in listed]
    assert [version["version"] for version in shown["versions"]] == [0]
    assert "whole" in table
    assert (stopped["state"], stopped["reason"]) == ("ended", "stopped by a person")
    assert "stopped by a person" in watched
    assert "ended already" in up.run("job", "stop", "whole", code=1).stderr


def test_versions_devices_and_events_are_listed(up, bundle):
    """`version`, `device` and `events` print what the server knows, in words and as JSON."""
    start(up, bundle, "listed")
    assert up.json("job", "pause", "listed")["state"] == "paused"
    assert "running" in up.run("job", "resume", "listed").stdout
    assert [v["version"] for v in up.json("version", "list", "listed")] == [0]
    assert "promoted" in up.run("version", "promote", "listed", 0).stdout
    assert "promoted: version 0" in up.run("version", "list", "listed").stdout
    assert "newest is 0" in up.run("version", "unpromote", "listed").stdout
    assert "no version of listed is promoted" in up.run("version", "unpromote", "listed", code=1).stderr
    assert "no version 7" in up.run("version", "promote", "listed", 7, code=1).stderr
    assert "no such devices" in up.run("device", "list", "--state", "ready", "--search", "nobody").stdout
    assert "no device has connected yet" in up.run("device", "list").stdout
    assert up.json("device", "list") == []
    assert "no device named x" in up.run("device", "show", "x", code=1).stderr
    lines = up.run("events", "--kind", "job", "--json").stdout.splitlines()
    assert {"name": "listed", "state": "paused", "reason": "", "promoted": None} in [
        json.loads(line)["data"] for line in lines
    ]
    words = up.run("events", "--kind", "job").stdout
    assert 'state="paused"' in words
    audited = up.run("events", "--kind", "audit").stdout
    assert re.search(r"\bat=20\d\d-\d\d-\d\d \d\d:\d\d:\d\d ", audited)
    assert "has not ended" in up.run("job", "delete", "listed", code=1).stderr
    up.run("job", "stop", "listed")
    until(lambda: up.run("job", "delete", "listed").stdout, "it is deleted")
    assert "listed" not in [job["name"] for job in up.json("job", "list")]


def test_events_are_followed_until_a_signal(up, bundle):
    """`events --follow` prints what comes, and a Ctrl+C ends it without a traceback."""
    command = [FEDFLEET, "events", "--follow", "--kind", "job", "--server", up.server]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            start(up, bundle, "followed")
            line = next(line for line in process.stdout if "followed" in line)
            assert 'state="running"' in line
        finally:
            process.send_signal(signal.SIGINT)
            errors = process.communicate(timeout=30)[1]
    assert "Traceback" not in errors


def test_a_list_is_watched_until_a_signal(up, bundle):
    """With `--watch` a list in a terminal is shown again when it changed; Ctrl+C ends it with exit code 0."""
    ours, theirs = os.openpty()
    command = [FEDFLEET, "job", "list", "--watch", "--server", up.server]
    with (
        os.fdopen(ours, "rb", buffering=0) as screen,
        subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs) as process,
    ):
        os.close(theirs)
        try:
            assert screen.read(1)
            start(up, bundle, "watched")
            seen = bytearray()
            until(lambda: seen.extend(screen.read(4096)) or b"watched" in seen, "the new job is shown")
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_told_how_to_complete(shell):
    """The script of each shell names the command, and the command completes its sub-commands."""
    script = fedfleet("completion", shell).stdout
    assert "_FEDFLEET_COMPLETE" in script
    words = {"COMP_WORDS": "fedfleet device l", "COMP_CWORD": "2"}
    if shell == "fish":  # it hands over the word itself
        words = {"COMP_WORDS": "fedfleet device", "COMP_CWORD": "l"}
    asked = {**words, "_FEDFLEET_COMPLETE": f"{shell}_complete"}
    done = subprocess.run([FEDFLEET], env={**os.environ, **asked}, capture_output=True, text=True, check=True)
    assert "list" in done.stdout


def test_options_win_over_the_spec_file_and_defaults_do_not(up, bundle, tmp_path):
    """Fields of --spec hold unless an option names them; a file that is no spec is wrong usage."""
    (tmp_path / "spec.json").write_text('{"cohort": "lab", "training": {"steps": 3, "density": 0.5}}')
    start(up, bundle, "from-file", "--spec", tmp_path / "spec.json", "--steps", 4)
    spec = up.json("job", "show", "from-file")["spec"]
    assert (spec["cohort"], spec["training"]["steps"], spec["training"]["density"]) == ("lab", 4, 0.5)

    for text, words in (
        ('{"training": 5}', "training is not an object"),
        ("{", "--spec"),
        ("\udcff", "--spec"),
    ):
        (tmp_path / "bad.json").write_text(text, errors="surrogateescape")
        done = start(up, bundle, "bad-file", "--spec", tmp_path / "bad.json", "--steps", 4, code=2)
        assert words in done.stderr


def test_what_is_not_built_is_refused_at_the_command_line(up, bundle, tmp_path):
    """I13: a job that asks for privacy ends with the server's words and exit code 1."""
    (tmp_path / "spec.json").write_text('{"privacy": {"epsilon": 1}}')
    done = start(up, bundle, "private", "--spec", tmp_path / "spec.json", code=1)

    assert "differential privacy is not built yet" in done.stderr


def test_a_model_is_exported(up, bundle, tmp_path):
    """`model export` writes a file that ONNX Runtime opens, and nothing when it is refused."""
    start(up, bundle, "exported")
    out = tmp_path / "model.onnx"
    facts = up.json("model", "export", "exported", "--format", "int8", "--out", out)
    absent = up.run("model", "export", "exported", "--version", 5, "--out", tmp_path / "none.onnx", code=1)
    nowhere = up.run("model", "export", "exported", "--out", tmp_path / "no" / "m.onnx", code=1)

    assert (facts["version"], facts["format"], facts["bytes"]) == (0, "int8", out.stat().st_size)
    onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    assert "no version 5" in absent.stderr
    assert "No such file or directory" in nowhere.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("words", ["job watch x", "model export x --out never.onnx"])
def test_without_a_server_the_command_says_how_to_start_one(words, tmp_path):
    """Exit code 1 and `fedfleet up` answer a command that reaches no server."""
    done = fedfleet(*words.split(), "--server", f"http://127.0.0.1:{free_port()}", code=1, cwd=tmp_path)

    assert "no server at http://127.0.0.1:" in done.stderr
    assert "fedfleet up" in done.stderr


@pytest.mark.parametrize(
    ("server", "words"),
    [("127.0.0.1:80", "127.0.0.1:80"), ("http://127.0.0.1:99999", "99999")],
)
def test_an_address_of_no_server_is_quoted(server, words):
    """A mistyped --server is quoted back."""
    assert words in fedfleet("job", "list", "--server", server, code=1).stderr


def test_what_is_no_fedfleet_server_is_said_to_be_none(tmp_path):
    """Of the page of another web server a short excerpt without markup is shown, beside the status."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        done = fedfleet("job", "list", "--server", f"http://127.0.0.1:{other.server_port}", code=1)
        other.shutdown()
    assert "is not a fedfleet server (status 404: Error response" in done.stderr
    assert "give the URL of one" in done.stderr
    assert "<" not in done.stderr


@pytest.mark.parametrize(
    "words", ["job show ../../etc", "device show a/b", "version list ..", "device pause ../x"]
)
def test_a_name_is_never_more_than_a_name(up, words):
    """What would lead elsewhere in a path is told to be no name."""
    assert "names are 1 to 64 of a-z" in up.run(*words.split(), code=1).stderr


@pytest.mark.parametrize(
    "words", ["nonsense", "job start", "up --port 70000", "model export x --out m --format fp8"]
)
def test_wrong_usage_is_exit_code_2(words):
    """What cannot be understood is told from what was refused."""
    assert "Usage: fedfleet" in fedfleet(*words.split(), code=2).stderr


# -- bundle and demo ------------------------------------------------------------------------------------


def test_an_operator_without_gradient_is_named(tmp_path):
    """`bundle build` names the node, its operator and those there are, and writes nothing."""
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"]),
            helper.make_node("Hardmax", ["a"], ["logits"], name="the-hardmax"),
        ],
        "hard",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor("w", TensorProto.FLOAT, [4, 3], [0.1] * 12)],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), tmp_path / "m"
    )
    done = fedfleet("bundle", "build", tmp_path / "m", "--out", tmp_path / "b", code=1)

    assert [
        w for w in ("'the-hardmax'", "Hardmax", "supported: ", "Conv", "Gemm") if w not in done.stderr
    ] == []
    assert not (tmp_path / "b").exists()


def test_a_damaged_bundle_is_not_described(bundle, tmp_path):
    """I6: `bundle inspect` names the member that is damaged."""
    data = bytearray(bundle.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "damaged").write_bytes(data)
    (tmp_path / "cut").write_bytes(data[:-40])

    assert ".onnx" in fedfleet("bundle", "inspect", tmp_path / "damaged", code=1).stderr
    assert "not a bundle" in fedfleet("bundle", "inspect", tmp_path / "cut", code=1).stderr


def test_a_second_demo_in_a_directory_says_so(tmp_path):
    """While one demo holds its directory another one there is refused."""
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = fedfleet("demo", "--directory", tmp_path, code=1)

    assert "another demo is running" in done.stderr
    assert "--directory" in done.stderr
