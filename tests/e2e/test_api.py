"""The HTTP API of a real aggregator process: what it answers, and what it says when it refuses."""

import hashlib
import io
import json
import zipfile

import numpy as np
import onnxruntime
import pytest

from edge_client.bundle import TRAIN
from edge_client.wire.limits import FRAME_BYTES_MAX
from edge_client.wire.messages import DeviceState
from tests.e2e.conftest import until
from tests.e2e.server import TRACEBACK, Aggregator, refused, small_bundle

HOSTILE = ("..%2F..%2Ffleet.db", "x", "A" * 64, "0" * 63, "0" * 4000, "%00", "%2e%2e", "0" * 64)


@pytest.fixture(scope="module")
def bundle():
    return small_bundle()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One aggregator for all tests here; each test has a job of its own."""
    server = Aggregator(tmp_path_factory.mktemp("api") / "state")
    server.start()
    try:
        yield server
        assert server.stop() == 0
        assert TRACEBACK not in server.log.read_text()
    finally:
        server.close()


@pytest.fixture(scope="module")
def api(server):
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")
def digest(api, bundle):
    return api.post("/bundles", content=bundle.to_bytes()).json()["digest"]


@pytest.fixture(scope="module")
def trained(server, api, bundle, digest):
    """A job with versions 0 to 12, of which 1 to 3 are not stored any more."""
    spec = {"name": "trained", "bundle": digest, "dataset": "d", "buffer_size": 1, "staleness_max": 0}
    assert api.post("/jobs", json=spec).status_code == 201
    server.updates("trained", bundle.manifest.sizes, 12)
    until(lambda: api.get("/jobs/trained").json()["version"] == 12, "twelve versions")
    return "/jobs/trained"


def spec(name, digest, **fields):
    return {"name": name, "bundle": digest, "dataset": "d", **fields}


def test_health_counts_jobs_and_devices(api):
    """The health of an aggregator without a bridge names no counters of one."""
    health = api.get("/health").json()

    assert health["status"] == "ok"
    assert health["bridge"] is None


def test_a_bundle_comes_back_as_its_manifest(api, bundle, digest):
    """The same bundle twice has one digest, and its manifest and size can be asked for."""
    again = api.post("/bundles", content=bundle.to_bytes())
    shown = api.get(f"/bundles/{digest}").json()

    assert (again.status_code, again.json()["digest"]) == (201, digest)
    assert shown["size"] == len(bundle.to_bytes())
    assert shown["manifest"]["data"] == {"shape": [2, 8], "n_classes": 3}


def test_events_of_a_real_server_are_followed_and_resumed(api, digest):
    """A viewer over TCP is told of changes as they come, and with Last-Event-ID of those it missed."""
    seen = []
    with api.stream("GET", "/events", params={"kinds": "job"}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = response.iter_lines()
        assert next(lines) == ": connected"
        api.post("/jobs", json=spec("told", digest))
        for line in lines:
            seen.append(line)
            if line.startswith("data:"):
                break
    event_id = next(line for line in seen if line.startswith("id: ")).removeprefix("id: ")
    assert json.loads(seen[-1].removeprefix("data: ")) == {
        "name": "told", "state": "running", "reason": "", "promoted": None,
    }  # fmt: skip

    api.post("/jobs/told/stop")
    resumed = {"Last-Event-ID": event_id}
    with api.stream("GET", "/events", params={"kinds": "job"}, headers=resumed) as response:
        data = next(line for line in response.iter_lines() if line.startswith("data:"))
    told = json.loads(data.removeprefix("data: "))
    assert (told["name"], told["state"]) == ("told", "ended")
    refused(api.get("/events", params={"kinds": "job,x"}), 422, "bad_request", "x", "rejection")


def damaged(raw, name):
    """A bundle one of whose members has another last byte, the archive's own checksums repaired."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.namelist():
            data = old.read(entry)
            new.writestr(entry, data[:-1] + bytes([data[-1] ^ 1]) if entry == name else data)
    return out.getvalue()


