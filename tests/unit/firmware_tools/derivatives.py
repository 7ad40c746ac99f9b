"""Compares a gradient rule with central differences in float64."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from firmware_tools.autodiff import Graph, differentiate
from firmware_tools.autodiff.graph import DYNAMIC, shapes_of, value_info
from firmware_tools.autodiff.reverse import expand

BATCH = 3  # stands for DYNAMIC in the shapes of a case
EPSILON = 1e-6
TOLERANCE = 2e-5  # relative to the scale of the derivatives: what float32 kernels keep
B = DYNAMIC


@dataclass
class Case:
    """One operator: differentiated inputs by shape, constants before and after them, attributes.

    A constant is an array, a tuple of int64, or None for an absent input. `low` and `high` bound the
    magnitude of the inputs; they are positive when `positive`.
    """

    name: str
    op: str
    shapes: tuple[tuple[int, ...], ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    constants: tuple[Any, ...] = ()
    first: tuple[Any, ...] = ()
    opset: int = 18
    positive: bool = False
    outputs: int = 1
    unread: tuple[int, ...] = ()


def case(
    name, op, *shapes, constants=(), first=(), opset=18, positive=False, outputs=1, unread=(), **attributes
):
    return Case(name, op, shapes, attributes, constants, first, opset, positive, outputs, unread)


def concrete(shape):
    return tuple(BATCH if extent == DYNAMIC else extent for extent in shape)


def placed(graph, value):
    """Name of a case's constant in the graph; empty for an absent input."""
    if value is None:
        return ""
    return graph.constant(value) if isinstance(value, np.ndarray) else graph.ints(*value)


def forward_of(spec):
    """Graph of the operator; several outputs are multiplied by 1, 2, … and joined to one vector per sample."""
    graph = Graph(spec.opset)
    names = [f"in{i}" for i in range(len(spec.shapes))]
    before, after = ([placed(graph, value) for value in values] for values in (spec.first, spec.constants))
    inputs = [*before, *names, *after]
    if spec.outputs == 1:
        graph.add(spec.op, *inputs, output="out", **spec.attributes)
    else:
        parts = graph.add_many(spec.op, *inputs, outputs=[""] * spec.outputs, **spec.attributes)
        flat = [graph.add("Reshape", graph.add("Mul", p, graph.scalar(i + 1)), graph.ints(-1))
                for i, p in enumerate(parts) if i not in spec.unread]  # fmt: skip
        graph.add("Concat", *flat, axis=0, output="out")
    return graph, dict(zip(names, spec.shapes, strict=True))


def run(graph, feeds, shapes, outputs):
    """The `outputs` that ONNX Runtime computes in float32."""
    inputs = [value_info(name, TensorProto.FLOAT, shapes[name]) for name in feeds]
    model = graph.model("case", inputs, [value_info(n, TensorProto.FLOAT, shapes[n]) for n in outputs])
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(outputs, {name: value.astype(np.float32) for name, value in feeds.items()})


class Erf(OpRun):
    """The error function in the precision of its input; onnx's own returns float32."""

    op_domain = ""

    def _run(self, x):
        return (np.vectorize(math.erf, otypes=[np.float64])(x),)


class Gelu(OpRun):
    """The exact form and the tanh approximation; onnx's own expands to its own Erf."""

    op_domain = ""

    def _run(self, x, approximate=None):
        if approximate == "tanh":
            return (x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,)
        return (x * (1 + np.vectorize(math.erf, otypes=[np.float64])(x / math.sqrt(2))) / 2,)


def windowed(x, fill, attributes):
    """The values of each pooling window in the last axes, with `fill` for what lies outside."""
    kernel = attributes["kernel_shape"]
    rank = len(kernel)
    assert set(attributes.get("dilations") or [1]) == {1}
    strides = attributes.get("strides") or [1] * rank
    pads = attributes.get("pads") or [0] * 2 * rank
    around = [(0, 0), (0, 0)]
    for n, k, s, begin, end in zip(x.shape[2:], kernel, strides, pads[:rank], pads[rank:], strict=True):
        rest = (k - n - begin - end) % s if attributes.get("ceil_mode") else 0
        around.append((begin, end + rest))
    padded = np.pad(x, around, constant_values=fill)
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel, tuple(range(2, rank + 2)))
    steps = tuple(slice(None, None, s) for s in strides)
    return windows[(slice(None), slice(None), *steps)], tuple(range(rank + 2, 2 * rank + 2))


class MaxPool(OpRun):
    """With every window; onnx's own leaves out the last one of [a, b] at kernel 2, pads [0, 1]."""

    op_domain = ""

    def _run(self, x, **attributes):
        windows, axes = windowed(x, -np.inf, attributes)
        return (windows.max(axis=axes),)


class AveragePool(OpRun):
    """Over the values that are there; onnx's own divides a last window of 1 value at kernel 3 by another number."""

    op_domain = ""

    def _run(self, x, **attributes):
        pads = attributes.get("pads") or [0] * 2 * (x.ndim - 2)
        there = np.ones_like(x)
        if attributes.get("count_include_pad"):
            half = len(pads) // 2
            around = [(0, 0), (0, 0), *zip(pads[:half], pads[half:], strict=True)]
            x, there = np.pad(x, around), np.pad(there, around, constant_values=1)
            attributes = attributes | {"pads": [0] * len(pads)}
        sums, counts = (windowed(values, 0, attributes) for values in (x, there))
        return (sums[0].sum(axis=sums[1]) / counts[0].sum(axis=counts[1]),)


