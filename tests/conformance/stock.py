"""A real daemon with finished updates in its outbox, and a real bridge with the jobs they are for."""

import msgspec

from broker_bridge import cells
from broker_bridge.ports import Kind
from edge_client.events import JobRow
from edge_client.store import NewUpdate, StoreError, open_store, read_report
from edge_client.wire import messages, topics
from edge_client.wire.messages import BlobRef, Evaluation, Metrics, Offer
from edge_client.wire.topics import Uid
from tests.e2e.conftest import JOB, VERSION, Rig, update
from tests.e2e.fleet import SCHEMA, Node


class Shop:
    """One update and one evaluation for each of `jobs` jobs; `port` is where the device finds the broker."""

    def __init__(self, site, folder, *, jobs, port=None):
        self.rig = Rig(site.broker, folder)
        self.folder = folder
        self.uids = []
        names = [f"har-{n}" for n in range(jobs)]
        store = open_store(folder / "state")
        for name in names:
            self.rig.swing(cells.job_key(name), msgspec.json.encode(JOB))
            self.rig.swing(cells.version_key(name), msgspec.json.encode(VERSION))
            offer = Offer(name, "demo", SCHEMA, BlobRef("0" * 64, 1))
            store.save_job(JobRow(offer, 7, store.next_ask))
            uid = Uid("dev", name, store.epoch, store.next_seq)
            evaluation = messages.encode(Evaluation(7, Metrics(10, 0.5, 0.9)))
            store.add_update(NewUpdate(uid, update(uid), evaluation, 7, b"accepted", b"kept"))
            self.uids += [str(uid), f"dev:{name}:{store.epoch}:{uid.seq + 1}"]
        store.close()
        self.node = Node(folder, port or site.port, protocol=site.version)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in (self.node.process, self.rig.bridge):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()

    def open(self):
        """Start the bridge."""
        self.rig.start_bridge()

    def rows(self):
        """The outbox as it is on the disk."""
        try:
            return read_report(self.folder / "state")["outbox"]
        except StoreError:  # the daemon is just opening it
            return [{"uid": uid, "published": False} for uid in self.uids]

    def waiting(self):
        """Names of what has no receipt yet."""
        return [row["uid"] for row in self.rows()]

    def published(self):
        """Whether the first byte of every row may have left."""
        return all(row["published"] for row in self.rows())

    def logged(self):
        """Names of updates and evaluations in the log, each as often as it is there."""
        entries = [e for e in self.rig.entries("dev") if e.kind in (Kind.UPDATE, Kind.EVALUATION)]
        return sorted((e.uid for e in entries), key=self.uids.index)

    def forget_bridge(self, site):
        """Clear the bridge's state at the broker, so that a device sends without knowing whether there is one."""
        site.peer("clearing").send(topics.service_state("bridge"), b"", retain=True)
