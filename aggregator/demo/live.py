"""The live view: one look at the server a second, as a table."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table

from aggregator.demo.data import Shard
from aggregator.demo.plan import JOB, VERSIONS_MAX
from aggregator.sdk import Fleet
from edge_client.runtime import ort


def accuracy(model: bytes, shard: Shard) -> float:
    """Share of a shard's windows that an ONNX inference model gets right, through ONNX Runtime."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: shard.x})
    return float(np.mean(np.argmax(logits, axis=1) == shard.y))


@dataclass
class Look:
    """What the server says now, and the newest version's accuracy on the unseen subjects."""

    job: dict[str, Any]
    bridge: dict[str, Any]
    devices: list[dict[str, Any]]
    unseen_version: int = -1
    unseen_accuracy: float = 0.0

    @classmethod
    def take(cls, fleet: Fleet, unseen: Shard, before: "Look | None") -> "Look":
        """Ask the server; evaluate the newest version unless `before` did already."""
        found = fleet.job(JOB)
        job = found.facts
        look = cls(job, fleet.health()["bridge"] or {}, fleet.devices())
        if before is not None and before.unseen_version == job["version"]:
            look.unseen_version, look.unseen_accuracy = before.unseen_version, before.unseen_accuracy
        else:
            model = found.model()
            look.unseen_version, look.unseen_accuracy = model.version, accuracy(model.data, unseen)
        return look

    def line(self, seconds: float) -> str:
        """The look in one line, for output that is not a terminal."""
        job, bridge = self.job, self.bridge
        return (
            f"{seconds:4.0f} s: version {job['version']}, {100 * self.unseen_accuracy:.1f} % on unseen people, "
            f"{job['updates']} updates, staleness {job['staleness_mean']:.2f}, "
            f"{bridge.get('bytes_up', 0):,} B up, {bridge.get('bytes_down', 0):,} B down, {job['training']} training"
        )

    def table(self, seconds: float) -> Table:
        """The look for people."""
        online = sum(device["state"] == "ready" for device in self.devices)
        holdout = self.job["accuracy"]
        shown = Table(title=f"federated training, {seconds:.0f} s", title_justify="left", show_header=False)
        rows = (
            ("version", f"{self.job['version']}; the job ends after {VERSIONS_MAX} at the latest"),
            (
                "accuracy, unseen people",
                f"{100 * self.unseen_accuracy:.1f} % (version {self.unseen_version})",
            ),
            ("accuracy, devices' hold-outs", "" if holdout is None else f"{100 * holdout:.1f} %"),
            ("updates folded", f"{self.job['updates']} and {self.job['buffered']} buffered"),
            ("staleness", f"{self.job['staleness_mean']:.2f} versions"),
            ("bytes up / down", f"{self.bridge.get('bytes_up', 0):,} / {self.bridge.get('bytes_down', 0):,}"),
            ("devices", f"{online} online, {self.job['training']} training, {self.job['waiting']} waiting"),
        )
        for row in rows:
            shown.add_row(*row)
        return shown
