"""The SDK against a real server: the synchronous and the asynchronous fleet, errors, events, a fleet on this machine."""

import asyncio
import inspect
import json
import subprocess
import sys
import threading

import numpy as np
import onnxruntime
import pytest

from aggregator.sdk import AsyncFleet, Event, Fleet, FleetError, Shard, account, view
from aggregator.sdk.events import Parser
from aggregator.sdk.models import COMPILED
from aggregator.spec import JobSpec
from broker_bridge.broker import free_port
from broker_bridge.ports import Kind
from broker_bridge.records import EventRecord
from edge_client.wire.messages import DeviceState, TaskStatus, encode
from firmware_tools.compiler import compile_training
from firmware_tools.zoo import cnn1d
from tests.e2e.conftest import until
from tests.e2e.server import Aggregator, fedfleet, processes, small_bundle


@pytest.fixture(scope="module")
def bundle():
    return small_bundle()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One aggregator for all tests here; each test has a job of its own."""
    server = Aggregator(tmp_path_factory.mktemp("sdk") / "state")
    server.start()
    try:
        with server.client():
            yield server
        assert server.stop() == 0
    finally:
        server.close()


@pytest.fixture
def fleet(server):
    with Fleet(f"http://127.0.0.1:{server.port}") as fleet:
        yield fleet


def model():
    return cnn1d(channels=2, length=8, classes=3, widths=(4, 4))


def test_a_model_is_federated_in_one_call(fleet, server, bundle, tmp_path):
    """An ONNX model becomes a job with its target; its history and its trained model come back."""
    job = fleet.federate(
        model(),
        name="one",
        dataset="d",
        loss="cross_entropy",
        target={"accuracy": 0.9, "versions": 3},
        buffer_size=1,
    )
    server.updates("one", bundle.manifest.sizes, 3)
    facts = job.wait(timeout_s=30)
    trained = job.model("int8")

    assert facts["spec"]["end"]["target_accuracy"] == 0.9
    assert (facts["state"], facts["version"]) == ("ended", 3)
    assert [v["version"] for v in job.versions()] == [0, 1, 2, 3]
    assert [v["version"] for v in job.newest(2)] == [2, 3]
    assert (trained.version, trained.kind, len(trained)) == (3, "int8", len(bytes(trained)))
    onnxruntime.InferenceSession(trained.save(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    job.promote(1)
    assert job.model().version == 1
    assert job.unpromote()["promoted_version"] is None
    assert job.model().version == 3
    assert "one" in repr(job)
    assert "<table>" in job._repr_html_()
    assert "<svg" not in view.html(facts, [])
    job.delete()
    with pytest.raises(FleetError) as error:
        job.refresh()
    assert (error.value.code, error.value.status) == ("not_found", 404)


def test_history_is_a_list_without_pandas(fleet, bundle, monkeypatch):
    """Who has no pandas gets records, who has it a DataFrame by version."""
    job = fleet.federate(bundle, name="history", dataset="d")
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert [v["version"] for v in job.history()] == [0]
    monkeypatch.undo()
    pandas = pytest.importorskip("pandas")
    assert isinstance(job.history(), pandas.DataFrame)
    job.stop()


def test_a_bundle_is_given_as_it_is(fleet, bundle, tmp_path):
    """A built bundle, its bytes and its file are uploaded untouched; what is no model is refused by name."""
    path = bundle.save(tmp_path / "b.bundle")
    jobs = [
        fleet.federate(given, name=f"given-{n}", dataset="d")
        for n, given in enumerate((bundle, bundle.to_bytes(), path, str(path)))
    ]
    assert len({job.facts["spec"]["bundle"] for job in jobs}) == 1
    (tmp_path / "text").write_text("no model")
    for given, words in (
        (7, "int is no type of a model"),
        (tmp_path / "none", "No such file"),
        (tmp_path / "text", "text"),
    ):
        with pytest.raises(FleetError, match=words) as error:
            fleet.federate(given, name="x", dataset="d")
        assert error.value.code == "bad_model"
    with pytest.raises(FleetError, match="has its loss"):
        fleet.federate(bundle, name="x", dataset="d", loss="mse")
    with pytest.raises(FleetError, match="target has no 'acuracy'"):
        fleet.federate(bundle, name="x", dataset="d", target={"acuracy": 1})
    with pytest.raises(FleetError, match="compile_options"):
        fleet.federate(model(), name="x", dataset="d", compile_options={"colour": 3})
    with pytest.raises(FleetError, match="axes says how a model is compiled: give compile_options"):
        fleet.federate(model(), name="x", dataset="d", axes="channel,time")


def test_what_json_cannot_say_is_named_and_numbers_of_numpy_are_numbers(fleet, bundle, tmp_path):
    """A field that is no finite number and arguments of a wrong type are `bad_argument` before anything is sent."""
    for arguments, words in (
        ({"max_wait_s": float("nan")}, "max_wait_s is nan"),
        ({"training": {"density": {1}}}, "density is {1}"),
        ({"target": 3}, "target is 3; give a dict"),
        ({"compile_options": "adam"}, "compile_options is 'adam'; give a dict"),
    ):
        with pytest.raises(FleetError, match=words) as error:
            fleet.federate(bundle, name="x", dataset="d", **arguments)
        assert error.value.code == "bad_argument"
    job = fleet.federate(bundle, name="numpy", dataset="d", buffer_size=np.int64(2), norm_max=np.float32(50))
    assert (job.facts["spec"]["buffer_size"], job.facts["spec"]["norm_max"]) == (2, 50)
    with pytest.raises(FleetError, match="cannot be written: No such file") as error:
        job.model().save(tmp_path / "none" / "x.onnx")
    assert error.value.code == "bad_argument"


def test_every_option_of_the_compiler_is_known_to_the_sdk():
    """An option that is given beside the fields of a job is told from a field that does not exist."""
    options = set(inspect.signature(compile_training).parameters) - {"model", "loss"}
    assert options - set(JobSpec.__struct_fields__) == COMPILED


def test_refusals_are_exceptions_with_the_servers_reason(fleet, bundle):
    """What the server refuses is raised with its code, status and words."""
    with pytest.raises(FleetError, match="did you mean buffer_size") as error:
        fleet.federate(bundle, name="wrong", dataset="d", bufer_size=3)
    assert (error.value.code, error.value.status) == ("bad_spec", 422)
    with pytest.raises(FleetError, match="no device named x"):
        fleet.device("x")
    nobody = Fleet(f"http://127.0.0.1:{free_port()}")
    with nobody, pytest.raises(FleetError, match="fedfleet up") as error:
        nobody.health()
    assert (error.value.code, error.value.status) == ("unreachable", None)
    stranger = Fleet(fleet.url, token="ff_x_y")
    with stranger, pytest.raises(FleetError, match="no such token"):
        stranger.jobs()


def test_events_are_followed(fleet, bundle):
    """Events come as they happen, of the kinds asked for."""
    seen = []

    def follow():
        for event in fleet.events(["job"]):
            seen.append(event)
            if event.data["state"] == "ended":
                return

    thread = threading.Thread(target=follow)
    thread.start()
    with Fleet(fleet.url) as other:
        for attempt in range(100):  # until the stream is open nothing is seen
            other.federate(bundle, name=f"seen-{attempt}", dataset="d").stop()
            thread.join(0.1)
            if not thread.is_alive():
                break
    assert seen[-1].kind == "job"
    assert {event.kind for event in seen} == {"job"}


def test_a_parser_goes_on_after_the_last_event():
    """The id of the last whole event is sent with the next connection, and half an event is dropped."""
    parser = Parser()
    assert parser.resume() == {}
    lines = [": connected", "", "id: a-1", "event: job", 'data: {"n": 1}', "", "id: a-2", "event: job"]
    assert [e for line in lines for e in parser.feed(line)] == [Event("job", {"n": 1}, "a-1")]
    assert parser.resume() == {"Last-Event-ID": "a-1"}
    assert list(parser.feed('data: {"n": 3}')) == []
    assert [parser.pause_s() for _ in range(3)] == [0.2, 0.5, 1.0]


def test_the_asynchronous_fleet_does_the_same(fleet, server, bundle):
    """A job is started, followed, paused, resumed and stopped without blocking the loop."""

    async def main():
        async with AsyncFleet(fleet.url) as there:
            job = await there.federate(
                model(), name="async", dataset="d", target={"versions": 2}, buffer_size=1
            )
            assert (await job.pause())["state"] == "paused"
            assert (await job.resume())["state"] == "running"
            await asyncio.to_thread(server.updates, "async", bundle.manifest.sizes, 2)
            states = [facts["state"] async for facts in job.follow(interval_s=0.05)]
            assert states[-1] == "ended"
            assert [v["version"] for v in await job.versions()] == [0, 1, 2]
            assert (await job.model("int8")).version == 2
            assert "async" in [one.name for one in await there.jobs()]
            assert (await there.health())["status"] == "ok"
            assert [d["device"] for d in await there.devices(q="dev-a")] == ["dev-a"]
            assert (await there.tag("dev-a", ["x"]))["tags"] == ["x"]
            with pytest.raises(FleetError, match="no job named none"):
                await there.job("none")

    asyncio.run(main())


def test_an_untrusted_name_is_escaped_in_html(fleet, bundle):
    """What a notebook shows of a job holds no markup of anybody's."""
    facts = fleet.federate(bundle, name="html", dataset="d").facts
    text = view.html({**facts, "reason": "<script>x</script>"}, [])
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_devices_are_shown_at_the_command_line(fleet, server):
    """`device list` and `device show` say what a device does and why not, and let none of its control characters out."""
    server.say("shown", "state", DeviceState("ready", 1))
    server.append(
        (
            "shown",
            "event:shown:task",
            Kind.EVENT,
            EventRecord(
                1.0, "task", "shown", "gone", encode(TaskStatus("declined", 1, "[red]\x1b[2Jno\x07"))
            ),
        )
    )
    until(
        lambda: len(fleet.device("shown")["timeline"]) == 2 if fleet.devices(q="shown") else None, "it spoke"
    )
    listed = fedfleet("device", "list", "--search", "shown", "--server", fleet.url).stdout
    shown = fedfleet("device", "show", "shown", "--server", fleet.url).stdout

    assert "shown" in listed
    assert "ready" in listed
    assert "[red]�[2Jno�" in shown
    assert "\x1b" not in shown + listed
    assert "birth" in shown


