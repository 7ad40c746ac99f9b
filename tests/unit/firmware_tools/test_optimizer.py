"""The update compiled into train.onnx, against the papers' formulas in double precision."""

import numpy as np
import pytest
from onnx import helper

from edge_client.training import TrainingSession
from firmware_tools import compile_training

STEPS = 20
BETA2 = 0.999
RATE = 0.05


@pytest.fixture
def linear(models):
    """One dense layer of 12 features to 4 classes, whose gradient is a line of numpy."""
    rng = np.random.default_rng(3)
    weights = {"w": models.he(rng, 4, 12), "b": rng.standard_normal(4).astype(np.float32)}
    return models.model_of([helper.make_node("Gemm", ["in", "w", "b"], ["out"], transB=1)], weights, (12,), 4)


@pytest.fixture
def task(models):
    """Batches of 16: x [20, 16, 12], y [20, 16]."""
    x, y = models.blobs((12,), 4, 16 * STEPS, noise=2.0)
    return x.reshape(STEPS, 16, 12), y.reshape(STEPS, 16)


def opened(model, tmp_path, **options):
    return TrainingSession(compile_training(model, quantize="none", **options).save(tmp_path / "n.bundle"))


def gradient(params, x, y):
    """Of the mean softmax cross-entropy of x wᵀ + b."""
    logits = x.astype(np.float64) @ params["w"].T + params["b"]
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    return {"w": p.T @ x / len(y), "b": p.sum(axis=0) / len(y)}


def adam(params, x, y, *, decay=0.0, beta1=0.9):
    """Kingma & Ba 2015, algorithm 1, with the decoupled decay of Loshchilov & Hutter 2019."""
    params = {k: v.astype(np.float64) for k, v in params.items()}
    m, v = ({k: np.zeros_like(p) for k, p in params.items()} for _ in range(2))
    for t in range(1, len(x) + 1):
        for k, g in gradient(params, x[t - 1], y[t - 1]).items():
            m[k] = beta1 * m[k] + (1 - beta1) * g
            v[k] = BETA2 * v[k] + (1 - BETA2) * g**2
            mean, square = m[k] / (1 - beta1**t), v[k] / (1 - BETA2**t)
            shrink = decay * params[k] if params[k].ndim > 1 else 0.0
            params[k] = params[k] - RATE * (mean / (np.sqrt(square) + 1e-8) + shrink)
    return params


def assert_close(actual, expected, relative=1e-5):
    for name, value in expected.items():
        assert np.linalg.norm(actual[name] - value) <= relative * np.linalg.norm(value), name


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({"optimizer": "adam"}, {}),
        ({"optimizer": "adam", "momentum": 0.5}, {"beta1": 0.5}),
        ({"optimizer": "adamw"}, {"decay": 0.01}),
        ({"optimizer": "adamw", "weight_decay": 0.3}, {"decay": 0.3}),
    ],
)
def test_adam_follows_the_papers(linear, task, tmp_path, options, arguments):
    """Twenty steps of adam and adamw equal the formulas in double precision to 1e-5."""
    session = opened(linear, tmp_path, **options)
    expected = adam(session.params, *task, **arguments)
    for x, y in zip(*task, strict=True):
        session.step(x, y, RATE)

    assert_close(session.params, expected)


def test_resetting_adam_forgets_its_moments_and_its_count(linear, task, tmp_path):
    """After a reset and a load the same step is taken again: bias correction starts over."""
    session = opened(linear, tmp_path, optimizer="adam")
    start, (x, y) = session.params, task
    session.step(x[0], y[0], RATE)
    first = session.params
    session.step(x[1], y[1], RATE)
    session.load(start)
    session.reset_optimizer()
    session.step(x[0], y[0], RATE)

    assert all((session.params[k] == first[k]).all() for k in first)


@pytest.mark.parametrize(("optimizer", "rate"), [("sgd", 0.05), ("adam", 0.001), ("adamw", 0.001)])
def test_each_optimiser_suggests_its_usual_learning_rate(linear, optimizer, rate):
    """A bundle that was built without a learning rate suggests one that suits its optimiser."""
    assert compile_training(linear, quantize="none", optimizer=optimizer).manifest.learning_rate == rate


def norm(gradients):
    return np.sqrt(sum(float((g**2).sum()) for g in gradients.values()))


def test_the_proximal_term_pulls_towards_what_was_loaded(linear, task, tmp_path):
    """Each step's gradient gets mu (w - base), and the base is what was loaded last, not the bundle's version 0."""
    session = opened(linear, tmp_path, optimizer="sgd", proximal=0.7)
    base = {k: v + np.float32(0.25) for k, v in session.params.items()}
    session.load(base)
    expected = {k: v.astype(np.float64) for k, v in base.items()}
    for x, y in zip(*task, strict=True):
        session.step(x, y, RATE)
        found = gradient(expected, x, y)
        expected = {k: w - RATE * (found[k] + 0.7 * (w - base[k])) for k, w in expected.items()}

    assert_close(session.params, expected)


def test_the_gradient_is_clipped_by_its_global_norm(linear, task, tmp_path):
    """A gradient over the limit is scaled to it, all tensors alike; one below passes unchanged."""
    session = opened(linear, tmp_path, optimizer="sgd", clip_norm=2.4)
    expected = {k: v.astype(np.float64) for k, v in session.params.items()}
    norms = []
    for x, y in zip(*task, strict=True):
        session.step(x, y, RATE)
        found = gradient(expected, x, y)
        norms.append(norm(found))
        expected = {k: w - RATE * min(1, 2.4 / norms[-1]) * found[k] for k, w in expected.items()}

    assert min(norms) < 2.4 < max(norms)
    assert_close(session.params, expected)


def test_clipping_comes_after_the_proximal_term(linear, task, tmp_path):
    """However far the base is, no step is longer than the learning rate times the limit."""
    session = opened(linear, tmp_path, optimizer="sgd", clip_norm=0.01, proximal=100.0)
    before = session.params
    for x, y in zip(*task, strict=True):
        session.step(x, y, RATE)
        moved = {k: v - before[k] for k, v in session.params.items()}
        assert norm(moved) <= RATE * 0.01 * 1.001
        before = session.params