def test_what_is_not_a_sound_bundle_is_refused_and_not_stored(server, api, bundle, digest):
    """I6, I11: empty, foreign, cut, encrypted and altered bundles are refused in words, and leave no blob."""
    raw = bundle.to_bytes()
    encrypted = bytearray(raw)
    encrypted[raw.rindex(b"PK\x01\x02") + 8] |= 0x41
    altered = damaged(raw, TRAIN)
    bodies = (b"", b"PK\x03\x04 but no more", raw[: len(raw) // 2], bytes(encrypted), altered)

    for body in bodies[:3]:
        refused(api.post("/bundles", content=body), 422, "bad_bundle", "not a bundle")
    refused(api.post("/bundles", content=bytes(encrypted)), 422, "bad_bundle")
    said = refused(api.post("/bundles", content=altered), 422, "bad_bundle", TRAIN, "digest")
    refused(api.post("/bundles", content=bytes(FRAME_BYTES_MAX + 1)), 413, "too_large", str(FRAME_BYTES_MAX))

    assert str(server.temporary) not in said
    blobs = {path.name for path in (server.directory / "blobs").rglob("*")}
    assert blobs.isdisjoint(hashlib.sha256(body).hexdigest() for body in bodies)
    assert {path.stem for path in server.temporary.glob("*/*.bundle")} <= {digest}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_digest_of_no_bundle_is_not_found(server, api, name):
    """I6: a digest from a stranger finds a bundle or nothing, and never names a file."""
    refused(api.get(f"/bundles/{name}"), 404, "no_route" if "%2F" in name else "not_found")
    assert not list(server.directory.glob("*.bundle"))


@pytest.mark.parametrize("name", ["../fleet.db", "/etc/passwd", "", "x" * 60_000, "é\u0000", "0" * 64])
def test_a_job_on_no_bundle_is_not_found(api, name):
    """I6: the digest in a job spec is judged like one in a path."""
    refused(api.post("/jobs", json=spec("no-bundle", name)), 404, "not_found", "no bundle")
    refused(api.get("/jobs/no-bundle"), 404, "not_found")


@pytest.mark.usefixtures("trained")
def test_a_blob_that_is_no_bundle_is_not_found(server, api, digest):
    """A stored model or manifest does not pass for a bundle."""
    others = [path.name for path in (server.directory / "blobs").glob("??/*") if path.name != digest]
    assert others
    for other in others[:3]:
        refused(api.get(f"/bundles/{other}"), 404, "not_found")
        refused(api.post("/jobs", json=spec("no-bundle", other)), 404, "not_found")


def test_a_job_is_started_shown_and_stopped(api, digest):
    """A job lives from 201 to `ended`; asked to stop again it says that it has ended."""
    started = api.post("/jobs", json=spec("one", digest, end={"versions_max": 5}))

    assert started.status_code == 201
    assert started.json() == api.get("/jobs/one").json()
    assert started.json()["state"] == "running"
    assert started.json()["spec"]["end"]["versions_max"] == 5
    assert "one" in [job["name"] for job in api.get("/jobs").json()["jobs"]]
    assert api.post("/jobs/one/stop").json()["state"] == "ended"
    refused(api.post("/jobs/one/stop"), 409, "ended", "one", "stopped by a person")


def test_a_name_is_used_once_and_its_job_goes_on(api, digest):
    """I12: a second job of a name is refused, and the first can still be stopped."""
    assert api.post("/jobs", json=spec("twice", digest)).status_code == 201
    refused(api.post("/jobs", json=spec("twice", digest)), 409, "exists", "twice", "another name")

    assert api.post("/jobs/twice/stop").json()["state"] == "ended"


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize(
    "call",
    ["get /jobs/none", "post /jobs/none/stop", "get /jobs/none/versions", "get /jobs/none/model"],
)
def test_an_unknown_job_names_those_there_are(api, call):
    """Whoever mistypes a job's name is told the names."""
    method, path = call.split()
    refused(api.request(method, path), 404, "not_found", "none", "trained")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"bufer_size": 3}, ["bufer_size", "did you mean buffer_size?"]),
        ({"training": {"step": 3}}, ["training.step", "did you mean training.steps?"]),
        ({"end": {"colour": 3}}, ["end.colour", "versions_max"]),
        ({"buffer_size": 0}, ["buffer_size", "from 1"]),
        ({"buffer_size": "3"}, ["buffer_size"]),
        ({"name": "Not Valid"}, ["job name", "a-z"]),
        ({"norm_max": 1e6, "buffer_size": 100_000, "weighting": "samples"}, ["overflow", "norm_max"]),
    ],
)
def test_a_spec_that_cannot_be_names_the_field(api, digest, fields, words):
    """I2: a typo is answered with the nearest field, a value out of range with its range."""
    refused(api.post("/jobs", json=spec("bad", digest) | fields), 422, "bad_spec", *words)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"null", b'{"name": 1e999}'])
