"""The state database: transactions of I4, names of I12, bounds of I6."""

import sqlite3

import pytest

from edge_client import store as state
from edge_client.events import JobRow
from edge_client.layout import STEPS
from edge_client.schema import upgrade
from edge_client.store import NewUpdate, StoreError, open_store, read_report
from edge_client.wire.messages import BlobRef, DataSchema, Offer
from edge_client.wire.topics import Uid
from tests.unit.edge_client.offers import finished


def offer(job="job"):
    """An offer of a small job."""
    return Offer(job, "data", DataSchema((2,), 2), BlobRef("0" * 64, 10))


@pytest.fixture
def store(tmp_path):
    """An open store with one job."""
    opened = open_store(tmp_path)
    opened.save_job(JobRow(offer(), None, opened.next_ask))
    yield opened
    opened.close()


def reopened(store):
    """What a process finds that starts after this one was killed."""
    return open_store(store.path.parent)


def test_update_survives_a_crash_with_seq_residuals_and_ask(store):
    """I4: after a crash the outbox row, the counter, the held version and the next ask are all there."""
    first = store.jobs()[0].ask
    uid = finished(store)
    after = reopened(store)

    assert [r.uid for r in after.rows()] == [uid, Uid("dev", "job", store.epoch, uid.seq + 1)]
    assert after.body(uid) == b"framea"
    assert after.next_seq == uid.seq + 2
    assert after.jobs()[0].held == 3
    assert after.jobs()[0].ask == store.next_ask - 1 > first
    assert after.residual("job") is None
    after.close()


def test_second_unreceipted_update_of_a_job_is_refused_whole(store):
    """I4: at most one unreceipted update per job; the refused transaction changes nothing."""
    uid = finished(store)

    with pytest.raises(StoreError, match="UNIQUE"):
        finished(store, text=b"b")

    assert store.next_seq == uid.seq + 2
    assert len(store.rows()) == 2


@pytest.mark.parametrize(
    ("verdict", "code", "residual"),
    [
        ("accepted", "", b"accepteda"),
        ("rejected", "stale", b"kepta"),
        ("rejected", "resync", b"kepta"),
        ("rejected", "norm", None),
    ],
)
def test_verdict_picks_the_residual(store, verdict, code, residual):
    """I4: accepted installs what was not sent, a stale base keeps all mass, other refusals change nothing."""
    uid = finished(store)

    assert store.settle(uid, verdict, code, 0.0).uid == uid
    assert store.residual("job") == residual
    assert (store.jobs()[0].held is None) == (code == "resync")
    assert store.settle(uid, "accepted", "", 0.0) is None  # a duplicate of the receipt
    assert store.residual("job") == residual


def test_seq_is_never_reused(store):
    """I12: a uid that was used, settled and forgotten is refused, also after the job is removed."""
    uid = finished(store)
    store.settle(uid, "accepted", "", 0.0)
    store.remove_job("job")

    with pytest.raises(StoreError, match="reuse"):
        store.add_update(NewUpdate(uid, b"x", b"{}", 1, b"", b""))
    assert store.next_seq > uid.seq


def test_oldest_evaluations_go_first_and_updates_never(store, monkeypatch):
    """I6: unsent evaluations are bounded by rows and bytes; updates are not dropped for them."""
    monkeypatch.setattr(state, "EVALUATION_ROWS_MAX", 2)
    uids = []
    for name in ("a", "b", "c"):
        store.save_job(JobRow(offer(name), None, store.next_ask))
        uids.append(finished(store, name))

    left = [(r.uid.job, r.kind) for r in store.rows()]
    assert left == [
        ("a", "update"),
        ("b", "update"),
        ("b", "evaluation"),
        ("c", "update"),
        ("c", "evaluation"),
    ]

    monkeypatch.setattr(state, "EVALUATION_BYTES_MAX", 1)
    store.save_job(JobRow(offer("d"), None, store.next_ask))
    finished(store, "d")
    assert [r.kind for r in store.rows()] == ["update"] * 4


def test_published_rows_outlive_the_end_of_their_job(store):
    """I4: dropping what nobody has seen leaves a published update waiting for its verdict."""
    uid = finished(store)
    store.mark_published(uid)
    store.drop_unpublished("job")

    assert [r.uid for r in store.rows()] == [uid]
    store.remove_job("job")
    assert store.rows() == []
    assert store.jobs() == []


def test_damaged_database_is_put_aside_and_a_new_epoch_begins(tmp_path):
    """I12: a damaged file is kept for a look, the device goes on, and can never reuse its old names."""
    first = open_store(tmp_path)
    epoch = first.epoch
    first.close()
    path = tmp_path / state.FILE
    path.write_bytes(b"not a database" * 100)
    second = open_store(tmp_path)

    assert second.epoch != epoch
    assert (tmp_path / f"{state.FILE}.damaged-1").read_bytes().startswith(b"not a database")
    second.close()


