"""`fedfleet doctor --config` names each kind of damage of a device's state, and changes nothing."""

import hashlib
import json

import pytest
from click.testing import CliRunner

from edge_client import checkup
from edge_client.doctor import doctor
from edge_client.events import JobRow
from edge_client.finding import Finding
from edge_client.state_check import examine
from edge_client.store import NewUpdate, open_store
from edge_client.wire import frame
from edge_client.wire.messages import Evaluation, Metrics, encode
from edge_client.wire.topics import Uid
from tests.unit.edge_client.offers import offer

DATA = b"a model" * 100
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def folder(tmp_path):
    """A device's state with a job, an update, a blob and a model."""
    store = open_store(tmp_path)
    store.save_job(JobRow(offer(), 0, 1))
    uid = Uid("dev", "job", store.epoch, store.next_seq)
    body = frame.encode(frame.Kind.UPDATE, b"values", codec=1)
    store.add_update(NewUpdate(uid, body, encode(Evaluation(1, Metrics(1, 1.0, 0.0))), 1, b"", b""))
    store.close()
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / DIGEST).write_bytes(DATA)
    (tmp_path / "blobs" / ("0" * 64 + ".part")).write_bytes(b"half")
    (tmp_path / "jobs" / "job").mkdir(parents=True)
    (tmp_path / "jobs" / "job" / "model.grid").write_bytes(frame.encode(frame.Kind.KEYFRAME, b"grid"))
    return tmp_path


def problems(folder):
    return {finding.what: finding.detail for finding in examine(folder) if not finding.ok}


def test_a_sound_state_has_no_problem(folder):
    """Rows, blobs and models are looked at; a part that is being pulled is none of them."""
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    findings = {finding.what: finding.detail for finding in examine(folder)}
    assert problems(folder) == {}
    assert findings["outbox"] == "2 sound rows"
    assert findings["blobs"] == "1 looked at"
    assert {p: p.read_bytes() for p in folder.rglob("*") if p in before} == before


def test_a_device_that_never_ran_is_well(tmp_path):
    """No state is no damage."""
    assert problems(tmp_path / "state") == {}


def test_each_damage_is_named(folder):
    """A row, an offer, a blob and a model that are damaged are each named; what was put aside is only noted."""
    store = open_store(folder)
    uid = str(store.rows()[0].uid)
    store._db.execute("UPDATE outbox SET body = ? WHERE uid = ?", (b"junk", uid))
    store._db.execute("UPDATE jobs SET offer = ?", (b"{",))
    store._db.execute("INSERT INTO damaged VALUES (0, 'outbox 7', 'no uid', 'x')")
    store.close()
    (folder / "blobs" / DIGEST).write_bytes(DATA[:-1])
    (folder / "jobs" / "job" / "model.grid").write_bytes(b"junk")
    (folder / "state.db.damaged-1").write_bytes(b"")
    noted = {finding.what for finding in examine(folder) if finding.ok}
    assert {"row outbox 7", "file state.db.damaged-1"} <= noted
    assert set(problems(folder)) == {
        f"outbox row {uid}", "job job", f"blob {DIGEST[:12]}", "model of job job"
    }  # fmt: skip


def test_a_damaged_page_is_named(folder):
    """SQLite's own check is run over the database."""
    path = folder / "state.db"
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    path.write_bytes(data)
    assert list(problems(folder)) == ["state.db"]


def test_a_newer_schema_is_named(folder):
    """A database of newer software is not called damaged, but cannot be used."""
    store = open_store(folder)
    store._db.execute("PRAGMA user_version = 99")
    store.close()
    assert "schema 99" in problems(folder)["state.db"]


def test_the_command_tells_by_its_exit_code(tmp_path, monkeypatch):
    """Exit code 0 for a sound state, 1 for a problem, 2 for neither or both of the options."""
    config = tmp_path / "device.toml"
    config.write_text(
        '[device]\nid = "d"\nstate_dir = "state"\n[broker]\nhost = "127.0.0.1"\nport = 9\n'
        '[data.d]\npath = "x.npz"\nshape = [1]\n'
    )
    monkeypatch.setattr(checkup, "examine", lambda _: [Finding("broker", ok=True, detail="")])
    run = CliRunner().invoke
    assert run(doctor, ["--config", str(config)]).exit_code == 0
    state = tmp_path / "state"
    open_store(state).close()
    (state / "blobs").mkdir()
    (state / "blobs" / DIGEST).write_bytes(b"damaged")
    result = run(doctor, ["--config", str(config), "--json"])
    assert result.exit_code == 1
    assert [f["what"] for f in json.loads(result.output) if not f["ok"]] == [f"blob {DIGEST[:12]}"]
    assert run(doctor, []).exit_code == 2
    assert run(doctor, ["--config", str(config), "--state-dir", str(state)]).exit_code == 2
