"""Paddings of some axes are written for all of them."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from firmware_test_cases import CASES
from firmware_test_derivatives import concrete, placed
from onnx import TensorProto, helper

from edge_client.bundle import EVAL, INFER, TRAIN
from edge_client.training import TrainingSession
from firmware_tools import compile_training
from firmware_tools.autodiff import Graph, differentiate
from firmware_tools.autodiff.graph import shapes_of, value_info
from firmware_tools.padding import whole


@pytest.mark.parametrize("kind", ["crop", "pad"])
def test_channels_last_may_be_cropped_and_padded(models, tmp_path, kind):
    """Between transpositions, which ONNX Runtime moves, a crop's gradient and a model's own padding work."""
    rng = np.random.default_rng(0)
    extent = 4 if kind == "crop" else 8
    weights = {"k": models.he(rng, 4, 3, 3, 3), "w": models.he(rng, 4, 4 * extent**2).T.copy()}
    weights |= {"from": np.array([1, 1]), "to": np.array([-1, -1]), "axes": np.array([2, 3])}
    weights["pads"] = np.ones(4, np.int64)
    change = {
        "crop": helper.make_node("Slice", ["d", "from", "to", "axes"], ["e"]),
        "pad": helper.make_node("Pad", ["d", "pads", "", "axes"], ["e"]),
    }[kind]
    nodes = [
        helper.make_node("Transpose", ["in"], ["a"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["a", "k"], ["b"]),
        helper.make_node("Transpose", ["b"], ["b2"], perm=[0, 2, 3, 1]),
        helper.make_node("LeakyRelu", ["b2"], ["c"]),
        helper.make_node("Transpose", ["c"], ["d"], perm=[0, 3, 1, 2]),
        change,
        helper.make_node("Transpose", ["e"], ["f"], perm=[0, 2, 3, 1]),
        helper.make_node("Flatten", ["f"], ["g"]),
        helper.make_node("MatMul", ["g", "w"], ["out"]),
    ]
    compiled = compile_training(models.model_of(nodes, weights, (8, 8, 3), 4), quantize="none")
    session = TrainingSession(compiled.save(tmp_path / "m.bundle"))
    x, y = models.blobs((8, 8, 3), 4, 16)
    losses = [session.step(x, y, 0.02) for _ in range(10)]
    graphs = [onnx.load_from_string(compiled.members[name]).graph for name in (TRAIN, EVAL, INFER)]

    assert losses[-1] < losses[0] / 2
    assert [n for g in graphs for n in g.node if n.op_type == "Pad" and len(n.input) > 3] == []


def between_transpositions(spec):
    """The case on channels last: graph, shapes of the inputs, and the gradient's name for each."""
    graph, rank = Graph(spec.opset), len(spec.shapes[0])
    names = [f"in{i}" for i in range(len(spec.shapes))]
    last = tuple(spec.shapes[0][i] for i in (0, *range(2, rank), 1))
    shapes = dict(zip(names, [last, *spec.shapes[1:]], strict=True))
    source = graph.add("LeakyRelu", "in0", alpha=0.9)
    first = graph.add("Transpose", source, perm=[0, rank - 1, *range(1, rank - 1)])
    before, after = ([placed(graph, value) for value in values] for values in (spec.first, spec.constants))
    result = graph.add(spec.op, *before, first, *names[1:], *after, **spec.attributes)
    axes = len(shapes_of(graph, shapes, [result])[result])
    order = [0, *range(2, axes), 1] if axes > 2 else list(range(axes))
    back = graph.add("Transpose", result, perm=order) if axes else result
    graph.add("LeakyRelu", back, output="out", alpha=0.8)
    shapes |= {"seed": shapes_of(graph, shapes, ["out"])["out"]}
    gradients = differentiate(graph, shapes_of(graph, shapes, ["out"]), "out", "seed", names)
    return graph, shapes, {name: graph.add("Identity", value) for name, value in gradients.items()}


@pytest.mark.parametrize(
    "spec", [c for c in CASES if len(c.shapes[0]) > 2 and c.outputs == 1], ids=lambda spec: spec.name
)
def test_moving_transpositions_changes_no_gradient(spec):
    """What ONNX Runtime's optimizer makes of an operator between transpositions has the gradients of what it is given."""
    rng = np.random.default_rng(0)
    graph, shapes, gradients = between_transpositions(spec)
    ins, outs = (
        [value_info(n, TensorProto.FLOAT, s) for n, s in found.items()]
        for found in (shapes, {v: shapes[k] for k, v in gradients.items()})
    )
    model = whole(graph.model("case", ins, outs)).SerializeToString()
    feeds = {n: rng.uniform(0.5, 2.0, concrete(s)).astype(np.float32) for n, s in shapes.items()}
    results = []
    for level in (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        results.append(ort.InferenceSession(model, options).run(None, feeds))

    for plain, optimised in zip(*results, strict=True):
        np.testing.assert_allclose(optimised, plain, atol=1e-4, rtol=1e-4)