def test_a_body_that_is_no_spec_is_refused(api, body):
    """I11: bytes that are no JSON object are refused in words."""
    refused(api.post("/jobs", content=body), 422, "bad_spec")
    refused(api.post("/jobs", content=b" " * 70_000), 413, "too_large")


@pytest.mark.parametrize(
    "fields",
    [
        {"privacy": {"epsilon": 1}},
        {"secure_aggregation": True},
        {"signing": None},
        {"rollout": "staged"},
        {"personalization": {}},
    ],
)
def test_what_is_not_built_is_unsupported(api, digest, fields):
    """I13: asking for a protection or a strategy that is not built starts no job without it."""
    refused(api.post("/jobs", json=spec("wish", digest, **fields)), 422, "unsupported", *fields)
    refused(api.get("/jobs/wish"), 404, "not_found")


def test_versions_tell_what_made_them(api, trained):
    """Each version says what it was made of, what devices pull of it and lack, and whether its model is stored."""
    versions = api.get(f"{trained}/versions").json()["versions"]

    assert [version["version"] for version in versions] == list(range(13))
    assert [version["updates"] for version in versions] == [0] + [1] * 12
    assert [v["version"] for v in versions if not v["stored"]] == [1, 2, 3]
    assert api.get(f"{trained}/versions/12").json() == versions[12]
    assert all(0 < v["bytes_delta"] < v["bytes_keyframe"] for v in versions[1:])
    assert all(v["lossless"] or v["lag_norm"] > 0 for v in versions)
    job = api.get(trained).json()
    assert (job["lag_norm"], job["downlink_mode"]) == (versions[12]["lag_norm"], "lossless")
    assert job["bytes_per_version"] == pytest.approx(sum(v["bytes_delta"] for v in versions) / 12)
    for name in ("residual_norm", "density", "uplink_bytes_s"):
        assert job[name] == next((v[name] for v in reversed(versions) if v["density"] is not None), None)
    refused(api.get(f"{trained}/versions/13"), 404, "not_found", "0 to 12")
    refused(api.get(f"{trained}/versions/-1"), 404, "not_found", "0 to 12")
    refused(api.get(f"{trained}/versions/last"), 422, "bad_request", "number", "integer")


@pytest.mark.parametrize("kind", ["fp32", "int8"])
def test_a_model_runs_in_stock_onnx_runtime(api, trained, kind):
    """I5: the newest model, in either format, gives three scores for any number of samples."""
    response = api.get(f"{trained}/model", params={"format": kind})
    session = onnxruntime.InferenceSession(response.content, providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {"x": np.zeros((5, 2, 8), np.float32)})

    assert response.headers["X-Fedfleet-Version"] == "12"
    assert scores.shape == (5, 3)


def test_a_model_that_is_not_there_is_told_from_one_that_never_was(api, trained):
    """I3: a version that was never made is 404, one whose model retention has deleted is 410."""
    refused(api.get(f"{trained}/model", params={"version": 99}), 404, "not_found", "99", "0 to 12")
    refused(api.get(f"{trained}/model", params={"version": -1}), 404, "not_found")
    refused(api.get(f"{trained}/model", params={"version": 2}), 410, "not_stored", "0, 4, 5")
    refused(api.get(f"{trained}/model", params={"format": "fp64"}), 422, "bad_request", "format", "int8")
    assert api.get(f"{trained}/model", params={"version": 4}).headers["X-Fedfleet-Version"] == "4"


def test_devices_are_listed_filtered_and_shown(server, api):
    """Devices appear with their state once they spoke; an unknown one and an unknown state are refused."""
    server.say("watch-1", "state", DeviceState("ready", 1))
    server.say("watch-2", "state", DeviceState("lost", 1))
    found = until(
        lambda: [d for d in api.get("/devices").json()["devices"] if d["device"] == "watch-2"], "spoke"
    )
    ready = api.get("/devices", params={"state": "ready"}).json()["devices"]

    assert found[0]["state"] == "lost"
    assert {device["state"] for device in ready} == {"ready"}
    assert api.get("/devices/watch-1").json()["conn_seq"] == 1
    refused(api.get("/devices/watch-3"), 404, "not_found", "watch-3")
    refused(api.get("/devices", params={"state": "asleep"}), 422, "bad_request", "state", "disconnected")


