"""Every gradient rule against central differences in float64."""

from math import prod
from pathlib import Path

import numpy as np
import pytest
from firmware_test_cases import CASES
from firmware_test_derivatives import B, check, check_alone, run
from onnx import TensorProto, helper

from firmware_tools import compile_training
from firmware_tools.autodiff import Graph, correlation, differentiate, patches, supported, table
from firmware_tools.autodiff.graph import DYNAMIC, needed, shapes_of
from firmware_tools.autodiff.reverse import lower
from firmware_tools.errors import NotDifferentiable


@pytest.mark.parametrize("spec", CASES, ids=lambda spec: spec.name)
def test_gradient_agrees_with_finite_differences(spec):
    """The gradient of each input equals the slope of the forward operator in random directions."""
    check(spec)


@pytest.mark.parametrize("spec", [c for c in CASES if len(c.shapes) > 1], ids=lambda spec: spec.name)
def test_frozen_operands_get_no_gradient(spec):
    """With all operands but one frozen, that one's gradient is unchanged and no other is built."""
    check_alone(spec)


@pytest.mark.parametrize(
    "spec", [c for c in CASES if c.op in ("Conv", "ConvTranspose")], ids=lambda c: c.name
)
def test_weight_gradients_taken_sample_by_sample_are_the_same(spec, monkeypatch):
    """A convolution whose weight gradient is summed by a Scan has the gradients of one without."""
    monkeypatch.setattr(correlation, "_SCANNED_VALUES_MIN", 0)
    check(spec)


@pytest.mark.parametrize(
    "spec", [c for c in CASES if c.op in ("Conv", "ConvTranspose")], ids=lambda c: c.name
)
def test_weight_gradients_from_patches_are_the_same(spec, monkeypatch):
    """A convolution whose weight gradient is a product with patches has the gradients of one without."""
    monkeypatch.setattr(patches, "CHANNELS_MIN", 1)
    monkeypatch.setattr(patches, "CHANNELS_STRIDED_MIN", 1)
    check(spec)


@pytest.mark.parametrize(("channels", "stride"), [(8, 2), (64, 1)])
def test_strides_and_many_channels_gather_patches(channels, stride):
    """Where strides leave no long runs to shift, or channels are many, the values of patches are gathered."""
    graph, shapes = Graph(18), {"x": (B, channels, 8, 8), "w": (8, channels, 3, 3)}
    graph.add("Conv", *shapes, output="y", pads=[1] * 4, strides=[stride] * 2)
    known = shapes_of(graph, shapes, ["y"])
    gradient = differentiate(graph, known, "y", "dy", ["w"])["w"]
    (scan,) = (node for node in needed(graph.nodes, [gradient]) if node.op_type == "Scan")
    (body,) = (a.g for a in scan.attribute if a.name == "body")

    assert "Gather" in {node.op_type for node in body.node}


def test_large_weight_gradients_are_taken_sample_by_sample():
    """The copies of a convolution over large maps are never made for a whole batch at once."""
    graph, shapes = Graph(18), {"x": (B, 16, 32, 32), "w": (16, 16, 3, 3)}
    graph.add("Conv", *shapes, output="y", pads=[1] * 4)
    known = shapes_of(graph, shapes, ["y"])
    gradient = differentiate(graph, known, "y", "dy", ["w"])["w"]
    found = shapes_of(graph, {**shapes, "dy": known["y"]}, [gradient])
    batched = [name for name, shape in found.items() if DYNAMIC in shape]

    assert max(prod(found[name][1:]) for name in batched) == 16 * 32 * 32


DEPTHWISE = [
    ((3, 25, 5), (3, 3), {"pads": [1, 1, 1, 1]}),
    ((2, 12, 7), (3, 2), {"strides": [2, 3], "pads": [1, 0, 2, 1]}),
    ((2, 13, 9), (2, 3), {"dilations": [3, 2], "pads": [0, 3, 4, 1]}),
    ((4, 7, 6), (7, 6), {}),
    ((2, 9, 1), (4, 1), {"auto_pad": "SAME_UPPER"}),
]


@pytest.mark.parametrize(("sample", "kernel", "attributes"), DEPTHWISE)
@pytest.mark.parametrize("bias", [False, True])
def test_a_narrow_depthwise_convolution_is_lowered_without_a_change(sample, kernel, attributes, bias):
    """What a training graph computes in the place of such a convolution is the convolution."""
    rng = np.random.default_rng(0)
    channels = sample[0]
    shapes = {"x": (B, *sample), "w": (channels, 1, *kernel)} | ({"b": (channels,)} if bias else {})
    feeds = {k: rng.standard_normal([3 if e == B else e for e in s]) for k, s in shapes.items()}
    plain, fast = Graph(18), Graph(18)
    for graph in (plain, fast):
        graph.add("Conv", *shapes, output="y", group=channels, **attributes)
    known = shapes_of(fast, shapes, ["y"])
    lower(fast, known)
    (want,), (got,) = (run(graph, feeds, known, ["y"]) for graph in (plain, fast))

    assert "Conv" not in {node.op_type for node in fast.nodes}
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_every_rule_is_in_the_table():
    """A gradient rule without a case, or a test of its own below, is a failure."""
    assert set(supported()) == {spec.op for spec in CASES} | {"QuantizeLinear", "DequantizeLinear"}


