"""What is counted, compared and shown."""

import io
import tracemalloc

import numpy as np
import pytest
from rich.console import Console

from aggregator.simulate import table, traffic
from aggregator.simulate.availability import availability
from aggregator.simulate.config import Churn, FleetSection
from aggregator.simulate.devices import Devices, Pool
from aggregator.simulate.live import Watch
from aggregator.simulate.results import Result
from aggregator.simulate.run import Progress
from aggregator.simulate.traffic import HEADER_BYTES, PUBACK_BYTES, SEGMENT_BYTES, Traffic
from edge_client.wire import chunks
from edge_client.wire.limits import CHUNK_BYTES
from edge_client.wire.messages import BlobRef


@pytest.mark.parametrize(
    ("payload", "size"), [(10, 20), (119, 129), (120, 131), (16_375, 16_386), (16_376, 16_388)]
)
def test_a_packet_has_the_length_that_mqtt_gives_it(payload, size):
    """Topic a/b: 8 B of variable header and a length of one byte up to 127 B, then of two, then of three."""
    segments = -(-size // SEGMENT_BYTES)

    assert traffic.packet("a/b", payload) == size + segments * HEADER_BYTES


@pytest.mark.parametrize("size", [1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 7])
def test_a_large_update_is_counted_in_chunks(size):
    """Payloads are those of the chunks that a device cuts."""
    data = bytes(size)
    count = chunks.count(size, CHUNK_BYTES)
    real = [len(chunks.cut(data, i, CHUNK_BYTES).encode()) for i in range(count)] if count > 1 else [size]

    assert traffic.update_payloads(size) == real


def test_both_ways_are_counted():
    """What goes up is acknowledged downwards, and the other way round; a blob is asked for and sent."""
    counted = Traffic()
    counted.say("a/b", 10)
    assert (counted.up, counted.down) == (20 + HEADER_BYTES, PUBACK_BYTES)
    counted.pull(BlobRef("0" * 64, 2 * CHUNK_BYTES), "a/get", "a/blob")
    assert counted.down > 2 * CHUNK_BYTES + PUBACK_BYTES
    assert counted.up < 1000


def result(label, seed, points):
    lines = [
        {"time": 10.0 * i, "version": i, "uploads": 2 * i, "accuracy": a, "loss": 1 - a}
        | {"bytes_up": 100 * i * (1 + (label == "b")), "bytes_down": 0, "bytes_up_payload": 0, "gini": 0.0}
        for i, a in enumerate(points)
    ]
    return Result(label, seed, {}, lines, {})


def test_strategies_are_compared_over_the_seeds_in_which_both_got_there():
    """Mean and deviation are over the seeds that reached a target, ratios over those that both reached."""
    results = [
        result("a", 0, [0.1, 0.5, 0.8]),
        result("a", 1, [0.1, 0.2, 0.6]),
        result("b", 0, [0.1, 0.1, 0.9]),
        result("b", 1, [0.1, 0.1, 0.2]),
    ]
    rows = {(r["strategy"], r["target"]): r for r in table.compare(results, [0.5, 0.95])}

    assert rows["a", 0.5]["time"] == {"mean": 15.0, "deviation": pytest.approx(7.07, abs=0.01)}
    assert (rows["b", 0.5]["reached"], rows["b", 0.5]["seeds"]) == (1, 2)
    assert rows["b", 0.5]["ratio"]["time"] == 2.0
    assert rows["b", 0.5]["ratio"]["bytes_up"] == 4.0
    assert rows["a", 0.95]["time"] is None
    assert rows["b", None]["ratio"]["bytes_up"] == 2.0
    text = io.StringIO()
    for shown in table.tables(list(rows.values())):
        Console(file=text, width=80).print(shown)
    assert "to 95 % accuracy" in text.getvalue()
    assert "0 of 2" in text.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown_on_a_terminal_and_elsewhere(terminal):
    """A row a run that moves, or a line now and then."""
    text = io.StringIO()
    with Watch(Console(file=text, force_terminal=terminal, width=100), [("a", 0), ("b", 0)]) as watch:
        watch("a", 0, None)
        watch("b", 0, Progress(12.5, 3, 17, 0.875, 2_500_000, 1_000_000, done=True))

    assert "done before" in text.getvalue()
    assert "87.5 %" in text.getvalue()
    assert "2.5" in text.getvalue()


def test_an_idle_device_is_a_few_dozen_bytes():
    """A fleet's state grows by arrays alone."""
    section, count = FleetSection(availability=Churn(10.0, 10.0)), 100_000
    tracemalloc.start()
    kept = Devices(section, count, 0), availability(section, count, 0), Pool(count, np.random.default_rng(0))
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()

    assert len(kept) == 3
    assert size / count < 100
