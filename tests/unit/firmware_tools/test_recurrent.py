"""RNN, GRU and LSTM with all they take, against the specification's formulae in numpy and ONNX Runtime's kernels."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from firmware_test_derivatives import TOLERANCE, run
from firmware_test_recurrences import ALPHA, BETA, FUNCTIONS, GATES, USUAL, recurrence
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from edge_client.bundle import INFER, TRAIN
from edge_client.training import TrainingSession
from firmware_tools import compile_training
from firmware_tools.autodiff import Graph, differentiate
from firmware_tools.autodiff.cells import activations
from firmware_tools.autodiff.graph import DYNAMIC, shapes_of
from firmware_tools.autodiff.recurrent import departs, kernel_form, unroll
from firmware_tools.autodiff.registry import Call
from firmware_tools.errors import ModelError, NotDifferentiable

STEPS, BATCH, WIDTH, SIZE = 4, 3, 2, 3
INPUTS = ("x", "w", "r", "b", "lengths", "h0", "c0", "p")  # in the operators' order
EPSILON = 1e-7  # small, as activations have corners
BOTH = {"direction": "bidirectional"}
BACK = {"direction": "reverse"}
BENT = {
    "RNN": ["ScaledTanh"],
    "GRU": ["HardSigmoid", "LeakyRelu"],
    "LSTM": ["HardSigmoid", "Affine", "ScaledTanh"],
}
PARAMETERS = {"activation_alpha": [0.3, 0.7, 0.8], "activation_beta": [0.4, 0.9, 0.6]}
COMMON = [
    ({}, ("b",)),
    ({}, ("b", "lengths")),
    ({**BACK}, ("lengths", "h0", "c0")),
    ({**BOTH}, ("b", "lengths", "h0", "c0")),
    ({"layout": 1}, ("b", "h0", "c0")),
    ({"layout": 1, **BOTH}, ("b", "lengths", "h0", "c0")),
    ({"clip": 0.4}, ("b", "h0", "c0")),
    ({"clip": 0.0}, ("b",)),
    ({"clip": 0.7, **BOTH}, ("lengths",)),
]
CASES = [(op, attributes, inputs) for op in GATES for attributes, inputs in COMMON]
CASES += [
    (op, {"activations": names, **more}, ("b",)) for op, names in BENT.items() for more in ({}, PARAMETERS)
]
CASES += [("RNN", {"activations": [name]}, ("b",)) for name in FUNCTIONS]
CASES += [
    ("GRU", {"linear_before_reset": 1, "clip": 0.5}, ("b", "lengths", "h0")),
    ("GRU", {"activations": BENT["GRU"] * 2, "activation_alpha": [0.3, 0.2, 0.5], **BOTH}, ("b",)),
    ("LSTM", {}, ("b", "p")),
    ("LSTM", {**BOTH}, ("b", "lengths", "h0", "c0", "p")),
    ("LSTM", {"input_forget": 1}, ("b",)),
    ("LSTM", {"input_forget": 1, "clip": 0.6, "layout": 1, **BACK}, ("b", "lengths", "h0", "c0", "p")),
]  # fmt: skip


def shapes_in(op, attributes, inputs):
    """Shape of each input by name, in the operators' order."""
    count, rows = 2 if attributes.get("direction") == "bidirectional" else 1, GATES[op] * SIZE
    shapes = {"x": (STEPS, BATCH, WIDTH), "w": (count, rows, WIDTH), "r": (count, rows, SIZE)}
    shapes |= {"b": (count, 2 * rows), "lengths": (BATCH,), "h0": (count, BATCH, SIZE)}
    shapes |= {"c0": shapes["h0"], "p": (count, 3 * SIZE)} if op == "LSTM" else {}
    turned = ("x", "h0", "c0") if attributes.get("layout") else ()
    shapes |= {n: (s[1], s[0], s[2]) for n, s in shapes.items() if n in turned}
    return {n: s for n, s in shapes.items() if n in ("x", "w", "r", *inputs)}