def test_the_sdk_says_why_a_device_does_not_train(fleet, server):
    """The sentences of the dashboard come both ways, and at the command line; so does the fleet at one look."""
    server.say("asked-about", "state", DeviceState("lost", 1))
    until(lambda: fleet.devices(q="asked-about"), "it spoke")
    (because,) = fleet.why("asked-about")
    assert because["text"].startswith("Its connection broke without a farewell")
    assert "without a farewell" in fedfleet("device", "show", "asked-about", "--server", fleet.url).stdout
    assert fleet.summary()["devices"]["states"]["lost"] >= 1

    async def main():
        async with AsyncFleet(fleet.url) as other:
            assert await other.why("asked-about") == [because]
            assert (await other.summary())["devices"]["total"] >= 1

    asyncio.run(main())
    with pytest.raises(FleetError, match="no device named nobody"):
        fleet.why("nobody")


def test_devices_are_paused_resumed_and_forgotten(fleet, server):
    """The SDK, both ways, and the commands do the same things to a device, and say who paused it."""
    server.say("ordered", "state", DeviceState("lost", 1))
    until(lambda: fleet.devices(q="ordered"), "it spoke")
    assert fleet.pause("ordered")["paused"]["by"] == "local"
    assert [d["device"] for d in fleet.devices(paused=True)] == ["ordered"]
    listed = fedfleet("device", "list", "--paused", "--server", fleet.url).stdout
    assert "paused by local" in listed

    async def main():
        async with AsyncFleet(fleet.url) as other:
            assert (await other.resume("ordered"))["paused"] is None
            assert (await other.pause("ordered"))["paused"] is not None

    asyncio.run(main())
    assert "may work again" in fedfleet("device", "resume", "ordered", "--server", fleet.url).stdout
    assert "is paused" in fedfleet("device", "pause", "ordered", "--server", fleet.url).stdout
    forgotten = fedfleet("device", "forget", "ordered", "--server", fleet.url, "--json").stdout
    assert json.loads(forgotten)["device"] == "ordered"
    gone = fedfleet("device", "forget", "ordered", "--server", fleet.url, code=1).stderr
    assert "no device named ordered" in gone


