"""Every gradient rule against central differences in float64."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from firmware_tools.autodiff import Graph, cross_entropy, differentiate, supported
from firmware_tools.autodiff.graph import DYNAMIC, shapes_of, value_info
from firmware_tools.errors import NotDifferentiable

BATCH = 3  # stands for DYNAMIC in the shapes below
EPSILON = 1e-6
TOLERANCE = 2e-5  # relative to the scale of the derivatives: what float32 kernels keep
B = DYNAMIC


@dataclass
class Case:
    """One operator with input shapes, constant trailing inputs and attributes."""

    name: str
    op: str
    shapes: tuple[tuple[int, ...], ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    constants: tuple[tuple[int, ...], ...] = ()  # int64 vectors appended as inputs


def case(name, op, *shapes, constants=(), **attributes):
    return pytest.param(Case(name, op, shapes, attributes, constants), id=name)


CASES = [
    case("add", "Add", (B, 4), (B, 4)),
    case("add-broadcast-row", "Add", (B, 4), (4,)),
    case("add-broadcast-middle", "Add", (B, 4, 5), (4, 1)),
    case("sub-broadcast", "Sub", (4, 1), (B, 4, 5)),
    case("mul", "Mul", (B, 4), (B, 4)),
    case("mul-broadcast-batch", "Mul", (B, 4), (1, 4)),
    case("mul-broadcast-both", "Mul", (B, 1, 5), (4, 1)),
    case("div", "Div", (B, 4), (B, 4)),
    case("div-broadcast", "Div", (B, 4), (1,)),
    case("relu", "Relu", (B, 7)),
    case("identity", "Identity", (B, 7)),
    case("flatten", "Flatten", (B, 2, 3)),
    case("reshape", "Reshape", (B, 2, 3), constants=((0, 6),)),
    case("reshape-split", "Reshape", (B, 6), constants=((-1, 2, 3),)),
    case("transpose", "Transpose", (B, 2, 3), perm=[0, 2, 1]),
    case("transpose-cycle", "Transpose", (B, 2, 3), perm=[2, 0, 1]),
    case("transpose-default", "Transpose", (B, 2, 3)),
    case("squeeze", "Squeeze", (B, 1, 3), constants=((1,),)),
    case("unsqueeze", "Unsqueeze", (B, 3), constants=((1, 3),)),
    case("reduce-mean-keep", "ReduceMean", (B, 4, 5), constants=((2,),)),
    case("reduce-mean-drop", "ReduceMean", (B, 4, 5), constants=((-1, 1),), keepdims=0),
    case("global-average-1d", "GlobalAveragePool", (B, 4, 5)),
    case("global-average-2d", "GlobalAveragePool", (B, 2, 3, 5)),
    case("gemm", "Gemm", (B, 4), (4, 5), (5,)),
    case("gemm-transposed-b", "Gemm", (B, 4), (5, 4), (5,), transB=1),
    case("gemm-transposed-a", "Gemm", (4, B), (4, 5), (1, 5), transA=1),
    case("gemm-scaled", "Gemm", (4, B), (5, 4), (B, 1), transA=1, transB=1, alpha=0.5, beta=2.0),
    case("gemm-no-bias", "Gemm", (B, 4), (4, 5)),
    case("matmul", "MatMul", (B, 4), (4, 5)),
    case("matmul-rows", "MatMul", (B, 2, 4), (4, 5)),
    case("matmul-batched", "MatMul", (B, 2, 4), (B, 4, 5)),
    case("matmul-broadcast", "MatMul", (B, 2, 3, 4), (2, 4, 5)),
    case("conv1d", "Conv", (B, 3, 11), (4, 3, 5), (4,), pads=[2, 2]),
    case("conv1d-valid", "Conv", (B, 3, 11), (4, 3, 4), (4,)),
    case("conv1d-pointwise", "Conv", (B, 3, 11), (4, 3, 1)),
    case("conv1d-strided", "Conv", (B, 3, 12), (4, 3, 5), (4,), strides=[3], pads=[1, 2]),
    case("conv1d-dilated", "Conv", (B, 3, 12), (4, 3, 3), (4,), dilations=[2], pads=[2, 2]),
    case("conv1d-causal", "Conv", (B, 3, 12), (4, 3, 3), (4,), dilations=[2], pads=[4, 0]),
    case("conv1d-overpadded", "Conv", (B, 3, 6), (4, 3, 3), (4,), pads=[4, 4]),
    case("conv1d-same-upper", "Conv", (B, 3, 12), (4, 3, 4), (4,), auto_pad="SAME_UPPER"),
    case("conv1d-same-lower-strided", "Conv", (B, 3, 12), (4, 3, 4), auto_pad="SAME_LOWER", strides=[2]),
    case("conv1d-auto-valid", "Conv", (B, 3, 12), (4, 3, 4), auto_pad="VALID"),
    case("conv1d-groups", "Conv", (B, 4, 9), (6, 2, 3), (6,), group=2, pads=[1, 1]),
    case("conv1d-depthwise-strided", "Conv", (B, 4, 9), (4, 1, 3), (4,), group=4, strides=[2]),
    case("conv2d", "Conv", (B, 3, 6, 7), (4, 3, 3, 3), (4,), pads=[1, 1, 1, 1]),
    case("conv2d-mixed", "Conv", (B, 2, 9, 8), (4, 2, 3, 2), (4,), strides=[2, 1], dilations=[1, 2], pads=[0, 1, 2, 1]),
    case("conv2d-depthwise", "Conv", (B, 3, 6, 7), (3, 1, 3, 3), (3,), group=3, pads=[1, 1, 1, 1]),
    case("max-pool-1d", "MaxPool", (B, 3, 8), kernel_shape=[2], strides=[2]),
    case("max-pool-1d-rest", "MaxPool", (B, 3, 9), kernel_shape=[2], strides=[2]),
    case("max-pool-1d-overlap", "MaxPool", (B, 3, 9), kernel_shape=[3], strides=[2], pads=[1, 1]),
    case("max-pool-1d-gaps", "MaxPool", (B, 3, 9), kernel_shape=[2], strides=[3]),
    case("max-pool-2d", "MaxPool", (B, 3, 6, 8), kernel_shape=[2, 2], strides=[2, 2]),
    case("max-pool-2d-rest", "MaxPool", (B, 3, 7, 8), kernel_shape=[2, 3], strides=[2, 3]),
    case("max-pool-2d-overlap", "MaxPool", (B, 3, 7, 8), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    case("average-pool-1d", "AveragePool", (B, 3, 8), kernel_shape=[2], strides=[2]),
    case("average-pool-1d-rest", "AveragePool", (B, 3, 9), kernel_shape=[2], strides=[2]),
    case("average-pool-1d-overlap", "AveragePool", (B, 3, 9), kernel_shape=[3], strides=[2], pads=[1, 1]),
    case("average-pool-2d", "AveragePool", (B, 3, 6, 8), kernel_shape=[2, 2], strides=[2, 2]),
    case("average-pool-2d-pad", "AveragePool", (B, 2, 6, 7), kernel_shape=[3, 3], strides=[2, 2],
         pads=[1, 1, 1, 1], count_include_pad=1),
]  # fmt: skip


def concrete(shape):
    return tuple(BATCH if extent == DYNAMIC else extent for extent in shape)


def forward_of(spec):
    graph = Graph(18)
    names = [f"in{i}" for i in range(len(spec.shapes))]
    vectors = [graph.ints(*values) for values in spec.constants]
    graph.add(spec.op, *names, *vectors, output="out", **spec.attributes)
    return graph, dict(zip(names, spec.shapes, strict=True))


def run(graph, feeds, shapes, outputs):
    inputs = [value_info(name, TensorProto.FLOAT, shapes[name]) for name in feeds]
    model = graph.model("case", inputs, [value_info(n, TensorProto.FLOAT, shapes[n]) for n in outputs])
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(outputs, {name: value.astype(np.float32) for name, value in feeds.items()})


def slopes(graph, feeds, seed, name, directions):
    """Central differences of sum(out * seed), evaluated in float64."""
    inputs = [value_info(n, TensorProto.FLOAT, v.shape) for n, v in feeds.items()]
    model = graph.model("case", inputs, [value_info("out", TensorProto.FLOAT, seed.shape)])
    evaluate = ReferenceEvaluator(model)

    def objective(value):
        (out,) = evaluate.run(None, feeds | {name: value})
        return float((out.astype(np.float64) * seed).sum())

    return [
        (objective(feeds[name] + EPSILON * d) - objective(feeds[name] - EPSILON * d)) / (2 * EPSILON)
        for d in directions
    ]


@pytest.mark.parametrize("spec", CASES)
def test_gradient_agrees_with_finite_differences(spec):
    """The gradient of each input equals the slope of the forward operator in random directions."""
    rng = np.random.default_rng(7)
    graph, shapes = forward_of(spec)
    inferred = shapes_of(graph, shapes, ["out"])
    feeds = {
        name: rng.uniform(0.5, 2.0, concrete(s)) * rng.choice([-1, 1], concrete(s))
        for name, s in shapes.items()
    }
    seed = rng.standard_normal(concrete(inferred["out"]))
    backward = graph.copy()
    gradients = differentiate(backward, inferred, "out", "seed", list(shapes))
    renamed = {name: backward.add("Identity", g) for name, g in gradients.items()}
    all_shapes = inferred | {"seed": inferred["out"]} | {g: shapes[n] for n, g in renamed.items()}
    got = run(backward, feeds | {"seed": seed}, all_shapes, list(renamed.values()))

    assert list(gradients) == list(shapes)
    for name, value in zip(shapes, got, strict=True):
        assert value.shape == feeds[name].shape
        directions = [rng.standard_normal(value.shape) for _ in range(6)]
        want = np.array(slopes(graph, feeds, seed, name, directions))
        have = np.array([float((value * d).sum(dtype=np.float64)) for d in directions])
        scale = max(1.0, float(np.abs(want).max()))
        np.testing.assert_allclose(have, want, atol=TOLERANCE * scale, rtol=0)


def test_every_rule_is_in_the_table():
    """A gradient rule without a row above, or a test of its own below, is a failure."""
    tested = {param.values[0].op for param in CASES} | {"QuantizeLinear", "DequantizeLinear"}

    assert set(supported()) == tested


def test_quantization_passes_gradients_straight_through():
    """The gradient of a quantise-dequantise pair is the gradient of its output."""
    graph = Graph(18)
    scale, zero = graph.scalar(0.1), graph.constant(np.zeros((), dtype=np.int8))
    graph.add("DequantizeLinear", graph.add("QuantizeLinear", "w", scale, zero), scale, zero, output="out")
    gradients = differentiate(graph, {"w": (4,), "out": (4,)}, "out", "seed", ["w"])

    assert gradients == {"w": "seed"}


def test_cross_entropy_gradient_agrees_with_finite_differences():
    """The loss is the mean negative log-likelihood and its gradient the slope of it."""
    rng = np.random.default_rng(3)
    graph = Graph(18)
    gradient = cross_entropy(graph, "logits", "y", 5, loss="loss")
    model = graph.model(
        "loss",
        [value_info("logits", TensorProto.FLOAT, (B, 5)), value_info("y", TensorProto.INT64, (B,))],
        [value_info("loss", TensorProto.FLOAT, ()), value_info(gradient, TensorProto.FLOAT, (B, 5))],
    )
    logits, labels = rng.standard_normal((4, 5)) * 3, np.array([0, 4, 2, 2])
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    loss, got = session.run(None, {"logits": logits.astype(np.float32), "y": labels})

    def objective(values):
        log_p = values - np.log(np.exp(values).sum(axis=1, keepdims=True))
        return -log_p[np.arange(4), labels].mean()

    want = np.zeros_like(logits)
    for at in np.ndindex(*logits.shape):
        step = np.zeros_like(logits)
        step[at] = EPSILON
        want[at] = (objective(logits + step) - objective(logits - step)) / (2 * EPSILON)
    assert float(loss) == pytest.approx(objective(logits), rel=1e-6)
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_tied_maxima_share_the_gradient():
    """Equal values in a pooling window get equal shares that add up to the window's gradient."""
    graph = Graph(18)
    graph.add("MaxPool", "x", output="out", kernel_shape=[2], strides=[2])
    shapes = {"x": (1, 1, 4), "out": (1, 1, 2), "seed": (1, 1, 2)}
    (dx,) = differentiate(graph, shapes, "out", "seed", ["x"]).values()
    feeds = {"x": np.array([[[3.0, 3.0, 1.0, 2.0]]]), "seed": np.array([[[4.0, 5.0]]])}
    (got,) = run(graph, feeds, shapes | {dx: (1, 1, 4)}, [dx])

    assert got.tolist() == [[[2.0, 2.0, 0.0, 5.0]]]


