"""`fedfleet doctor` names each kind of damage of a server's state, and changes nothing."""

import asyncio
import contextlib
import sqlite3

import pytest

from aggregator.doctor import examine
from broker_bridge.ports.open import open_ports
from edge_client.finding import NothingThereError
from tests.unit.aggregator.conftest import Site


@pytest.fixture
def state(tmp_path, bundle):
    """The state of a server with a job of two versions, as (directory, job)."""

    async def main():
        ports = open_ports(f"sqlite:///{tmp_path}/fleet.db")
        site = Site(ports, tmp_path)
        await site.engine.load()
        job = await site.start_job(bundle, downlink_density=0.2)
        for seed in range(6):
            await site.update(f"dev-{seed % 3}", seed)
            await site.step()
        site.clock.now += 10
        await site.engine._save_memo()
        await ports.close()
        return job

    return tmp_path, asyncio.run(main())


def problems(folder):
    return {finding.what: finding.detail for finding in examine(folder) if not finding.ok}


def blob(folder, digest):
    return folder / "blobs" / digest[:2] / digest


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_sound_state_has_no_problem_and_stays_as_it_is(state):
    """Every part is looked at and said to be well; no file is changed."""
    folder, job = state
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.suffix != ".db-shm"}
    findings = examine(folder)
    assert [f for f in findings if not f.ok] == []
    assert {"database fleet.db", "blobs", "job job", "memo", "log"} <= {f.what for f in findings}
    (said,) = [f.detail for f in findings if f.what == "job job"]
    assert said == f"running, versions 0 to {job.version} in one chain"
    assert {p: p.read_bytes() for p in before} == before


def test_a_deleted_job_is_no_problem(state):
    """Of a job that was deleted the name alone remains, and nothing is missing."""
    folder, _ = state

    async def main():
        ports = open_ports(f"sqlite:///{folder}/fleet.db")
        site = Site(ports, folder)
        await site.engine.load()
        await site.engine.end("job", "over")
        await site.step()
        await site.engine.delete("job")
        await ports.close()

    asyncio.run(main())
    assert problems(folder) == {}
    assert "deleted; its name stays taken" in [finding.detail for finding in examine(folder)]


@pytest.mark.parametrize("part", ["keyframe", "lag", "manifest", "parent", "bundle"])
def test_a_damaged_and_a_missing_blob_are_named_with_their_job(state, part):
    """Whatever the newest version or its chain needs is missed by name."""
    folder, job = state
    digest = {
        "keyframe": job.manifest.keyframe.digest,
        "lag": job.manifest.lag.digest,
        "manifest": job.digest,
        "parent": job.manifest.parent,
        "bundle": job.bundle_ref.digest,
    }[part]
    path = blob(folder, digest)
    flip(path)
    found = problems(folder)
    assert set(found) == {f"blob {digest[:12]}", "job job"}
    assert digest[:12] in found["job job"]
    assert ("upload the same again" in found["job job"]) == (part == "bundle")
    assert path.exists()
    path.unlink()
    assert set(problems(folder)) == {"job job"}


def change(folder, statement, *values):
    with contextlib.closing(sqlite3.connect(folder / "fleet.db")) as connection, connection:
        assert connection.execute(statement, values).rowcount


def test_a_damaged_head_is_named(state):
    """A cell that is not of its form is said to be so, by its key."""
    folder, _ = state
    change(folder, "UPDATE heads SET value = ? WHERE key = 'version/job'", b"{")
    assert "version/job" in problems(folder)["job job"]
    change(folder, "UPDATE heads SET value = ? WHERE key = 'memo'", b"0" * 64)
    assert "the log is read again" in problems(folder)["memo"]


def test_a_damaged_log_entry_is_named(state):
    """An entry that cannot be decoded is named by its uid, and counted."""
    folder, _ = state
    with contextlib.closing(sqlite3.connect(folder / "fleet.db")) as connection:
        uid = connection.execute("SELECT uid FROM entries WHERE kind = 1 LIMIT 1").fetchone()[0]
    change(folder, "UPDATE entries SET body = ? WHERE uid = ?", b"\x00", uid)
    found = problems(folder)
    assert set(found) == {f"log entry {uid}", "log"}
    assert "1 damaged" in found["log"]


def test_a_damaged_page_and_a_newer_schema_are_named(state):
    """SQLite's own check is run, and a file of other software is not judged by this one's rules."""
    folder, _ = state
    with contextlib.closing(sqlite3.connect(folder / "fleet.db")) as connection:
        connection.execute("PRAGMA user_version = 99")
    assert "schema 99" in problems(folder)["database fleet.db"]
    path = folder / "fleet.db"
    data = bytearray(path.read_bytes())
    data[4096:] = bytes(len(data) - 4096)
    path.write_bytes(data)
    assert "database fleet.db" in problems(folder)


def test_a_directory_without_a_server_is_said_to_be_one(tmp_path):
    """A wrong or missing directory is not taken for a healthy one, nor for a damaged one."""
    with pytest.raises(NothingThereError, match=r"no server has run here: there is no fleet\.db"):
        examine(tmp_path)
    with pytest.raises(NothingThereError, match="there is no such directory"):
        examine(tmp_path / "nosuch")


def test_a_copy_put_aside_is_a_problem_only_while_its_blob_is_missed(state):
    """What is sound again, or of no use to anybody, is noted with leave to delete the damaged copy."""
    folder, job = state
    digest = job.manifest.keyframe.digest
    path, aside = blob(folder, digest), folder / "blobs" / "damaged"
    sound = path.read_bytes()
    aside.mkdir()
    path.rename(aside / digest)
    (aside / ("0" * 64)).write_bytes(b"of a version that is gone")
    assert set(problems(folder)) == {f"blob {digest[:12]}", "job job"}
    path.write_bytes(sound)
    assert problems(folder) == {}
    notes = [f.detail for f in examine(folder) if "may be deleted" in f.detail]
    assert [("is sound again" in note, "is not needed" in note) for note in notes] == [
        (False, True),
        (True, False),
    ]
