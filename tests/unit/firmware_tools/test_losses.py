"""The losses against their definitions in float64, slopes included, and against PyTorch's."""

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto

from firmware_tools.autodiff import Graph, binary_cross_entropy, cross_entropy, squared_error
from firmware_tools.autodiff.graph import value_info

EPSILON = 1e-5
N, K = 6, 5
CLASS_WEIGHTS = (0.5, 1.0, 2.0, 7.0, 0.1)
LOSSES = {
    "cross_entropy": (lambda g, **kw: cross_entropy(g, "z", "y", K, **kw), TensorProto.INT64),
    "bce": (lambda g, **kw: binary_cross_entropy(g, "z", "y", **kw), TensorProto.UINT8),
    "mse": (lambda g, **kw: squared_error(g, "z", "y", **kw), TensorProto.FLOAT),
}
CASES = [
    ("cross_entropy", ()),
    ("cross_entropy", CLASS_WEIGHTS),
    ("bce", ()),
    ("bce", CLASS_WEIGHTS),
    ("mse", ()),
]


def targets(name, rng):
    if name == "cross_entropy":
        return rng.integers(0, K, N)
    return rng.integers(0, 2, (N, K)).astype(np.uint8) if name == "bce" else rng.standard_normal((N, K))


def run(name, z, y, weights):
    """Loss and gradient as the runtime computes them in float32."""
    graph, (append, kind) = Graph(18), LOSSES[name]
    gradient = append(graph, loss="loss", **({"weights": weights} if weights else {}))
    model = graph.model(
        "loss",
        [value_info("z", TensorProto.FLOAT, z.shape), value_info("y", kind, y.shape)],
        [value_info("loss", TensorProto.FLOAT, ()), value_info(gradient, TensorProto.FLOAT, z.shape)],
    )
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    y = y.astype(np.float32) if name == "mse" else y
    return session.run(None, {"z": z.astype(np.float32), "y": y})


def defined(name, z, y, weights):
    """The loss as textbooks have it, in float64."""
    w = np.array(weights or [1.0] * K)
    if name == "cross_entropy":
        log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
        return -(w[y] * log_p[np.arange(N), y]).sum() / w[y].sum()
    if name == "bce":
        p = 1 / (1 + np.exp(-z))
        return -(w * y * np.log(p) + (1 - y) * np.log(1 - p)).mean()
    return ((z - y) ** 2).mean()


@pytest.mark.parametrize(("name", "weights"), CASES)
@pytest.mark.parametrize("seed", range(5))
def test_loss_and_gradient_are_the_definition_and_its_slope(name, weights, seed):
    """The loss is what its definition says, and the seed of backward its central differences in float64."""
    rng = np.random.default_rng(seed)
    z, y = rng.standard_normal((N, K)) * 3, targets(name, rng)
    loss, got = run(name, z, y, weights)
    want = np.zeros_like(z)
    for at in np.ndindex(*z.shape):
        step = np.zeros_like(z)
        step[at] = EPSILON
        want[at] = (defined(name, z + step, y, weights) - defined(name, z - step, y, weights)) / (2 * EPSILON)

    assert float(loss) == pytest.approx(defined(name, z, y, weights), rel=2e-6)
    np.testing.assert_allclose(got, want, atol=2e-6)


@pytest.mark.parametrize(("name", "weights"), CASES)
@pytest.mark.parametrize("scale", [1.0, 200.0])
def test_losses_are_pytorchs(name, weights, scale):
    """Loss and gradient equal PyTorch's autograd, also far out, where exponentials overflow."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    rng = np.random.default_rng(7)
    z, y = rng.standard_normal((N, K)) * scale, targets(name, rng)
    variable = torch.tensor(z, dtype=torch.float32, requires_grad=True)
    weight = torch.tensor(weights) if weights else None
    if name == "cross_entropy":
        wanted = functional.cross_entropy(variable, torch.tensor(y), weight=weight)
    elif name == "bce":
        target = torch.tensor(y, dtype=torch.float32)
        wanted = functional.binary_cross_entropy_with_logits(variable, target, pos_weight=weight)
    else:
        wanted = functional.mse_loss(variable, torch.tensor(y, dtype=torch.float32))
    wanted.backward()
    loss, got = run(name, z, y, weights)

    assert float(loss) == pytest.approx(wanted.item(), rel=1e-5)
    np.testing.assert_allclose(got, variable.grad.numpy(), rtol=1e-4, atol=1e-6)