def drawn(op, attributes, inputs, rng, scale):
    """Values of the inputs in float64, normal of that deviation; a length for each sequence, one of which is whole and one without a step."""
    values = {n: scale * rng.standard_normal(s) for n, s in shapes_in(op, attributes, inputs).items()}
    if "lengths" in values:
        values["lengths"] = rng.permutation([STEPS, 0, *rng.integers(1, STEPS, BATCH - 2)]).astype(np.int32)
    return values


def layer(op, attributes, values):
    """A graph with the one node, the lengths a constant, and the names of its outputs."""
    graph = Graph(18)
    names = {n: graph.constant(v) if n == "lengths" else n for n, v in values.items()}
    last = max(i for i, name in enumerate(INPUTS) if name in names)
    outputs = ("y", "y_h", "y_c")[: 3 if op == "LSTM" else 2]
    inputs = [names.get(name, "") for name in INPUTS[: last + 1]]
    graph.add_many(op, *inputs, outputs=outputs, hidden_size=SIZE, **attributes)
    return graph, outputs


def check(op, attributes, inputs, seed, scale=0.7):
    """Values, ONNX Runtime's own values, and gradients of all that can have one."""
    rng = np.random.default_rng(seed)
    values = drawn(op, attributes, inputs, rng, scale)
    want = recurrence(op, **values, **attributes)
    feeds = {n: v for n, v in values.items() if n != "lengths"}
    shapes = {n: v.shape for n, v in feeds.items()}
    graph, outputs = layer(op, attributes, values)
    (node,) = graph.nodes
    known = shapes | {n: v.shape for n, v in graph.constants.items()}
    known |= {n: v.shape for n, v in zip(outputs, want, strict=True)}

    fused, graph.nodes = graph.copy(), []
    fused.nodes = kernel_form(node)
    if not departs(node):
        for value, expected in zip(run(fused, feeds, known, outputs), want, strict=True):
            np.testing.assert_allclose(value, expected, atol=1e-5, rtol=1e-5)

    unroll(Call(graph, node, (), (), known))
    for value, expected in zip(run(graph, feeds, known, outputs), want, strict=True):
        np.testing.assert_allclose(value, expected, atol=1e-5, rtol=1e-5)

    flat = [graph.add("Reshape", name, graph.ints(-1)) for name in outputs]
    graph.add("Concat", *flat, axis=0, output="out")
    weight = rng.standard_normal(sum(v.size for v in want))
    gradients = differentiate(graph, shapes_of(graph, shapes, ["out"]), "out", "seed", list(shapes))
    kinds = shapes | {"seed": weight.shape} | {g: shapes[n] for n, g in gradients.items()}
    got = run(graph, feeds | {"seed": weight}, kinds, list(gradients.values()))
    assert gradients.keys() == shapes.keys()
    for name, gradient in zip(gradients, got, strict=True):
        directions = [rng.standard_normal(shapes[name]) for _ in range(3)]
        slopes = [slope((op, attributes), values, name, d, weight) for d in directions]
        have = [float((gradient * d).sum(dtype=np.float64)) for d in directions]
        scale = max(1.0, float(np.abs(slopes).max()))
        np.testing.assert_allclose(have, slopes, atol=TOLERANCE * scale, rtol=0, err_msg=name)


def slope(spec, values, name, direction, weight):
    """Central difference of the weighted sum of all outputs along a direction of one input."""
    op, attributes = spec
    ahead, behind = (
        np.concatenate([v.ravel() for v in recurrence(op, **moved, **attributes)]) @ weight
        for moved in (values | {name: values[name] + side * EPSILON * direction} for side in (1, -1))
    )
    return (ahead - behind) / (2 * EPSILON)


