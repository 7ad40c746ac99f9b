"""Frames and log entries taken apart for people."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from aggregator.commands.inspect import inspect
from broker_bridge.dissect import dissect
from broker_bridge.records import EvaluationRecord, EventRecord, RejectionRecord, UpdateRecord, encode
from edge_client.bundle import open_bundle
from edge_client.compress import compress, halved
from edge_client.wire import chunks, grid, messages, sparse
from firmware_tools import compile_training
from firmware_tools.zoo import cnn1d

VECTORS = Path(__file__).parents[2] / "wire" / "vectors"


def frames():
    for name in ("updates", "models", "chunks"):
        for vector in json.loads((VECTORS / f"{name}.json").read_text()):
            yield pytest.param(bytes.fromhex(vector["frame"]), id=f"{name}-{vector['name'][:30]}")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A manifest with statistics, and a change of every tensor."""
    path = tmp_path_factory.mktemp("dissect") / "n.bundle"
    manifest = open_bundle(
        compile_training(cnn1d(2, 16, 3, widths=(4, 6)), quantize="int8").save(path)
    ).manifest
    rng = np.random.default_rng(0)
    return manifest, [rng.standard_normal(t.size).astype(np.float32) for t in manifest.table]


def update(model, codec="ternary", density=0.2):
    manifest, change = model
    edge = len(manifest.tensors)
    made = compress(change[:edge], None, density, 1e6, codec)
    told = sparse.Update(3, bytes(8), 7, 100, made.weights, halved(change[edge:]))
    return sparse.encode(told, [t.size for t in manifest.tensors], made.codec)


def tiled(found):
    ends = [part.offset + part.size for part in found.parts]
    return [part.offset for part in found.parts] == [0, *ends[:-1]] and ends[-1] == len(found.data)


@pytest.mark.parametrize("data", list(frames()))
def test_the_parts_of_every_vector_tile_it(data):
    """Each byte of each golden vector belongs to one part, without a bundle, and nothing is wrong with it."""
    found = dissect(data)

    assert found.error == ""
    assert tiled(found)


@pytest.mark.parametrize("codec", messages.CODECS)
def test_an_update_with_its_bundle_has_names_streams_and_figures(model, codec):
    """With the bundle tensors have their names, streams their lengths, and the figures are the decoder's."""
    data = update(model, codec)
    found = dissect(data, model[0])
    names = [part.name for part in found.parts]

    assert found.error == ""
    assert tiled(found)
    assert "changes of the statistics" in names
    assert found.figures["L2 norm"] == sparse.decode(data, model[0].sizes, len(model[0].statistics)).norm()
    assert found.figures["bits per parameter"] == 8 * len(data) / model[0].parameters
    if not codec.startswith("dense"):
        form = found.figures["form"]
        stream = {"gaps": "quotients of the gaps", "nested": "nested places"}[form]
        assert {"conv1.weight", stream} <= set(names)
        assert ("levels less one" in names) == (codec in ("q4", "q8"))
        assert found.figures["bytes to the bound"] >= 1


def test_models_have_names_and_figures(model):
    """A key-frame and a delta name their tensors and count what is not zero."""
    manifest, change = model
    old = [grid.to_grid(c, t.step_exp) for c, t in zip(change, manifest.table, strict=True)]
    new = [v + (np.arange(len(v)) % 7 == 0).astype(np.int32) for v in old]
    for data, count in (
        (grid.encode_keyframe(4, new), sum(np.count_nonzero(v) for v in new)),
        (grid.encode_delta(4, 3, new, old), sum(-(-len(v) // 7) for v in new)),
    ):
        found = dissect(data, manifest)

        assert found.error == ""
        assert tiled(found)
        assert found.figures["non-zero"] == count
        told = {part.name: part.value for part in found.parts}
        assert {"signs", "remainders of the gaps", "remainders of the magnitudes", "quotients"} <= set(told)
        assert told["signs"] == f"{count} bits"
        assert ("one each" in told["dense.weight"]) == (found.kind == "DELTA frame")
        assert "0 of magnitudes" in told["quotients"] or found.kind == "KEYFRAME frame"


@pytest.mark.parametrize(
    ("record", "figure"),
    [
        (EvaluationRecord(1.5, b'{"version":1}'), ("payload", '{"version":1}')),
        (EventRecord(1.5, "ask", "pi", "job", b"{}"), ("device", "pi")),
        (RejectionRecord(1.5, "norm", "too large"), ("code", "norm")),
    ],
)
def test_entries_of_the_log_are_told_apart(record, figure):
    """An evaluation, an event and a rejection are shown as what they are, with their fields."""
    found = dissect(encode(record))

    assert type(record).__name__ in found.kind
    assert found.figures[figure[0]] == figure[1]
    assert tiled(found)


def test_an_update_in_the_log_is_taken_apart_as_its_frame(model):
    """The entry of an update shows the frame's bytes and the bridge's own facts."""
    data = update(model)
    found = dissect(encode(UpdateRecord(12.5, data, 321)), model[0])

    assert found.data == data
    assert (found.figures["at"], found.figures["wire_bytes"]) == (12.5, 321)
    assert tiled(found)


@given(st.data())
def test_damage_is_shown_with_its_error(data):
    """Whatever bytes come, the parts tile them or end where reading ended, and the error says what is wrong."""
    whole = chunks.cut(bytes(50), 0, 40).encode() + data.draw(st.binary(max_size=20))
    raw = bytearray(data.draw(st.sampled_from([whole, data.draw(st.binary(max_size=60))])))
    if raw:
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    found = dissect(bytes(raw))

    assert found.error or found.kind.startswith("log entry")


def test_another_bundle_is_an_error(model, tmp_path):
    """A frame of another model is refused as the bridge would, and its header is shown all the same."""
    other = compile_training(cnn1d(2, 16, 3, widths=(4, 6, 8))).save(tmp_path / "other.bundle")
    found = dissect(update(model), open_bundle(other).manifest)

    assert found.error.startswith("bad_")
    assert "base version" in [part.name for part in found.parts]


def test_the_command_shows_a_byte_map_and_refuses_damage(model, tmp_path):
    """`fedfleet inspect` prints parts and figures, --json the same, and exits with 1 on what would be refused."""
    data = update(model)
    (tmp_path / "u.bin").write_bytes(data)
    (tmp_path / "bad.bin").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    shown = CliRunner().invoke(inspect, [str(tmp_path / "u.bin")])
    facts = CliRunner().invoke(inspect, [str(tmp_path / "u.bin"), "--json"])
    damaged = CliRunner().invoke(inspect, [str(tmp_path / "bad.bin")])

    assert (shown.exit_code, facts.exit_code, damaged.exit_code) == (0, 0, 1)
    assert "hash of the base" in shown.output
    assert json.loads(facts.output)["parts"][0]["name"] == "magic"
    assert "would be refused: bad_crc" in damaged.output