def test_the_operator_page_says_what_the_code_does():
    """docs/operators.md is what the registry renders."""
    page = Path(__file__).parents[3] / "docs" / "operators.md"

    assert page.read_text() == table.render()


@pytest.mark.parametrize("per_channel", [False, True])
def test_quantization_passes_gradients_inside_its_range(per_channel):
    """A quantise-dequantise pair passes the gradient where values round into int8 and stops it outside."""
    scale = np.array([0.1, 0.2], np.float32) if per_channel else np.array(0.1, np.float32)
    graph = Graph(18)
    parts = graph.constant(scale), graph.constant(np.full(scale.shape, 3, np.int8))
    graph.add(
        "DequantizeLinear", graph.add("QuantizeLinear", "w", *parts, axis=0), *parts, axis=0, output="out"
    )
    shapes = {"w": (2, 5), "out": (2, 5), "seed": (2, 5)}
    (dw,) = differentiate(graph, shapes, "out", "seed", ["w"]).values()
    values = np.array([[-13.2, -13.0, 0.0, 12.44, 12.5]] * 2)
    (got,) = run(graph, {"w": values, "seed": np.ones((2, 5))}, shapes | {dw: (2, 5)}, [dw])

    assert got[0].tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]
    assert got[1].tolist() == ([1.0] * 5 if per_channel else got[0].tolist())


def test_quantization_with_a_computed_scale_passes_all_gradients():
    """A scale of max|w| / 127 never saturates, so nothing is masked."""
    graph = Graph(18)
    scale, zero = (
        graph.add("ReduceMax", graph.add("Abs", "w"), keepdims=0),
        graph.constant(np.zeros((), np.int8)),
    )
    graph.add("DequantizeLinear", graph.add("QuantizeLinear", "w", scale, zero), scale, zero, output="out")

    assert differentiate(graph, {"w": (4,), "out": (4,)}, "out", "seed", ["w"]) == {"w": "seed"}