def test_newer_schema_is_refused_untouched(tmp_path):
    """A database of newer software is an error that says so, not damage."""
    open_store(tmp_path).close()
    raw = sqlite3.connect(tmp_path / state.FILE)
    raw.execute("PRAGMA user_version = 99")
    raw.close()

    with pytest.raises(StoreError, match="schema 99"):
        open_store(tmp_path)


def test_runs_are_counted_across_restarts(store):
    """Births and status revisions of a later start are higher than those of an earlier one, by room for many."""
    first = store.begin_run()
    after = reopened(store)
    assert after.begin_run() - first == 1 << state.RUN_BITS
    after.close()


def test_numbers_outgrow_those_of_a_lost_database(tmp_path, monkeypatch):
    """I12: a server that remembers a card's births and asks listens to the card that replaces it."""
    monkeypatch.setattr(state.time, "time", lambda: 1.8e9)
    old = open_store(tmp_path / "old")
    last = [old.begin_run() for _ in range(20)][-1]
    for _ in range(1000):
        old.save_job(JobRow(offer(), None, old.next_ask))
    monkeypatch.setattr(state.time, "time", lambda: 1.8e9 + 3600)
    new = open_store(tmp_path / "new")

    assert old.next_ask < new.next_ask
    assert last < new.begin_run() < 1 << 53
    old.close()
    new.close()


def test_report_reads_while_the_daemon_writes(store):
    """`device status` reads the state of a running daemon without changing it."""
    uid = finished(store)
    report = read_report(store.path.parent)

    assert report["outbox"][0]["uid"] == str(uid)
    assert report["jobs"][0]["job"] == "job"


def test_report_without_state_says_so(tmp_path):
    """A configuration whose daemon never ran is named as such."""
    with pytest.raises(StoreError, match="no state yet"):
        read_report(tmp_path)


def test_evaluations_are_read_a_page_at_a_time(store):
    """I6: what a start takes into memory does not grow with the outbox."""
    body = b"{}"
    with store._change("fill"):
        for seq in range(1, 8):
            store._insert(Uid("dev", "old", store.epoch, seq), "evaluation", body)
        store._insert(Uid("dev", "old", store.epoch, 8), "update", body, (b"", b""))
    assert [row.uid.seq for row in store.updates()] == [8]
    assert [row.uid.seq for row in store.evaluations(0, 3)] == [1, 2, 3]
    assert [row.uid.seq for row in store.evaluations(6, 3)] == [7]


def test_a_row_that_cannot_be_read_is_put_aside_and_blocks_nothing(store):
    """I6: a damaged name or offer is said once, kept for a look, and does not stop the daemon or the job."""
    uid = finished(store)
    store._db.execute("UPDATE outbox SET uid = 'junk' WHERE kind = 'update'")
    store._db.execute("INSERT INTO jobs (job, offer, ask) VALUES ('bad', '{', 1)")
    assert [row.offer.job for row in store.jobs()] == ["job"]
    assert store.updates() == []
    assert [row.kind for row in store.rows()] == ["evaluation"]
    kept = store._db.execute("SELECT source, body FROM damaged ORDER BY source").fetchall()
    assert kept == [("jobs bad", "{"), (f"outbox {uid.seq}", b"framea")]
    finished(store, text=b"b")  # the job goes on
    after = reopened(store)
    assert [row.offer.job for row in after.jobs()] == ["job"]
    assert len(after.updates()) == 1
    after.close()


def test_rows_put_aside_are_bounded(store):
    """I6: a card that keeps damaging rows does not fill up with them."""
    for seq in range(state.DAMAGED_ROWS_MAX + 5):
        store._db.execute("INSERT INTO jobs (job, offer, ask) VALUES (?, '{', 1)", (f"bad-{seq:03}",))
    store.jobs()
    kept = store._db.execute("SELECT source FROM damaged ORDER BY rowid").fetchall()
    assert len(kept) == state.DAMAGED_ROWS_MAX
    assert kept[-1] == (f"jobs bad-{state.DAMAGED_ROWS_MAX + 4:03}",)


def test_a_database_of_the_first_layout_is_upgraded_with_its_rows(tmp_path):
    """I4: what a device held before its software was updated is there afterwards."""
    connection = sqlite3.connect(tmp_path / "state.db", isolation_level=None)
    upgrade(connection, STEPS[:1])
    connection.close()
    store = open_store(tmp_path)
    epoch = store.epoch
    uid = finished(store)
    store._db.execute("DROP TABLE damaged")
    store._db.execute("PRAGMA user_version = 1")
    store.close()
    after = open_store(tmp_path)
    assert after.epoch == epoch
    assert after.updates()[0].uid == uid
    assert after._db.execute("SELECT count(*) FROM damaged").fetchone() == (0,)
    after.close()
