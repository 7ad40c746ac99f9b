"""What `trainable` chooses, and that what it leaves out costs nothing on the way back."""

import numpy as np
import pytest
from onnx import helper

from firmware_tools import compile_training
from firmware_tools.errors import OptionError
from firmware_tools.zoo import cnn1d


def chosen(model, *patterns):
    return [t.name for t in compile_training(model, trainable=patterns).manifest.tensors]


def test_bias_only_trains_what_is_added(models):
    """Biases of layers and additions of vectors are trained, weights and scales are not."""
    assert chosen(models.lenet(), "bias-only") == ["conv1.bias", "conv2.bias", "fc1.bias", "fc2.bias"]
    assert chosen(models.mlp(), "bias-only") == ["b1", "b2"]


def test_bias_only_takes_the_shift_of_a_normalisation(models):
    """Of a normalisation the shift is a bias and the scale is not."""
    weights = {"w": models.he(np.random.default_rng(0), 12, 4)}
    weights |= {name: np.ones(12, np.float32) for name in ("scale", "shift")}
    nodes = [
        helper.make_node("LayerNormalization", ["in", "scale", "shift"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["out"]),
    ]

    assert chosen(models.model_of(nodes, weights, (12,), 4), "bias-only") == ["shift"]


def test_the_last_layers_are_counted_by_their_weights(models):
    """`last:K` takes the K last layers that have a weight, with the biases that follow."""
    assert chosen(models.mlp(), "last:1") == ["w2", "b2"]
    assert chosen(models.lenet(), "last:2") == ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]
    assert chosen(models.mlp(), "last:2") == chosen(models.mlp(), "*")


def test_a_single_value_in_arithmetic_is_no_parameter(models):
    """The scale of attention, stored as an initializer of shape [1], is not trained; a bias of one value is."""
    rng = np.random.default_rng(0)
    weights = {"w": models.he(rng, 12, 1), "bias": np.zeros(1, np.float32)}
    weights |= {"half": np.full(1, 0.5, np.float32), "v": models.he(rng, 1, 4)}
    nodes = [
        helper.make_node("MatMul", ["in", "w"], ["a"]),
        helper.make_node("Add", ["a", "bias"], ["b"]),
        helper.make_node("Mul", ["b", "half"], ["c"]),
        helper.make_node("MatMul", ["c", "v"], ["out"]),
    ]

    assert chosen(models.model_of(nodes, weights, (12,), 4), "*") == ["w", "bias", "v"]


def test_patterns_add_up(models):
    """Several patterns train what any of them chooses, in the order of the model."""
    assert chosen(models.lenet(), "last:1", "bias-only") == [
        "conv1.bias",
        "conv2.bias",
        "fc1.bias",
        "fc2.weight",
        "fc2.bias",
    ]


def test_more_layers_than_there_are_is_refused(models):
    """The message says how many layers have weights; `last:0` is only a name that matches nothing."""
    with pytest.raises(OptionError, match="last 3 layers of a model that has 2"):
        chosen(models.mlp(), "last:3")
    with pytest.raises(OptionError, match="'last:0' matches none"):
        chosen(models.mlp(), "last:0")


def test_the_backward_graph_shrinks_with_what_is_trained():
    """Fewer last layers mean fewer nodes and fewer activations; biases alone need masks, not convolution inputs."""
    net = cnn1d(2, 32, 3, widths=(8, 8, 8))
    costs = {
        name: compile_training(net, trainable=(name,)).pruning.chosen
        for name in ("*", "last:3", "last:2", "last:1", "bias-only")
    }
    nodes = [costs[name].nodes for name in ("*", "last:3", "last:2", "last:1")]
    kept = [costs[name].activations_bytes for name in ("*", "last:3", "last:2", "last:1")]

    assert nodes == sorted(set(nodes), reverse=True)
    assert kept == sorted(set(kept), reverse=True)
    assert kept[-1] < kept[0] / 20
    assert costs["bias-only"].nodes < costs["*"].nodes
    assert costs["bias-only"].activations_bytes < costs["*"].activations_bytes