def test_damaged_storage_is_told_without_its_insides(server, api, digest):
    """I3, I5: a model whose bytes are not those of its digest is never served, and no file name gets out."""
    assert api.post("/jobs", json=spec("damaged", digest)).status_code == 201
    before = api.get("/jobs/damaged/model").content
    keyframes = [p for p in (server.directory / "blobs").glob("??/*") if len(p.read_bytes()) < 400]
    originals = {path: path.read_bytes() for path in keyframes}
    try:
        for path, data in originals.items():
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        said = refused(api.get("/jobs/damaged/model"), 500, "internal")
    finally:
        for path, data in originals.items():
            path.write_bytes(data)

    assert "blob" not in said
    assert str(server.directory) not in said
    assert api.get("/jobs/damaged/model").content == before


def test_every_error_is_a_problem_document(api):
    """RFC 9457: the framework's own refusals have the same form as ours."""
    refused(api.get("/nope"), 404, "no_route", "GET /api/v1/nope")
    response = api.delete("/jobs")
    refused(response, 405, "bad_method", "DELETE")
    assert response.headers["allow"]


def npz(**arrays):
    """The bytes of an `.npz` file."""
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def test_the_server_evaluates_versions_on_the_test_set_of_a_job(server, api, bundle, digest):
    """What a person uploaded is evaluated on, version by version, and says nothing about the devices' hold-outs."""
    x = np.random.default_rng(0).standard_normal((30, 2, 8)).astype(np.float32)
    stored = api.post("/testsets", content=npz(x=x, y=np.arange(30) % 3)).json()["digest"]
    assert api.post("/jobs", json=spec("measured", digest, testset=stored, buffer_size=1)).status_code == 201
    until(lambda: api.get("/jobs/measured").json()["testset"], "version 0 to be evaluated")
    server.updates("measured", bundle.manifest.sizes, 2)

    def newest():
        figures = api.get("/jobs/measured").json()["testset"]
        return figures if figures["version"] == 2 else None

    figures = until(newest, "version 2 to be evaluated")
    assert 0 <= figures["accuracy"] <= 1
    assert figures["loss"] > 0
    assert api.get("/jobs/measured").json()["accuracy"] is None


def test_a_test_set_that_cannot_be_used_is_refused_before_the_job_starts(api, digest):
    """What is not an .npz with samples is refused when it comes, what does not fit the bundle when the job starts."""
    for body, word in (
        (b"no", "not a readable .npz"),
        (npz(y=np.zeros(3)), "no array 'x'"),
        (npz(x=np.zeros((0, 2))), "no samples"),
    ):
        refused(api.post("/testsets", content=body), 422, "bad_testset", word)
    x = np.zeros((4, 2, 8), dtype=np.float32)
    for arrays, word in (
        ({"x": x[:, :1]}, "x is"),
        ({"x": x}, "y is missing"),
        ({"x": x, "y": np.full(4, 9)}, "label"),
    ):
        stored = api.post("/testsets", content=npz(**arrays)).json()["digest"]
        refused(api.post("/jobs", json=spec("unfit", digest, testset=stored)), 422, "bad_testset", word)
    refused(api.post("/jobs", json=spec("unfit", digest, testset="0" * 64)), 404, "not_found", "no test set")


def test_participation_says_who_contributed_and_how_evenly(server, api, bundle, digest):
    """Updates by device with their share, and the Gini coefficient over all that took part."""
    assert api.post("/jobs", json=spec("shared", digest, buffer_size=2)).status_code == 201
    server.updates("shared", bundle.manifest.sizes, 4)
    until(lambda: api.get("/jobs/shared").json()["version"] == 2, "two versions")

    found = api.get("/jobs/shared/participation").json()

    assert found == {
        "gini": 0.0,
        "updates": 4,
        "devices": [{"device": "dev-a", "updates": 4, "share": 1.0, "rejected": {}}],
    }
