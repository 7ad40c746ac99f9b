"""What training observes besides weights: running moments and activation ranges."""

import numpy as np
import onnx
import pytest
from firmware_test_derivatives import EPSILON, evaluator, run
from onnx import helper

from edge_client.training import TrainingSession
from firmware_tools import compile_training
from firmware_tools.autodiff import Graph, differentiate
from firmware_tools.autodiff.graph import DYNAMIC, needed, shapes_of
from firmware_tools.errors import NotDifferentiable
from firmware_tools.forward import Options, build
from firmware_tools.prepare import prepare
from firmware_tools.quantize import fake_quantize_within

SPREAD, SHIFT = 3.0, 2.0  # of the samples: far from the (0, 1) at which running moments begin


def normalised(models, *, uses=1):
    """A convolution, `uses` BatchNormalizations that share their statistics, and a dense layer."""
    rng = np.random.default_rng(0)
    weights = {"conv.weight": models.he(rng, 6, 2, 3), "dense.weight": models.he(rng, 3, 6)}
    ones, zeros = np.ones(6, np.float32), np.zeros(6, np.float32)
    weights |= {"bn.weight": ones, "bn.bias": zeros + 0.1, "bn.mean": zeros, "bn.var": ones + 0}
    nodes = [helper.make_node("Conv", ["in", "conv.weight"], ["t0"], name="conv")]
    for i in range(uses):
        inputs = [f"t{i}", "bn.weight", "bn.bias", "bn.mean", "bn.var"]
        nodes.append(
            helper.make_node("BatchNormalization", inputs, [f"t{i + 1}"], epsilon=1e-3, momentum=0.8)
        )
    nodes += [
        helper.make_node("Relu", [f"t{uses}"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Gemm", ["f", "dense.weight"], ["out"], transB=1),
    ]
    return models.model_of(nodes, weights, (2, 12), 3)


def samples(models, n=64, seed=0):
    x, y = models.blobs((2, 12), 3, n, seed)
    return SPREAD * x + SHIFT, y


def test_running_moments_follow_the_batches(models, tmp_path):
    """Each step moves the running mean and deviation towards the batch's by the operator's momentum."""
    model = normalised(models)
    session = TrainingSession(compile_training(model, quantize="none").save(tmp_path / "b"))
    x, y = samples(models)
    graph = Graph(18)
    graph.add("Conv", "x", "w", output="z")
    shapes = {"x": x.shape, "w": (6, 2, 3), "z": (len(x), 6, 10)}
    (z,) = run(graph, {"x": x, "w": session.params["conv.weight"]}, shapes, ["z"])

    assert np.isfinite(session.step(x, y, 0.0))

    count = z.shape[0] * z.shape[2]
    mean, variance = z.mean(axis=(0, 2)), z.var(axis=(0, 2)) * count / (count - 1)
    np.testing.assert_allclose(session.params["bn.mean"], 0.2 * mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(session.params["bn.var.root"], np.sqrt(0.8 + 0.2 * variance), rtol=1e-4)


def test_evaluation_uses_the_running_moments(models, tmp_path):
    """The evaluation of a sample does not depend on the others of its batch."""
    session = TrainingSession(compile_training(normalised(models), quantize="none").save(tmp_path / "b"))
    x, y = samples(models)
    for _ in range(30):
        session.step(x, y, 0.01)
    parts = [session.evaluate(x[i : i + 1], y[i : i + 1]).loss for i in range(len(x))]

    assert session.evaluate(x, y).loss == pytest.approx(np.mean(parts), rel=1e-4)


def test_frozen_layers_keep_their_moments(models):
    """With batch_norm frozen, or neither scale nor bias trained, there are no statistics to carry."""
    for options in ({"batch_norm": "frozen"}, {"trainable": ("dense.*",)}):
        assert compile_training(normalised(models), **options).manifest.statistics == ()
    names = [t.name for t in compile_training(normalised(models)).manifest.statistics]
    assert names == ["bn.mean", "bn.var.root"]


def test_shared_initializers_become_statistics_of_their_own(models):
    """Layers whose equal statistics an exporter merged into one initializer each observe their own."""
    statistics = compile_training(normalised(models, uses=2)).manifest.statistics

    assert len({t.name for t in statistics}) == len(statistics) == 4


def test_what_batch_normalisation_gives_is_not_kept_for_the_backward_pass(models):
    """Of a convolution, BatchNormalization and ReLU the gradients read the convolution's output alone."""
    network = prepare(normalised(models))
    trained = ("bn.weight", "bn.bias", "conv.weight", "dense.weight")
    parameters = {name: network.constants[name] for name in trained}
    forward = build(network, parameters, Options("none", "train", None), "train")
    graph = forward.graph
    inputs = {n: v.shape for n, v in (parameters | forward.statistics).items()} | {"x": (DYNAMIC, 2, 12)}
    shapes = shapes_of(graph, inputs, ["logits"])
    made = {node.output[0]: node.op_type for node in graph.nodes if node.output[0] in shapes}
    count = len(graph.nodes)
    gradients = differentiate(graph, shapes, "logits", "seed", trained)
    read = {name for node in needed(graph.nodes[count:], gradients.values()) for name in node.input}

    kept = {made[name] for name in read & made.keys() if len(shapes[name]) == 3}
    assert "Conv" in kept
    assert kept.isdisjoint({"BatchNormalization", "Relu"})


def test_batch_moments_agree_with_finite_differences(models):
    """The gradient through a batch's own mean and variance equals the slope in float64."""
    network = prepare(normalised(models))
    trained = ("bn.weight", "bn.bias", "conv.weight")
    parameters = {name: network.constants[name] for name in trained}
    forward = build(network, parameters, Options("none", "train", None), "train")
    graph, rng = forward.graph, np.random.default_rng(1)
    feeds = {name: rng.uniform(0.5, 1.5, value.shape) for name, value in parameters.items()}
    feeds |= {name: value.astype(float) for name, value in forward.statistics.items()}
    feeds["x"] = rng.standard_normal((4, 2, 12))
    inputs = {name: value.shape for name, value in feeds.items()} | {"x": (DYNAMIC, 2, 12)}
    shapes = shapes_of(graph, inputs, ["logits"])
    plain = graph.copy()
    plain.nodes.append(helper.make_node("Identity", ["logits"], ["out"]))
    evaluate = evaluator(plain, feeds)
    seed = rng.standard_normal((4, 3))
    gradients = differentiate(graph, shapes, "logits", "seed", trained)
    kinds = shapes | {"seed": (DYNAMIC, 3)} | {g: shapes[n] for n, g in gradients.items()}
    got = run(graph, feeds | {"seed": seed}, kinds, list(gradients.values()))

    assert list(gradients) == list(trained)
    for name, value in zip(trained, got, strict=True):
        direction = rng.standard_normal(value.shape)
        high, low = (
            (evaluate(**{name: feeds[name] + sign * EPSILON * direction}) * seed).sum() for sign in (1, -1)
        )
        assert float((value * direction).sum()) == pytest.approx((high - low) / (2 * EPSILON), rel=1e-4)


def test_a_computed_mean_that_is_not_the_batchs_own_is_refused():
    """A BatchNormalization with a mean from elsewhere has no gradient rule, and says so."""
    graph = Graph(18)
    graph.add("BatchNormalization", "x", "s", "b", graph.add("Neg", "s"), "v", output="out")
    shapes = {"x": (DYNAMIC, 2), "out": (DYNAMIC, 2)} | dict.fromkeys("sbv", (2,))

    with pytest.raises(NotDifferentiable, match="batch's own"):
        differentiate(graph, shapes, "out", "seed", ["x"])


def test_ranges_begin_with_the_first_batch_and_then_follow(models, tmp_path):
    """A range nobody has observed takes the first batch's; later batches move it by a tenth."""
    compiled = compile_training(models.mlp(), quantize="int8")
    session = TrainingSession(compiled.save(tmp_path / "b"))
    x, y = models.blobs((12,), 4, 32)
    assert [t.name for t in compiled.manifest.statistics] == ["x.range", "c.range"]
    assert session.params["x.range"].tolist() == [0.0, 0.0]

    session.step(x, y, 0.0)
    np.testing.assert_allclose(session.params["x.range"], [x.min(), x.max()], rtol=1e-6)
    session.step(2 * x, y, 0.0)

    np.testing.assert_allclose(session.params["x.range"], [1.1 * x.min(), 1.1 * x.max()], rtol=1e-5)
    assert session.params["c.range"][0] == 0.0  # what a ReLU leaves is never negative


def test_activations_are_rounded_to_256_levels_and_zero_is_one_of_them():
    """Values inside the range move by at most half a step, those outside to its edge, and zero stays zero."""
    graph = Graph(18)
    graph.nodes.append(helper.make_node("Identity", [fake_quantize_within(graph, "x", "span")], ["out"]))
    x = np.linspace(-3, 3, 1001).reshape(1, -1)
    for low, high in ((-1.0, 1.5), (0.0, 2.0), (0.25, 1.0), (-2.0, -0.5)):
        shapes = {"x": x.shape, "span": (2,), "out": x.shape}
        (out,) = run(graph, {"x": x, "span": np.array([low, high])}, shapes, ["out"])
        bottom, top = min(low, 0.0), max(high, 0.0)
        step = (top - bottom) / 255

        assert len(np.unique(out)) <= 256
        assert out[0, 500] == 0.0
        assert np.abs(out - np.clip(x, bottom, top)).max() <= step


def test_gradients_stop_where_activations_saturate():
    """Straight through inside the range, nothing outside, nothing into the range itself."""
    graph = Graph(18)
    graph.nodes.append(helper.make_node("Identity", [fake_quantize_within(graph, "x", "span")], ["out"]))
    shapes = shapes_of(graph, {"x": (1, 5), "span": (2,)}, ["out"])
    (dx,) = differentiate(graph, shapes, "out", "seed", ["x"]).values()
    feeds = {
        "x": np.array([[-1.2, -0.9, 0.1, 0.9, 1.2]]),
        "span": np.array([-1.0, 1.0]),
        "seed": np.ones((1, 5)),
    }
    (got,) = run(graph, feeds, shapes | {"seed": (1, 5), dx: (1, 5)}, [dx])

    assert got.tolist() == [[0.0, 1.0, 1.0, 1.0, 0.0]]


@pytest.mark.parametrize("quantize", ["int8", "int8-weights"])
def test_normalised_networks_learn(models, tmp_path, quantize):
    """A network with BatchNormalization in training mode learns, with quantised activations too."""
    x, y = samples(models, 600)
    held = samples(models, 200, seed=1)
    session = TrainingSession(compile_training(normalised(models), quantize=quantize).save(tmp_path / "b"))
    rng = np.random.default_rng(0)
    for _ in range(150):
        rows = rng.integers(0, len(x), 32)
        session.step(x[rows], y[rows], 0.05)

    assert session.evaluate(*held).accuracy >= 0.9


def test_statistics_are_float32_inputs_of_all_three_graphs(models):
    """Every graph of a bundle reads the statistics; the training graph writes the next ones."""
    compiled = compile_training(normalised(models), quantize="int8")
    names = {t.name for t in compiled.manifest.statistics}
    for member in ("train.onnx", "eval.onnx", "infer.onnx"):
        graph = onnx.load_from_string(compiled.members[member]).graph
        assert names <= {i.name for i in graph.input}
    train = onnx.load_from_string(compiled.members["train.onnx"]).graph
    assert {f"{name}@next" for name in names} <= {o.name for o in train.output}
