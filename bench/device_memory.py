"""Memory of a device: resident size of the idle daemon, peak of its trainer child over one real training.

Usage: python bench/device_memory.py [--broker mosquitto|iotcore] [--with-rich]
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from broker_bridge.broker import Broker  # noqa: E402 - runs from a source tree
from edge_client.bundle import open_bundle  # noqa: E402
from edge_client.wire import grid, topics  # noqa: E402
from edge_client.wire.messages import Assignment, DataSchema, Offer, TrainingPlan  # noqa: E402
from firmware_tools.compiler import compile_training  # noqa: E402
from firmware_tools.zoo import cnn1d  # noqa: E402
from tests.e2e.fleet import Bridge, Node  # noqa: E402

DATA = '[data.demo]\npath = "demo.npz"\nshape = [6, 100]\nclasses = 7\naxes = ["channel", "time"]\n'
SCHEMA = DataSchema((6, 100), 7, ("channel", "time"))
DAEMON_GOAL_MB = 35
CHILD_GOAL_MB = 110


def resident(pid: int) -> tuple[float, float]:
    """Private and total resident MB of a process."""
    text = Path(f"/proc/{pid}/status").read_text()
    fields = dict(line.split(":", 1) for line in text.splitlines())
    return int(fields["RssAnon"].split()[0]) / 1024, int(fields["VmRSS"].split()[0]) / 1024


def main() -> None:
    """Measure one device through one participation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--broker", default="auto", choices=["auto", "mosquitto", "iotcore"])
    parser.add_argument("--with-rich", action="store_true", help="as where [server] is installed too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        rng = np.random.default_rng(0)
        x = rng.standard_normal((500, 6, 100)).astype(np.float32)
        np.savez(path / "demo.npz", x=x, y=np.arange(500) % 7)
        compiled = compile_training(cnn1d(), axes=("channel", "time"))
        (path / "bundle.zip").write_bytes(compiled.to_bytes())
        opened = open_bundle(path / "bundle.zip")
        model = opened.member("params.keyframe")
        version_hash = grid.decode(model, opened.manifest.sizes).model_hash.hex()
        broker = Broker.start(options.broker, state_dir=path / "broker")
        bridge = Bridge(broker.port)
        node = Node(path, broker.port, child="", data=DATA)
        node.config.write_text(node.config.read_text() + "[trainer]\nidle_s = 1\n")
        # structlog loads rich where it is installed; a device's installation has no rich.
        node.prelude = "" if options.with_rich else "import sys; sys.modules['rich'] = None\n"
        node.start()
        try:
            bridge.wait("info")
            while node.children():
                time.sleep(0.1)
            idle = resident(node.process.pid)
            bundle = bridge.blob((path / "bundle.zip").read_bytes())
            bridge.say(topics.offer("all", "job"), Offer("job", "demo", SCHEMA, bundle, 5.0), retain=True)
            ask = bridge.ask()
            plan = TrainingPlan(50, 32, 0.05, 0.01, 10.0)
            blobs = (bridge.blob(model),)
            given = Assignment("job", ask["ask"], 0, version_hash, bundle, blobs, plan, 60.0)
            bridge.say(topics.assign("dev", "job"), given)
            evaluation = bridge.wait("eval")[1]
            after = resident(node.process.pid)
        finally:
            node.stop()
            bridge.close()
            broker.stop()
    child = evaluation["memory_bytes"] / 1e6
    print(f"model: {opened.manifest.parameters} parameters; {len(x)} samples of 6 x 100")
    print(
        f"daemon idle:           {idle[1]:.1f} MB resident, {idle[0]:.1f} MB of it private (goal {DAEMON_GOAL_MB})"
    )
    print(f"daemon after training: {after[1]:.1f} MB resident, {after[0]:.1f} MB of it private")
    print(f"trainer child peak:    {child:.1f} MB (goal {CHILD_GOAL_MB})")


if __name__ == "__main__":
    main()
