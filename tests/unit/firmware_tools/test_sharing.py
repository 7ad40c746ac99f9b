"""Tensors that an exporter merged are several again."""

import numpy as np
import pytest
from onnx import helper

from edge_client.training import TrainingSession
from firmware_tools import compile_training


def two_layers(models, bias):
    """Two dense layers with one initializer for both biases."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": models.he(rng, 4, 12),
        "w2": models.he(rng, 4, 4),
        "bias": bias,
        "bias_2": np.ones(4, np.float32),
    }
    nodes = [
        helper.make_node("Gemm", ["in", "w1", "bias"], ["a"], transB=1),
        helper.make_node("Mul", ["a", "bias_2"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Gemm", ["c", "w2", "bias"], ["out"], transB=1),
    ]
    return models.model_of(nodes, weights, (12,), 4)


def test_merged_biases_train_apart(models, tmp_path):
    """Biases of zero that were stored once become two tensors, which learn different values."""
    compiled = compile_training(two_layers(models, np.zeros(4, np.float32)))
    session = TrainingSession(compiled.save(tmp_path / "m.bundle"))
    session.step(*models.blobs((12,), 4, 32), 0.1)
    params = session.params

    assert list(params) == ["w1", "bias", "bias_2", "w2", "bias_3"]
    assert not np.allclose(params["bias"], params["bias_3"])
    assert "gave 1 uses" in compiled.notes[0]


def test_a_tensor_of_various_values_stays_shared(models):
    """A tensor that is tied by design is trained as one."""
    compiled = compile_training(two_layers(models, np.arange(4, dtype=np.float32)))

    assert [t.name for t in compiled.manifest.tensors] == ["w1", "bias", "bias_2", "w2"]
    assert compiled.notes == ()


@pytest.mark.parametrize("merged", [False, True])
def test_statistics_that_were_merged_are_apart(models, merged):
    """Two normalisations with one initializer for mean and variance have four statistics, as with their own."""
    weights = {"scale": np.array([1, 2, 3, 4], np.float32), "shift": np.array([4, 3, 2, 1], np.float32)}
    weights |= {n: np.full(4, v, np.float32) for n, v in (("m1", 0), ("m2", 0), ("v1", 1), ("v2", 1))}
    weights["w"] = models.he(np.random.default_rng(0), 4, 12)
    second = ["m1", "v1"] if merged else ["m2", "v2"]
    nodes = [
        helper.make_node("Gemm", ["in", "w"], ["a"], transB=1),
        helper.make_node("BatchNormalization", ["a", "scale", "shift", "m1", "v1"], ["b"]),
        helper.make_node("BatchNormalization", ["b", "scale", "shift", *second], ["out"]),
    ]

    assert len(compile_training(models.model_of(nodes, weights, (12,), 4)).manifest.statistics) == 4


@pytest.mark.parametrize(("value", "count"), [(0.0, 3), (None, 2)])
def test_an_identity_of_a_parameter_is_the_parameter_or_a_copy(models, value, count):
    """The name that an exporter gives a merged tensor by Identity is a tensor again where all values are equal."""
    bias = np.arange(4, dtype=np.float32) if value is None else np.full(4, value, np.float32)
    weights = {"w": models.he(np.random.default_rng(0), 4, 12), "bias": bias}
    nodes = [
        helper.make_node("Identity", ["bias"], ["other"]),
        helper.make_node("Gemm", ["in", "w", "bias"], ["a"], transB=1),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Add", ["b", "other"], ["out"]),
    ]
    names = [t.name for t in compile_training(models.model_of(nodes, weights, (12,), 4)).manifest.tensors]

    assert names == ["w", "bias", "other"][:count]


def test_a_layer_that_is_applied_again_stays_one(models):
    """A bias of zero that is used at each step of a recurrence, after the same weights, is one tensor."""
    rng = np.random.default_rng(0)
    weights = {"w": models.he(rng, 6, 3), "r": models.he(rng, 6, 6), "bias": np.zeros(6, np.float32)}
    weights |= {"head": models.he(rng, 4, 6), "other": np.zeros(4, np.float32)}
    nodes = [helper.make_node("Split", ["in"], ["x0", "x1", "x2"], axis=1, num_outputs=3)]
    nodes.append(helper.make_node("Gemm", ["x0", "w", "bias"], ["h0"], transB=1))
    for t in (1, 2):
        nodes += [
            helper.make_node("Gemm", [f"x{t}", "w"], [f"a{t}"], transB=1),
            helper.make_node("Gemm", [f"h{t - 1}", "r"], [f"b{t}"], transB=1),
            helper.make_node("Add", [f"a{t}", f"b{t}"], [f"c{t}"]),
            helper.make_node("Add", [f"c{t}", "shift"], [f"d{t}"]),
            helper.make_node("Tanh", [f"d{t}"], [f"h{t}"]),
        ]
    weights["shift"] = np.zeros(6, np.float32)
    nodes.append(helper.make_node("Gemm", ["h2", "head", "other"], ["out"], transB=1))
    compiled = compile_training(models.model_of(nodes, weights, (9,), 4))

    assert [t.name for t in compiled.manifest.tensors] == ["w", "bias", "r", "shift", "head", "other"]
    assert compiled.notes == ()


def test_pytorch_says_what_it_merged(models):
    """In PyTorch's models an Identity of any values is a tensor of its own, and what is used again is shared."""
    model = two_layers(models, np.zeros(4, np.float32))
    model.producer_name = "pytorch"
    shared = [t.name for t in compile_training(model).manifest.tensors]
    model.graph.node.insert(0, helper.make_node("Identity", ["w2"], ["w3"]))
    model.graph.node[-1].input[0] = "d"
    model.graph.node.insert(4, helper.make_node("Gemm", ["c", "w3"], ["d"], transB=1))
    named = [t.name for t in compile_training(model).manifest.tensors]

    assert shared == ["w1", "bias", "bias_2", "w2"]
    assert named == ["w1", "bias", "bias_2", "w3", "w2"]


def test_parameters_that_left_no_trace_are_told(models):
    """A parameter that PyTorch's exporter lists and does not store is named, with the remedy."""
    model = two_layers(models, np.zeros(4, np.float32))
    listed = "".join(f"p_{n}: PARAMETER target='{n}'\n" for n in ("w1", "w2", "w4"))
    entry = model.graph.metadata_props.add()
    entry.key, entry.value = "pkg.torch.export.ExportedProgram.graph_signature", listed

    assert (
        "1 of 3 parameters are shared, merged or folded in the file, as w4"
        in compile_training(model).notes[0]
    )