class GroupNormalization(OpRun):
    """In the precision of its input; from opset 21 on onnx's own works in float32."""

    op_domain = ""

    def _run(self, x, scale, bias, **attributes):
        grouped = x.reshape(len(x), attributes["num_groups"], -1)
        centred = grouped - grouped.mean(axis=2, keepdims=True)
        z = centred / np.sqrt((centred**2).mean(axis=2, keepdims=True) + attributes["epsilon"])
        wide = [np.repeat(v, x.shape[1] // len(v)).reshape(-1, *[1] * (x.ndim - 2)) for v in (scale, bias)]
        return (z.reshape(x.shape) * wide[0] + wide[1],)


def evaluator(graph, feeds):
    """The graph's output `out` as a function of `feeds`, all in float64."""
    inputs = [value_info(n, TensorProto.DOUBLE, v.shape) for n, v in feeds.items()]
    model = graph.model("case", inputs, [helper.make_empty_tensor_value_info("out")])
    _widen(model.graph)
    reference = ReferenceEvaluator(model, new_ops=[Erf, Gelu, GroupNormalization, MaxPool, AveragePool])

    def evaluate(**changed):
        (out,) = reference.run(["out"], feeds | changed)
        assert out.dtype == np.float64, "the reference lost precision"
        return out

    return evaluate


def _widen(graph):
    """Turns the float32 of a graph and the bodies in it into float64."""
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(float), tensor.name))
    for node in graph.node:
        if node.op_type == "ConstantOfShape":
            zero = helper.make_tensor("zero", TensorProto.DOUBLE, [1], [0.0])
            node.attribute.append(helper.make_attribute("value", zero))
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.DOUBLE
            if attribute.HasField("g"):
                _widen(attribute.g)


def slopes(evaluate, feeds, seed, name, directions):
    """Central differences of sum(out * seed) along `directions` of input `name`."""

    def objective(value):
        return float((evaluate(**{name: value}) * seed).sum())

    return [
        (objective(feeds[name] + EPSILON * d) - objective(feeds[name] - EPSILON * d)) / (2 * EPSILON)
        for d in directions
    ]


def drawn(spec, rng):
    """Values of the differentiated inputs, float64, of magnitudes from 0.5 to 2."""
    return {
        f"in{i}": np.asarray(
            rng.uniform(0.5, 2.0, concrete(s)) * rng.choice([1] if spec.positive else [-1, 1], concrete(s))
        )
        for i, s in enumerate(spec.shapes)
    }


def gradients_of(spec, feeds, weight):
    """The output, and the gradient of sum(out * weight) for each input, as ONNX Runtime computes them in float32."""
    graph, shapes = forward_of(spec)
    inferred = shapes_of(graph, shapes, ["out"])
    (out,) = run(graph, feeds, inferred, ["out"])
    gradients = differentiate(graph, inferred, "out", "seed", list(shapes))
    assert list(gradients) == list(shapes)
    renamed = {name: graph.add("Identity", g) for name, g in gradients.items()}
    all_shapes = inferred | {"seed": inferred["out"]} | {g: shapes[n] for n, g in renamed.items()}
    values = run(graph, feeds | {"seed": weight}, all_shapes, list(renamed.values()))
    for name, value in zip(shapes, values, strict=True):
        assert value.shape == feeds[name].shape
    return out, dict(zip(shapes, values, strict=True))


def check(spec, seed=7):
    """Assert that the gradient of each input equals the slope of the operator in random directions."""
    rng = np.random.default_rng(seed)
    graph, shapes = forward_of(spec)
    feeds = drawn(spec, rng)
    expand(graph, shapes_of(graph, shapes, ["out"]), "out", list(shapes))
    evaluate = evaluator(graph, feeds)
    weight = rng.standard_normal(evaluate().shape)
    out, got = gradients_of(spec, feeds, weight)
    np.testing.assert_allclose(out, evaluate(), atol=1e-5, rtol=1e-5)

    for name, value in got.items():
        directions = [rng.standard_normal(value.shape) for _ in range(4)]
        want = np.array(slopes(evaluate, feeds, weight, name, directions))
        have = np.array([float((value * d).sum(dtype=np.float64)) for d in directions])
        scale = max(1.0, float(np.abs(want).max()))
        np.testing.assert_allclose(have, want, atol=TOLERANCE * scale, rtol=0)


def check_alone(spec):
    """Assert that the gradient of one input is the same when the others are frozen, which then get none."""
    rng = np.random.default_rng(5)
    graph, shapes = forward_of(spec)
    inferred = shapes_of(graph, shapes, ["out"])
    feeds = {name: np.asarray(rng.uniform(0.5, 2.0, concrete(s))) for name, s in shapes.items()}
    feeds["seed"] = rng.standard_normal(run(graph, feeds, inferred, ["out"])[0].shape)
    kinds = inferred | {"seed": inferred["out"]}

    def gradients(wanted):
        backward = graph.copy()
        found = differentiate(backward, inferred, "out", "seed", wanted)
        assert list(found) == wanted
        named = {name: backward.add("Identity", g) for name, g in found.items()}
        return run(backward, feeds, kinds | {g: shapes[n] for n, g in named.items()}, list(named.values()))

    for name, together in zip(shapes, gradients(list(shapes)), strict=True):
        np.testing.assert_allclose(gradients([name])[0], together, atol=1e-5)