def test_a_tensor_used_twice_gets_the_sum_of_its_gradients():
    """Gradients of several uses of one tensor are added."""
    graph = Graph(18)
    graph.add("Mul", "x", "x", output="out")
    shapes = {"x": (3,), "out": (3,), "seed": (3,)}
    (dx,) = differentiate(graph, shapes, "out", "seed", ["x"]).values()
    (got,) = run(graph, {"x": np.array([1.0, 2.0, 3.0]), "seed": np.ones(3)}, shapes | {dx: (3,)}, [dx])

    assert got.tolist() == [2.0, 4.0, 6.0]


def test_an_unknown_operator_is_refused_by_name():
    """The error names node and operator and lists what is supported."""
    graph = Graph(18)
    graph.add("Erf", "x", output="out")

    with pytest.raises(
        NotDifferentiable, match=r"'out:Erf' of type Erf .* supported: Add, AveragePool, Conv"
    ):
        differentiate(graph, {"x": (3,), "out": (3,)}, "out", "seed", ["x"])


def test_only_gradients_that_lead_to_wanted_tensors_are_built():
    """A frozen layer below the trainable ones costs no node, even if it has no gradient rule."""
    graph = Graph(18)
    graph.add("Erf", "x", output="frozen")
    graph.add("MatMul", "frozen", "w", output="out")
    before = len(graph.nodes)
    differentiate(graph, {"frozen": (B, 3), "w": (3, 2), "out": (B, 2)}, "out", "seed", ["w"])

    assert [n.op_type for n in graph.nodes[before:]] == ["Gemm"]
