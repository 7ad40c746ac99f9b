"""A trainer child without numpy: its frame says what it was given; `steps` are tenths of a second."""

import sys
import time
from pathlib import Path

from edge_client.trainer_protocol import Described, DescribeTask, Progress, Trained, receive_task, send
from edge_client.wire import frame
from edge_client.wire.messages import DataSchema, Evaluation, Metrics

UPDATE_BYTES = 150_000  # three chunks

while (task := receive_task(sys.stdin.buffer)) is not None:
    out = sys.stdout.buffer
    if isinstance(task, DescribeTask):
        send(out, Described(DataSchema((2, 8), 3), 40))
        continue
    Path(task.workspace, "model.grid").write_bytes(b"grid")
    for step in range(task.plan.steps):
        send(out, Progress(step, task.plan.steps, 1.0))
        time.sleep(0.1)
    body = f"uid {task.uid} residual {task.residual!r} ".encode()
    update = frame.encode(frame.Kind.UPDATE, body.ljust(UPDATE_BYTES, b"."))
    said = Evaluation(task.version, Metrics(8, 1.0, 0.5))
    send(out, Trained(update, b"accepted " + task.uid.encode(), b"kept " + task.uid.encode(), said))
