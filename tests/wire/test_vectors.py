"""Golden vectors: bytes written once that every later codec must read and write."""

import json
from pathlib import Path

import numpy as np
import pytest

from edge_client.wire import chunks, frame, grid, sparse
from edge_client.wire.weights import Dense, Sparse, SparseTensor

VECTORS = Path(__file__).parent / "vectors"
SPEC = Path(__file__).parents[2] / "docs" / "wire.md"


def load(name):
    return json.loads((VECTORS / f"{name}.json").read_text())


def by_name(vector):
    return vector["name"]


def weights_of(vector):
    """The weights of a vector: every value, or kept ones by tensor."""
    if "values" in vector:
        return Dense(
            np.array(vector["values"], dtype=vector["codec"].rpartition("-")[2].replace("fp", "float"))
        )
    return Sparse.of(
        [
            SparseTensor(
                np.array(t["indices"], dtype=np.int64),
                np.array(t["negative"], dtype=bool),
                t["scale"],
                np.array(t["levels"], dtype=np.int64) if "levels" in t else None,
            )
            for t in vector["tensors"]
        ]
    )


@pytest.mark.parametrize("vector", load("updates"), ids=by_name)
def test_updates_have_these_bytes(vector):
    """An update encodes to the vector's frame, unless its other form is less, and decodes from it to the same values."""
    head = vector["base_version"], bytes.fromhex(vector["base_hash"]), vector["tag"], vector["n_samples"]
    observed = vector.get("statistics", [])
    update = sparse.Update(*head, weights_of(vector), np.array(observed, dtype=np.float16))
    own, data = vector["sizes"][: vector["weights"]], bytes.fromhex(vector["frame"])

    told = sparse.encode(update, own, sparse.CODECS[vector["codec"]])
    assert told == data or (vector.get("other_form_is_less") and len(told) < len(data))
    decoded = sparse.decode(data, vector["sizes"], len(vector["sizes"]) - len(own))
    assert (decoded.base_version, decoded.base_hash, decoded.tag, decoded.n_samples) == head
    assert decoded.statistics.tolist() == observed
    if isinstance(update.weights, Dense):
        assert decoded.weights.values.tolist() == vector["values"]
    else:
        for got, expected in zip(decoded.weights.tensors, vector["tensors"], strict=True):
            assert got.indices.tolist() == expected["indices"]
            assert got.negative.tolist() == expected["negative"]
            assert got.scale == expected["scale"]
            levels = [1] * len(got.indices) if got.levels is None else got.levels.tolist()
            assert levels == expected.get("levels", levels)


def test_the_updates_cover_every_codec_and_edge():
    """There is a vector for each codec's name, and one for each case that implementations get wrong."""
    vectors = load("updates")

    assert {v["codec"] for v in vectors} == set(sparse.CODECS)
    edges = ("k = 0", "k = d", "d = 1", "all equal", "denormal", "largest gap", "statistics", "saturat")
    assert [edge for edge in edges if not any(edge in v["name"] for v in vectors)] == []
    for gaps in (0, sparse.GAPS):
        names = " ".join(v["name"] for v in vectors if bytes.fromhex(v["frame"])[3] & sparse.GAPS == gaps)
        forms = ("k = 0", "k = d", "denormal", "largest gap", "levels", "statistics", "some empty")
        assert [edge for edge in forms if edge not in names] == []


@pytest.mark.parametrize("vector", load("models"), ids=by_name)
def test_models_have_these_bytes(vector):
    """A key-frame or delta encodes to the vector's frame and leads to the same model and hash."""
    data = bytes.fromhex(vector["frame"])
    new = [np.array(values, dtype=np.int32) for values in vector["values"]]
    old, base = None, None
    if vector["kind"] == "delta":
        old, base = [np.array(values, dtype=np.int32) for values in vector["old"]], vector["base_version"]
        assert grid.encode_delta(vector["version"], base, new, old) == data
    else:
        assert grid.encode_keyframe(vector["version"], new) == data

    step = grid.decode(data, vector["sizes"])
    result = grid.apply(old, step, base)

    assert step.model_hash.hex() == vector["model_hash"] == grid.model_hash(new).hex()
    assert [values.tolist() for values in result] == vector["values"]


@pytest.mark.parametrize("vector", load("chunks"), ids=by_name)
def test_chunks_have_these_bytes(vector):
    """A chunk encodes to the vector's frame and decodes from it."""
    chunk = chunks.cut(bytes.fromhex(vector["message"]), vector["index"], vector["chunk_size"])

    assert chunk.encode().hex() == vector["frame"]
    kind, _, body = frame.decode(bytes.fromhex(vector["frame"]))
    assert kind is frame.Kind.CHUNK
    assert chunks.decode(body) == chunk


@pytest.mark.parametrize(
    ("place", "vectors", "name"), [(1, "updates", "worked-example"), (2, "models", "ternary worked example")]
)
def test_the_worked_examples_of_the_specification_are_vectors(place, vectors, name):
    """docs/wire.md shows the very bytes that the code writes."""
    block = SPEC.read_text().split("### Worked example")[place].split("```")[1]
    shown = "".join(token for line in block.splitlines() for token in line[:50].split() if len(token) == 2)
    vector = next(v for v in load(vectors) if v["name"] == name)

    assert shown.replace("xx", "") == vector["frame"][:-8]
