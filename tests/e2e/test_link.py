"""A real daemon and trainer over a thin uplink: what it measures, and how much its updates carry."""

import numpy as np

from edge_client.bundle import open_bundle
from edge_client.wire import grid, sparse, topics
from edge_client.wire.messages import Assignment, Offer, TrainingPlan, UplinkPlan
from firmware_tools.compiler import compile_training
from firmware_tools.zoo import cnn1d
from tests.e2e.fleet import SCHEMA, Bridge, Node
from tests.proxy import Proxy

RATE = 6_000  # bytes a second
BUDGET_S = 0.25
DENSITY = 0.5


def test_updates_shrink_to_what_the_link_carries_in_time(broker, tmp_path):
    """Measured on its first update, a thin uplink makes the next ones carry less, also after a crash."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 2, 8)).astype(np.float32)
    np.savez(tmp_path / "demo.npz", x=x, y=np.arange(60) % 3)
    path = tmp_path / "bundle.zip"
    compiled = compile_training(cnn1d(channels=2, length=8, classes=3, widths=(48, 48, 48)))
    path.write_bytes(compiled.to_bytes())
    manifest = open_bundle(path).manifest
    sizes = [t.size for t in manifest.tensors]
    model = open_bundle(path).member("params.keyframe")
    bridge, thin = Bridge(broker.port), Proxy(broker.port, rate=RATE)
    node = Node(tmp_path, thin.port, child="")
    bundle = bridge.blob(path.read_bytes())
    bridge.say(topics.offer("all", "job"), Offer("job", "demo", SCHEMA, bundle, 5.0), retain=True)
    plan = TrainingPlan(3, 8, 0.05, DENSITY, 100.0, uplink=UplinkPlan(sum(sizes), BUDGET_S, 0.001, DENSITY))

    def participate(ask):
        digest = grid.decode(model, manifest.sizes).model_hash.hex()
        given = Assignment("job", ask["ask"], 0, digest, bundle, (bridge.blob(model),), plan, 60.0)
        bridge.say(topics.assign("dev", "job"), given)
        uid, frame = bridge.update()
        evaluation = bridge.wait("eval")[1]
        bridge.receipt(uid)
        return frame, evaluation

    try:
        node.start()
        ask = bridge.ask()
        first, told = participate(ask)
        assert abs(told["density"] - DENSITY) < 1e-3
        assert not told.get("uplink_bytes_s")

        ask = bridge.wait("ask", lambda b: b["ask"] > ask["ask"])[1]
        second, told = participate(ask)
        assert 0 < told["uplink_bytes_s"] <= 1.2 * RATE
        assert len(second) <= 1.2 * RATE * BUDGET_S < len(first)
        kept = sparse.decode(second, sizes).weights.kept / sum(sizes)
        assert abs(kept - told["density"]) < 1e-6

        ask = bridge.wait("ask", lambda b: b["ask"] > ask["ask"])[1]
        node.kill()
        node.start()
        third, told = participate(bridge.ask())
        assert told["uplink_bytes_s"] > 0
        assert len(third) < len(first) / 2
    finally:
        node.stop()
        thin.close()
        bridge.close()