def test_a_login_is_kept_for_commands_and_the_sdk(server, tmp_path, monkeypatch):
    """After a login no server need be named; its token goes to no other server, and what cannot be is not kept."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    url, kept = f"http://127.0.0.1:{server.port}", tmp_path / "fedfleet" / "login.json"
    fedfleet("login", "--server", f"http://127.0.0.1:{free_port()}", code=1)
    assert "no such token" in fedfleet("login", "--server", url, "--token", "ff_a_b", code=1).stderr
    assert "not the URL of a server" in fedfleet("login", "--server", "nonsense", code=1).stderr
    assert not kept.exists()
    assert json.loads(fedfleet("login", "--server", url, "--json").stdout)["server"] == url
    assert kept.stat().st_mode & 0o777 == 0o600
    assert isinstance(json.loads(fedfleet("job", "list", "--json").stdout), list)
    with Fleet() as found:
        assert found.url == url
    account.save(account.Account(url, "ff_secret"))
    assert account.resolve(None, None) == (url, "ff_secret")
    assert account.resolve("http://elsewhere", None) == ("http://elsewhere", None)
    assert account.resolve(url, "") == (url, None)
    monkeypatch.setenv("FEDFLEET_TOKEN", "ff_env")
    assert account.resolve(None, None) == (url, "ff_env")
    monkeypatch.delenv("FEDFLEET_TOKEN")
    kept.write_text("{")
    assert "fedfleet logout removes it" in fedfleet("job", "list", code=1).stderr
    assert "logged out" in fedfleet("logout").stdout
    assert "nobody" in fedfleet("logout").stdout


def test_importing_the_sdk_loads_no_library():
    """Neither httpx, numpy, onnx, torch nor any server code is loaded before it is needed."""
    heavy = {"httpx", "numpy", "onnx", "torch", "pandas", "rich", "fastapi", "msgspec", "aggregator.engine"}
    code = f"import aggregator.sdk, sys; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_local_fleet_trains_and_leaves_nothing(tmp_path, monkeypatch):
    """A fleet on this machine trains on shards of one's own; leaving it ends all processes and deletes all files."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    rng = np.random.default_rng(0)
    shards = [Shard(rng.standard_normal((64, 2, 8)).astype(np.float32), np.arange(64) % 3) for _ in range(2)]
    with Fleet.local(data=shards, dataset="mine") as fleet:
        until(lambda: len(fleet.devices(state="ready")) == 2, "both devices are there", 60)
        job = fleet.federate(
            model(),
            name="local",
            dataset="mine",
            target={"versions": 1},
            buffer_size=1,
            retry_s=1,
            training={"steps": 2},
        )
        facts = job.wait(timeout_s=90)
        assert facts["reason"] == "reached 1 versions"
        assert fleet.updates(verdict="accepted")
    assert processes(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_local_fleet_that_cannot_be_says_why(tmp_path, monkeypatch):
    """Unknown data, no devices and shards that do not go together are refused, and leave nothing."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    x = np.zeros((4, 2), np.float32)
    for arguments, words in (
        ({"data": "mnist"}, "'watch'"),
        ({"devices": 0}, "1 to 64"),
        ({"data": []}, "0 shards"),
        ({"data": [Shard(x), Shard(x, np.zeros(4, int))]}, "some have none"),
        ({"data": [(x, None)]}, r"data\[0\] is of type tuple"),
        ({"data": [Shard(x, np.zeros(3, int))]}, "4 samples in x and 3 in y"),
        ({"data": [Shard(x * np.nan)]}, "has x that is not finite"),
        ({"data": [Shard(x, np.array(["a"] * 4))]}, "has y of <U1"),
        ({"data": [Shard(x), Shard(x[:, :1])]}, "several shapes"),
        ({"data": [Shard(x)], "dataset": "My Data"}, "dataset 'My Data' is not valid"),
    ):
        with pytest.raises(FleetError, match=words) as error:
            Fleet.local(**arguments)
        assert error.value.code == "bad_argument"
    assert list(tmp_path.iterdir()) == []