@pytest.mark.parametrize(("op", "attributes", "inputs"), CASES)
def test_a_recurrent_layer_is_what_its_specification_says(op, attributes, inputs):
    """Values unrolled and in ONNX Runtime's kernel, and gradients of all inputs, are those of the formulae."""
    check(op, attributes, inputs, 3)


@st.composite
def layers(draw):
    """Every attribute and optional input, in any combination."""
    op = draw(st.sampled_from(sorted(GATES)))
    direction = draw(st.sampled_from(["forward", "reverse", "bidirectional"]))
    count = (2 if direction == "bidirectional" else 1) * len(USUAL[op])
    attributes = {"direction": direction, "layout": draw(st.integers(0, 1))}
    if draw(st.booleans()):
        names = draw(st.lists(st.sampled_from(sorted(FUNCTIONS)), min_size=count, max_size=count))
        attributes["activations"] = names
        for key, takers in (("alpha", ALPHA), ("beta", BETA)):
            most = sum(name in takers for name in names)
            parts = draw(st.lists(st.integers(1, 9), max_size=most))
            attributes |= {f"activation_{key}": [p / 10 for p in parts]} if parts else {}
    if draw(st.booleans()):
        attributes["clip"] = draw(st.integers(1, 20)) / 10
    if op == "GRU":
        attributes["linear_before_reset"] = draw(st.integers(0, 1))
    if op == "LSTM":
        attributes["input_forget"] = draw(st.integers(0, 1))
    optional = ["b", "lengths", "h0", *(["c0", "p"] if op == "LSTM" else [])]
    return op, attributes, tuple(draw(st.sets(st.sampled_from(optional))))


# The same draws each time: once in thousands of others a value lies so close to a corner that float32 is beyond it.
@settings(max_examples=40, derandomize=True)
@given(layers(), st.integers(0, 999))
def test_any_recurrent_layer_is_what_its_specification_says(spec, seed):
    """The same of attributes and inputs in random combinations."""
    check(*spec, seed, scale=0.3)  # gates that are not bounded grow from step to step


def padded(models, **attributes):
    """Sequences of five steps, of which those at the end are zeros, batch first, to logits; an LSTM with a peephole."""
    rng = np.random.default_rng(1)
    weights = {
        "w": rng.standard_normal((1, 4 * SIZE, WIDTH)).astype(np.float32),
        "r": rng.standard_normal((1, 4 * SIZE, SIZE)).astype(np.float32),
        "p": rng.standard_normal((1, 3 * SIZE)).astype(np.float32),
        "head": rng.standard_normal((SIZE, 4)).astype(np.float32),
        "zero": np.zeros((), np.float32),
        "last": np.array([2]),
        "after": np.array([1]),
        "first": np.array([1]),
    }
    nodes = [
        helper.make_node("ReduceMax", ["size", "last"], ["top"], keepdims=0),
        helper.make_node("Greater", ["top", "zero"], ["there"]),
        helper.make_node("Cast", ["there"], ["counted"], to=6),
        helper.make_node("ReduceSum", ["counted", "after"], ["lengths"], keepdims=0),
        helper.make_node(
            "LSTM",
            ["in", "w", "r", "", "lengths", "", "", "p"],
            ["", "h"],
            hidden_size=SIZE,
            layout=1,
            **attributes,
        ),
        helper.make_node("Squeeze", ["h", "first"], ["state"]),
        helper.make_node("MatMul", ["state", "head"], ["out"]),
    ]
    nodes.insert(0, helper.make_node("Abs", ["in"], ["size"]))
    return models.model_of(nodes, weights, (5, WIDTH), 4), weights


def sequences(seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 6, 8)
    x = rng.standard_normal((8, 5, WIDTH)).astype(np.float32)
    return np.where(np.arange(5)[:, None] < lengths[:, None, None], x, 0).astype(np.float32), lengths