@pytest.mark.parametrize(
    ("kernel", "values", "gradient"),
    [
        ([2], [3.0, 3.0, 1.0, 2.0], [4.0, 0.0, 0.0, 5.0]),
        ([4], [3.0, 1.0, 3.0, 2.0], [2.0, 0.0, 2.0, 0.0]),
        ([2, 2], [[0.0, 7.0], [7.0, 7.0]], [[0.0, 0.0], [4.0, 0.0]]),
        ([1, 2], [[3.0, 3.0], [1.0, 2.0]], [[4.0, 0.0], [0.0, 5.0]]),
    ],
)
def test_tied_maxima_do_not_multiply_the_gradient(kernel, values, gradient):
    """Of equal values in a window of 2 one takes the gradient, in larger ones they share it evenly."""
    graph = Graph(18)
    graph.add("MaxPool", "x", output="out", kernel_shape=kernel, strides=kernel)
    x = np.array([[values]])
    pooled = (1, 1, *(n // k for n, k in zip(x.shape[2:], kernel, strict=True)))
    shapes = {"x": x.shape, "out": pooled, "seed": pooled}
    (dx,) = differentiate(graph, shapes, "out", "seed", ["x"]).values()
    seed = np.array([4.0, 5.0])[: np.prod(pooled)].reshape(pooled)
    (got,) = run(graph, {"x": x, "seed": seed}, shapes | {dx: x.shape}, [dx])

    assert got.tolist() == [[gradient]]


def test_a_tensor_used_twice_gets_the_sum_of_its_gradients():
    """Gradients of several uses of one tensor are added."""
    graph = Graph(18)
    graph.add("Mul", "x", "x", output="out")
    shapes = {"x": (3,), "out": (3,), "seed": (3,)}
    (dx,) = differentiate(graph, shapes, "out", "seed", ["x"]).values()
    (got,) = run(graph, {"x": np.array([1.0, 2.0, 3.0]), "seed": np.ones(3)}, shapes | {dx: (3,)}, [dx])

    assert got.tolist() == [2.0, 4.0, 6.0]


def test_what_a_negative_padding_cuts_off_gets_zero():
    """Pad with mixed signs gives back a gradient of the input's shape, zero where values were cut."""
    graph = Graph(18)
    graph.add("Pad", "x", graph.ints(-1, 2), output="out")
    shapes = {"x": (4,), "out": (5,), "seed": (5,)}
    (dx,) = differentiate(graph, shapes, "out", "seed", ["x"]).values()
    feeds = {"x": np.ones(4), "seed": np.arange(1.0, 6.0)}
    (got,) = run(graph, feeds, shapes | {dx: (4,)}, [dx])

    assert got.tolist() == [0.0, 1.0, 2.0, 3.0]


def test_an_output_shape_means_the_paddings_that_lead_to_it():
    """A ConvTranspose with output_shape has the gradients of the same one with its paddings written out."""
    rng = np.random.default_rng(4)
    shapes = {"x": (2, 3, 4, 3), "w": (3, 2, 3, 2), "out": (2, 2, 8, 3), "seed": (2, 2, 8, 3)}
    feeds = {name: rng.standard_normal(shapes[name]) for name in ("x", "w", "seed")}
    results = []
    for attributes in ({"output_shape": [8, 3]}, {"pads": [1, 1, 0, 0]}):
        graph = Graph(18)
        graph.add("ConvTranspose", "x", "w", output="out", strides=[2, 1], **attributes)
        names = ["out", *differentiate(graph, shapes, "out", "seed", ["x", "w"]).values()]
        kinds = shapes | dict(zip(names[1:], (shapes["x"], shapes["w"]), strict=True))
        results.append(run(graph, feeds, kinds, names))

    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


REFUSED = [
    ("Pad", [None, np.array([1, 1])], {"mode": "reflect"}, "none along the batch"),
    ("Slice", [None, np.array([1]), np.array([3]), np.array([0])], {}, "cuts the batch"),
    ("Gather", [None, np.array([1])], {}, "picks from the batch"),
    ("ReduceL2", [None], {"noop_with_empty_axes": 1}, "runtimes disagree"),
    ("Cast", [None], {"to": TensorProto.FLOAT16}, "only float32"),
    ("Einsum", [None], {"equation": "i->"}, "operand 0 has an index"),
    ("Einsum", [None], {"equation": "...i->i"}, "no ellipsis"),
    ("NonMaxSuppression", [None], {}, ""),
]


@pytest.mark.parametrize(("op", "inputs", "attributes", "reason"), REFUSED, ids=lambda v: str(v)[:20])
def test_what_has_no_gradient_is_refused_with_its_reason(op, inputs, attributes, reason):
    """An attribute or axis without a gradient is refused by node, operator and reason."""
    graph = Graph(18)
    names = ["x" if value is None else graph.constant(value) for value in inputs]
    graph.add(op, *names, output="out", **attributes)
    shapes = {name: value.shape for name, value in graph.constants.items()} | {"x": (B,), "out": (B,)}

    with pytest.raises(NotDifferentiable, match=rf"'out:{op}' of type {op} .*{reason}"):
        differentiate(graph, shapes, "out", "seed", ["x"])


def test_a_pool_that_ends_in_padding_alone_is_refused():
    """With ceil_mode, onnx infers a window that lies wholly beyond the input, and ONNX Runtime computes none."""
    graph = Graph(18)
    graph.add("MaxPool", "x", output="out", kernel_shape=[1], strides=[2], ceil_mode=1)
    shapes = shapes_of(graph, {"x": (B, 1, 2)}, ["out"])

    with pytest.raises(NotDifferentiable, match="lies in the padding"):
        differentiate(graph, shapes, "out", "seed", ["x"])


@pytest.mark.parametrize(
    ("scales", "attributes", "reason"),
    [
        ([1, 2, 1, 1], {}, "neither batch nor channels"),
        ([1, 1, 2, 2], {"coordinate_transformation_mode": "tf_crop_and_resize"}, "regions of interest"),
    ],
)
def test_rare_resizing_is_refused(scales, attributes, reason):
    """Resizing along the channels, and by regions of interest, is refused with its reason."""
    graph = Graph(18)
    graph.add("Resize", "x", "", graph.constant(np.array(scales, np.float32)), output="out", **attributes)
    after = tuple(n * s if n > 0 else n for n, s in zip((B, 2, 3, 4), scales, strict=True))

    with pytest.raises(NotDifferentiable, match=f"Resize .*{reason}"):
        differentiate(graph, {"x": (B, 2, 3, 4), "out": after}, "out", "seed", ["x"])


def test_scales_of_a_resize_are_no_parameters(models):
    """An initializer that says how much larger an image gets is a setting, which is never trained."""
    weights = {"scales": np.array([1, 1, 2, 2], np.float32), "w": models.he(np.random.default_rng(0), 16, 4)}
    nodes = [
        helper.make_node("Resize", ["in", "", "scales"], ["a"]),
        helper.make_node("Flatten", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w"], ["out"]),
    ]
    compiled = compile_training(models.model_of(nodes, weights, (1, 2, 2), 4))

    assert [t.name for t in compiled.manifest.tensors] == ["w"]


def test_a_recurrent_layer_on_a_frozen_path_stays_fused():
    """Only what is trained is unrolled; a dynamic sequence length is no obstacle below it."""
    graph = Graph(18)
    graph.add("LSTM", "x", "w", "r", output="states", hidden_size=3)
    graph.add("Mul", "states", "scale", output="out")
    shapes = {"x": (B, 2, 2), "states": (B, 1, 2, 3), "out": (B, 1, 2, 3), "scale": (3,)}
    differentiate(graph, shapes, "out", "seed", ["scale"])

    assert [n.op_type for n in graph.nodes[:2]] == ["LSTM", "Mul"]


def test_a_weight_of_many_steps_gets_one_product():
    """The gradient of a recurrent weight is one matrix product over all steps."""
    graph = Graph(18)
    graph.add("RNN", "x", "w", "r", output="out", hidden_size=3)
    shapes = {"x": (6, B, 2), "w": (1, 3, 2), "r": (1, 3, 3), "out": (6, 1, B, 3), "seed": (6, 1, B, 3)}
    (dr,) = differentiate(graph, shapes, "out", "seed", ["r"]).values()
    built = needed(graph.nodes, [dr])

    assert [n.op_type for n in built if "transA" in [a.name for a in n.attribute if a.i]] == ["Gemm"]


def test_a_grouped_transposed_convolution_has_adjoint_gradients():
    """It is linear in input, weight and bias, so each gradient times its tensor sums up to the output's part."""
    rng = np.random.default_rng(2)
    graph = Graph(18)
    graph.add("ConvTranspose", "x", "w", "b", output="out", group=2, strides=[2], pads=[1, 0])
    shapes = shapes_of(graph, {"x": (B, 4, 5), "w": (4, 3, 2), "b": (6,)}, ["out"])
    shapes["seed"] = shapes["out"]
    gradients = differentiate(graph, shapes, "out", "seed", ["x", "w", "b"])
    feeds = {n: rng.standard_normal([2 if e == B else e for e in shapes[n]]) for n in ("x", "w", "b", "seed")}
    shapes |= {g: shapes[n] for n, g in gradients.items()}
    out, dx, dw, db = run(graph, feeds, shapes, ["out", *gradients.values()])
    linear = ((out - feeds["b"][:, None]) * feeds["seed"]).sum()

    assert (dx * feeds["x"]).sum() == pytest.approx(linear, rel=1e-4)
    assert (dw * feeds["w"]).sum() == pytest.approx(linear, rel=1e-4)
    np.testing.assert_allclose(db, feeds["seed"].sum(axis=(0, 2)), atol=1e-5)


def test_comparisons_and_shapes_on_the_path_carry_no_gradient():
    """A mask computed from a trained tensor multiplies as a constant does."""
    graph = Graph(18)
    over = graph.add("Cast", graph.add("Greater", "w", graph.scalar(0.5)), to=TensorProto.FLOAT)
    length = graph.add("Cast", graph.add("Size", "w"), to=TensorProto.FLOAT)
    graph.add("Mul", graph.add("Mul", "w", over), length, output="out")
    shapes = shapes_of(graph, {"w": (3,)}, ["out"]) | {"seed": (3,)}
    (dw,) = differentiate(graph, shapes, "out", "seed", ["w"]).values()
    (got,) = run(graph, {"w": np.array([0.2, 0.7, 2.0]), "seed": np.ones(3)}, shapes | {dw: (3,)}, [dw])

    assert got.tolist() == [0.0, 3.0, 3.0]


def test_an_unknown_operator_is_refused_by_name():
    """The error names node and operator and lists what is supported."""
    graph = Graph(18)
    graph.add("Round", "x", output="out")

    with pytest.raises(
        NotDifferentiable, match=r"'out:Round' of type Round .* supported: Abs, Add, AveragePool"
    ):
        differentiate(graph, {"x": (3,), "out": (3,)}, "out", "seed", ["x"])


def test_only_gradients_that_lead_to_wanted_tensors_are_built():
    """A frozen layer below the trainable ones costs no node, even if it has no gradient rule."""
    graph = Graph(18)
    graph.add("Round", "x", output="frozen")
    graph.add("MatMul", "frozen", "w", output="out")
    before = len(graph.nodes)
    differentiate(graph, {"frozen": (B, 3), "w": (3, 2), "out": (B, 2)}, "out", "seed", ["w"])

    assert [n.op_type for n in graph.nodes[before:]] == ["Gemm"]
