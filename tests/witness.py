"""What the log of a running server has of updates, copied while it has it: entries are trimmed and marks forgotten."""

import sqlite3
import threading
from collections import Counter
from contextlib import closing, suppress

import msgspec

from broker_bridge.ports import Kind
from broker_bridge.ports.open import PARTITIONS
from broker_bridge.records import UpdateRecord, VerdictMark

LOOK_S = 0.5  # a device makes far fewer updates between two looks than the log remembers of it


class Witness(threading.Thread):
    """Reads the database beside the server, without writing; `frames` are those of updates by uid, where asked for."""

    def __init__(self, path, *, frames):
        super().__init__()
        self.frames = {} if frames else None
        self._path, self._ended = path, threading.Event()
        self._marks = {}
        self._reached = Counter()

    def run(self):
        """Look until the end."""
        while not self._ended.wait(LOOK_S):
            with suppress(
                sqlite3.OperationalError
            ):  # the server was killed: it mends the file when it comes back
                self._look()

    def end(self):
        """Look no more; again is harmless."""
        self._ended.set()
        if self.is_alive():
            self.join()

    def marks(self):
        """Partition, offset, kind and verdict of each uid so far."""
        self._look()
        return self._marks

    def _look(self):
        with closing(sqlite3.connect(f"file:{self._path}?mode=ro", uri=True)) as db:
            for partition in range(PARTITIONS):
                rows = db.execute(
                    "SELECT stream, number, offset, kind, mark FROM marks WHERE partition = ? AND offset > ?",
                    (partition, self._reached[partition]),
                )
                for stream, number, offset, kind, mark in rows:
                    verdict = msgspec.msgpack.decode(mark, type=VerdictMark)
                    self._marks[f"{stream}:{number}"] = (partition, offset, kind, verdict)
                    self._reached[partition] = max(self._reached[partition], offset)
            if self.frames is not None:
                for uid, body in db.execute("SELECT uid, body FROM entries WHERE kind = ?", (Kind.UPDATE,)):
                    if uid not in self.frames:
                        self.frames[uid] = msgspec.msgpack.decode(body, type=UpdateRecord).frame