@pytest.mark.parametrize("attributes", [{}, {"clip": 0.5}])
def test_a_model_of_padded_sequences_trains_as_it_answers(models, tmp_path, attributes):
    """Batch first, with lengths and peepholes: answers are the formulae's, in training, evaluation and inference."""
    model, weights = padded(models, **attributes)
    x, lengths = sequences()
    y = np.arange(8) % 4
    bundle = compile_training(model, quantize="none", optimizer="sgd")
    _, h, _ = recurrence(
        "LSTM", x, *(weights[n] for n in "wr"), lengths=lengths, p=weights["p"], layout=1, **attributes
    )
    logits = h[:, 0] @ weights["head"]
    loss = np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(8), y])
    session = TrainingSession(bundle.save(tmp_path / "model.fedbundle"))
    (got,) = ort.InferenceSession(bundle.members[INFER]).run(None, {"x": x, **session.params})

    assert sorted(session.params) == ["head", "p", "r", "w"]
    np.testing.assert_allclose(got, logits, atol=1e-3)
    assert session.evaluate(x, y).loss == pytest.approx(loss, abs=1e-3)
    assert session.step(x, y, 0.1) == pytest.approx(loss, abs=1e-3)
    for _ in range(300):
        session.step(x, y, 0.5)
    assert session.evaluate(x, y).loss < loss - 0.3


def test_lengths_that_are_the_whole_sequence_are_dropped(models):
    """Exporters write them for a fixed batch, too; without them the batch is free and a step takes no mask."""
    weights = {
        "w": np.ones((1, SIZE, WIDTH), np.float32),
        "r": np.ones((1, SIZE, SIZE), np.float32),
        "lengths": np.full(2, 5, np.int32),
        "axis": np.array([0]),
    }
    nodes = [
        helper.make_node("Transpose", ["in"], ["steps"], perm=[1, 0, 2]),
        helper.make_node("RNN", ["steps", "w", "r", "", "lengths"], ["", "h"], hidden_size=SIZE),
        helper.make_node("Squeeze", ["h", "axis"], ["out"]),
    ]
    model = models.model_of(nodes, weights, (5, WIDTH), SIZE)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    members = compile_training(model, quantize="none").members

    assert "Less" not in {n.op_type for n in onnx.load_from_string(members[TRAIN]).graph.node}
    x = np.ones((7, 5, WIDTH), np.float32)
    params = {n: weights[n] for n in "wr"}
    assert ort.InferenceSession(members[INFER]).run(None, {"x": x, **params})[0].shape == (7, SIZE)


def test_activations_are_known_in_any_case():
    """ONNX Runtime reads their names so."""
    spelled = [
        helper.make_node("RNN", ["x", "w", "r"], ["y"], hidden_size=SIZE, activations=[name])
        for name in ("HardSigmoid", "hardsigmoid")
    ]
    assert activations(spelled[0]) == activations(spelled[1])


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"activations": ["Sigmoid", "Swish", "Tanh"]}, "the activation 'Swish'; known: Affine"),
        ({"activations": ["Sigmoid", "Tanh"]}, "2 activations instead of 3"),
        ({"clip": -1.0}, "clip -1.0; .* cannot be negative"),
    ],
)
def test_a_recurrent_layer_that_no_runtime_runs_is_refused(models, attributes, reason):
    """Unknown, too few and too many activations and a negative clip are named with the node."""
    model, _ = padded(models, **attributes)

    with pytest.raises(ModelError, match=rf"'h' of type LSTM has .*{reason}"):
        compile_training(model)


def test_a_recurrent_layer_of_no_known_length_is_refused():
    """A layer that is trained cannot take its steps from the batch."""
    graph = Graph(18)
    graph.add("LSTM", "x", "w", "r", output="out", hidden_size=3)
    shapes = {"x": (DYNAMIC, 2, 2), "w": (1, 12, 2), "r": (1, 12, 3), "out": (DYNAMIC, 1, 2, 3)}

    with pytest.raises(NotDifferentiable, match=r"LSTM .*sequence length must be static.*supported: "):
        differentiate(graph, shapes, "out", "seed", ["w"])
